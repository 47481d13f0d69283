"""What one visitor's session holds: the state, the jobs under way, and how the two follow each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import streamlit as st

from hsim.dashboard.jobs import Bounds, Job, Runner
from hsim.dashboard.state import Question, State, decode, encode
from hsim.dashboard.work import Preview, Request, Update
from hsim.errors import HsimError

PREVIEW_S = 10.0
PREVIEW_WAIT_S = 0.6
PLAN_S = 1200.0
POLL_S = 0.35


@cache
def runners() -> dict[str, Runner]:
    """The server's runners, shared by all sessions: previews need not wait behind studies, nor those behind plans."""
    found = {
        "preview": Runner(Bounds(seconds=PREVIEW_S)),
        "study": Runner(Bounds(nice=10)),
        "plan": Runner(Bounds(1, seconds=PLAN_S, nice=15)),
    }
    found["preview"].start(Preview(Question()))  # the first process takes a second, and nobody shall wait for it
    return found


# ---- the state, in the session and in the address


def current() -> State:
    """The session's state: what the address says, where that is not what the session last wrote there."""
    memory, link = st.session_state, st.query_params.get("s", "")
    if "state" not in memory or (link and link != memory.get("link")):
        memory["link"] = link
        memory["state"] = State()
        memory["generation"] = memory.get("generation", 0) + 1
        if link:
            try:
                memory["state"] = decode(link)
            except HsimError as error:
                st.error(str(error))
    found: State = memory["state"]
    return found


def put(state: State, by_widget: bool = False) -> None:
    """Take a new state. Widgets take their values from it, save the one whose change this is."""
    memory = st.session_state
    if state != memory["state"]:
        memory["before"] = memory["state"]
    memory["state"] = state
    if not by_widget:
        memory["generation"] = memory.get("generation", 0) + 1


def write_link(state: State) -> None:
    """Keep the address such that it leads here again."""
    link = encode(state)
    if st.session_state.get("link") != link:
        st.session_state["link"] = link
        st.query_params["s"] = link


def undo() -> None:
    """Go back to the state before this one."""
    if "before" in st.session_state:
        put(st.session_state["before"])


def key(name: str) -> str:
    """A widget's key: another one after the state was taken from elsewhere, so that it shows what is there."""
    return f"{name}@{st.session_state.get('generation', 0)}"


def changed(widget: str, change: Callable[[State, Any], State]) -> Callable[[], None]:
    """A callback that puts a widget's value into the state."""

    def callback() -> None:
        put(change(st.session_state["state"], st.session_state[widget]), by_widget=True)

    return callback


def with_changes(state: State, changes: Mapping[str, Any]) -> State:
    """The state with settings of its question changed."""
    return replace(state, question=state.question.changed(changes))


# ---- jobs


def job_of(slot: str, request: Request, runner: str = "study") -> Job:
    """The job of this request; one that the slot held for another request is stopped."""
    jobs: dict[str, Job] = st.session_state.setdefault("jobs", {})
    job = jobs.get(slot)
    left = job is not None and job.state == "stopped" and st.session_state.get("halted") != request
    if job is None or job.request != request or left:
        if job is not None:
            job.stop()
        job = jobs[slot] = runners()[runner].start(request)
    return job.watched()


def previews(request: Request, questions: Sequence[Question]) -> list[Job]:
    """Previews of questions, begun; none where the answer to the request itself is there already."""
    if runners()["study"].knows(request):
        return []
    return [job_of(f"preview-{i}", Preview(question), "preview") for i, question in enumerate(questions)]


def previewed(slot: str, request: Request, questions: Sequence[Question]) -> list[Job]:
    """The same, waited for while the request itself is begun."""
    jobs = previews(request, questions)
    job_of(slot, request)
    return [job.wait(PREVIEW_WAIT_S) for job in jobs]


def answered(request: Request) -> Update:
    """The answer to a small request, now. Raises HsimError where it has none."""
    job = runners()["preview"].start(request).wait(PREVIEW_S)
    if job.state != "done" or job.update is None:
        job.stop()
        raise HsimError(job.error or "it takes too long to read; cut a part out of it")
    return job.update


def halt(job: Job) -> None:
    """Stop a job, and do not begin it again by itself."""
    job.stop()
    st.session_state["halted"] = job.request


def go_on() -> None:
    """Begin again what was stopped."""
    st.session_state.pop("halted", None)


def watch(slot: str, request: Request, draw: Callable[[Job], None], runner: str = "study") -> None:
    """Draw a job again and again until it has ended; `draw` says where `progress` stands."""
    running, state = not job_of(slot, request, runner).ended, st.session_state["state"]

    def body() -> None:
        if st.session_state["state"] != state:  # by a button in here, for which Streamlit runs the fragment alone
            st.rerun()
        job = job_of(slot, request, runner)
        draw(job)
        if running == job.ended:  # it has ended, or was begun again: the page looks again by itself no more, or anew
            st.rerun()

    st.fragment(body, run_every=POLL_S if running else None)()


def progress(where: str, job: Job) -> None:
    """How far a job has come, with a button that stops it; or how it ended. `where` it is shown is unique on a page."""
    if job.state == "failed":
        st.error(job.error)
    if job.ended and job.state != "stopped":
        return
    left, right = st.columns([5, 1], vertical_alignment="center")
    if job.state == "stopped":
        left.caption("Stopped.")
        right.button("Go on", key=f"go-{where}", on_click=go_on, width="stretch")
        return
    done, wanted = (job.update.done, job.update.wanted) if job.update else (0, 1)
    waiting = (
        "waiting for a free processor" if job.state == "waiting" else f"{done} of {wanted}" if done else "starting"
    )
    left.progress(done / wanted, f"Simulating: {waiting}")
    right.button("Stop", key=f"stop-{where}", on_click=halt, args=(job,), width="stretch")
