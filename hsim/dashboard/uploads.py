"""What visitors bring: a scenario, a trace; and what to do where a shipped scenario waits for one."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from hsim.dashboard.limits import MAX_TASKS, SCENARIO_BYTES, lacking, uploaded
from hsim.dashboard.session import answered, key, put
from hsim.dashboard.state import DEFAULT, Question, State, about, shipped_scenarios
from hsim.dashboard.traces import UPLOAD_MIB, Held, replaying, stored
from hsim.dashboard.work import ReadTrace
from hsim.errors import DescriptionError, HsimError

FORMATS = ["csv", "json", "jsonl", "txt", "gz"]
OFFERED = 3  # shipped scenarios in place of one that cannot run here


def choose(name: str) -> None:
    """Take a shipped scenario: of its lists of choices, the first."""
    put(replace(st.session_state["state"], question=Question(name).chosen(), variation=(), plan=()))


def scenario_upload() -> None:
    """A popover that takes a scenario."""
    with st.popover("Upload a scenario", icon=":material/upload:", width="stretch"):
        widget = key("upload")
        st.file_uploader(
            f"A YAML file of at most {SCENARIO_BYTES // 1024} kB; it is checked, and never run as code.",
            ["yaml", "yml"],
            key=widget,
            on_change=_scenario_uploaded,
            args=(widget,),
            max_upload_size=1,
        )
    if said := st.session_state.get("upload_error"):
        st.error(said)


def _scenario_uploaded(widget: str) -> None:
    st.session_state.pop("upload_error", None)
    file = st.session_state[widget]
    if file is None:
        return
    try:
        question = uploaded(file.getvalue())
    except HsimError as error:
        st.session_state["upload_error"] = f"{file.name}: {error}"
        return
    put(replace(st.session_state["state"], question=question, variation=(), plan=()))


def trace_upload(where: str) -> None:
    """A field that takes a trace, which then brings the arrivals and lengths of the question."""
    widget = key(f"trace-{where}")
    st.file_uploader(
        f"A trace of requests, at most {UPLOAD_MIB} MiB, in a format of docs/workloads.md, gzipped or not",
        FORMATS,
        key=widget,
        on_change=_trace_uploaded,
        args=(widget,),
        max_upload_size=UPLOAD_MIB,
    )
    if said := st.session_state.get("trace_error"):
        st.error(said)


def _trace_uploaded(widget: str) -> None:
    st.session_state.pop("trace_error", None)
    file = st.session_state[widget]
    if file is None:
        return
    try:
        trace: Held = answered(ReadTrace(stored(file.name, file.getvalue()))).result
        if not trace.timed:
            remedy = "upload one that says when its requests came"
            raise DescriptionError(file.name, f"has no arrival times ({trace.format} format)", remedy)
        state: State = st.session_state["state"]
        changes = replaying(state.question.document().data, trace, MAX_TASKS)
    except HsimError as error:
        st.session_state["trace_error"] = str(error)
        return
    put(replace(state, question=state.question.changed(changes), variation=(), plan=()))


def needs_trace(question: Question, file: str) -> None:
    """Say what a shipped scenario waits for, take it, and offer others that need nothing."""
    st.info(f"**{question.base}** waits for a file. {about(question.base) or f'It is {file}, and is not shipped.'}")
    st.markdown("##### Upload it, or a trace of your own")
    trace_upload("missing")
    st.markdown("##### Or take a scenario that needs nothing")
    names = [name for name in shipped_scenarios() if not lacking(Question(name))]
    names = [DEFAULT, *(name for name in names if name != DEFAULT)][:OFFERED]
    for name, column in zip(names, st.columns(OFFERED), strict=False):
        column.button(name, key=key(f"offer-{name}"), on_click=choose, args=(name,), width="stretch")
        column.caption(shipped_scenarios()[name].partition(" (hsim")[0])
