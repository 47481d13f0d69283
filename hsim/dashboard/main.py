"""The dashboard's one script: reads the state, draws the question in the sidebar and a page beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import streamlit as st

from hsim.dashboard import anatomy, answer, evidence, risk, trade_offs, what_if
from hsim.dashboard.limits import admitted, lacking
from hsim.dashboard.session import changed, current, key, runners, undo, write_link
from hsim.dashboard.sidebar import question_form
from hsim.dashboard.state import State
from hsim.dashboard.uploads import needs_trace
from hsim.description.system import System
from hsim.errors import HsimError

PAGES: dict[str, Callable[[State, System], None]] = {
    "Answer": answer.page,
    "What if": what_if.page,
    "Trade-offs": trade_offs.page,
    "Anatomy": anatomy.page,
    "Risk": risk.page,
    "Evidence": evidence.page,
}
SIDEBAR_PX = 340
STYLE = """<style>
[data-testid="stMainBlockContainer"] {padding-top: 4.4rem; padding-bottom: 2rem; max-width: 1180px;}
[data-testid="stStatusWidget"] {display: none;}
[data-testid="stMetricValue"] {font-variant-numeric: tabular-nums;}
[data-testid="stSidebar"] [data-testid="stVerticalBlock"] {gap: 0.6rem;}
</style>"""


def main() -> None:
    """Draw everything once."""
    st.set_page_config("hsim", ":material/lan:", layout="wide", initial_sidebar_state=SIDEBAR_PX)
    st.html(STYLE)
    runners()
    state = current()
    name = state.page if state.page in PAGES else next(iter(PAGES))
    system = _system(state)
    if system is not None and name == "Answer":
        answer.ahead(state)
    with st.sidebar:
        question_form(state, system.scenario if system else None)
    if system is not None:
        _navigation(name)
        PAGES[name](state, system)
    write_link(state)


def _system(state: State) -> System | None:
    """What is asked for; or why it cannot be, and the way back."""
    try:
        if file := lacking(state.question):
            needs_trace(state.question, file)
            return None
        return admitted(state.question)
    except HsimError as error:
        st.error(f"**This cannot be simulated.** {error}")
        if "before" in st.session_state:
            st.button("Undo the last change", on_click=undo)
        return None


def _navigation(name: str) -> None:
    widget = key("page")
    st.segmented_control(
        "Page",
        list(PAGES),
        default=name,
        key=widget,
        required=True,
        label_visibility="collapsed",
        on_change=changed(widget, lambda state, value: replace(state, page=value or state.page, view="")),
    )


if __name__ == "__main__":
    main()
