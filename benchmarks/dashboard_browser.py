"""Drives the dashboard in a headless Chromium through its main path, checks what it shows, and times it.

Times (first paint, preview, one simulated path: `--only first_paint`) mean something on a machine that does nothing else.

pip install playwright, and a Chromium (Debian: apt-get install chromium). Then

    python benchmarks/dashboard_browser.py [--chromium /usr/bin/chromium] [--screenshots folder]

It starts a server of its own on a free port. Every check that fails ends it with an error.
"""

from __future__ import annotations

import argparse
import gzip
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from playwright.sync_api import Browser, Page, expect, sync_playwright

from hsim.dashboard.launch import arguments, flags
from hsim.dashboard.state import Question, State, encode

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SIZE = {"width": 1280, "height": 900}
PATIENCE_MS = 240_000
PAGES = ("Answer", "What if", "Trade-offs", "Anatomy", "Risk", "Evidence")


@contextmanager
def server(command: Callable[[int, str], list[str]] = arguments) -> Iterator[str]:
    """A dashboard, or another page of Streamlit's, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(command(port, "127.0.0.1"), stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                urlopen(f"{url}/_stcore/health").close()
                break
            except URLError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


# Instants at which something is on the screen, by the page's own clock: who asks from outside waits until Plotly has drawn. `see` gives
# the first frame in which something holds, and what comes after it.
CLOCK = """
window.figures = () => [...document.querySelectorAll('[data-testid=stMetric]')].map(e => e.textContent);
window.said = words => [...document.querySelectorAll('[data-testid=stAlert]')].some(e => e.textContent.includes(words));
window.see = holds => new Promise(resolve => {
  const observer = new MutationObserver(() => {
    if (!holds()) return;
    observer.disconnect();
    requestAnimationFrame(() => setTimeout(() => resolve(performance.now())));
  });
  observer.observe(document, {subtree: true, childList: true, characterData: true});
});
window.painted = see(() => figures().length == 4 && /[≈±]/.test(figures()[1]));
addEventListener('keydown', () => { window.pressed_ms = performance.now(); }, true);
"""
WATCH_MOVE = """() => {
  const before = figures()[1];
  window.previewed = see(() => figures().length == 4 && /≈/.test(figures()[1]) && figures()[1] != before);
  window.simulated = previewed.then(() => see(() => said('so far, after')));
}"""


def opened(browser: Browser, address: str, dark: bool = False, script: str = "") -> Page:
    """A new visitor at an address. `script` runs before those of the page."""
    page = browser.new_context(viewport=SIZE, color_scheme="dark" if dark else "light").new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.add_init_script(script)
    page.goto(address)
    return page


def tiles(page: Page) -> list[str]:
    """What the four figures say."""
    return page.get_by_test_id("stMetric").all_inner_texts()


def wait_done(page: Page) -> None:
    """Wait until figures with intervals stand there and nothing is simulated any more."""
    expect(page.get_by_text("±").first).to_be_visible()
    expect(page.get_by_test_id("stProgress")).to_have_count(0)
    page.wait_for_timeout(700)


def check(what: str, holds: bool) -> None:
    """Say what was checked; end if it does not hold."""
    print(f"{'ok  ' if holds else 'FAIL'}  {what}", flush=True)
    if not holds:
        sys.exit(1)


def download(page: Page, label: str) -> bytes:
    """What a download button gives."""
    with page.expect_download() as started:
        page.get_by_test_id("stDownloadButton").get_by_role("button", name=label, exact=True).click()
    return Path(started.value.path()).read_bytes()


def first_paint(browser: Browser, url: str) -> None:
    """Seconds to the first figures, from a moved slider to its preview, and from there to a simulated path: as seen.

    Beside them those of a page that shows nothing but a figure: what Streamlit and the browser take on this machine.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write("import streamlit as st\nst.metric('A figure', 1)\n")
        script.flush()
        with server(lambda *where: [sys.executable, "-m", "streamlit", "run", script.name, *flags(*where)]) as bare:
            for visit in ("first", "second"):
                started = time.perf_counter()
                page = opened(browser, bare)
                page.get_by_test_id("stMetric").first.wait_for()
                print(f"      a page of one figure, {visit} visit: {time.perf_counter() - started:.2f} s", flush=True)
                page.context.close()
    page = opened(browser, url, script=CLOCK)
    told("first paint, the four figures", page.evaluate("painted"), 3.0)
    slider = page.get_by_test_id("stSidebar").get_by_role("slider").first
    page.wait_for_timeout(SETTLED_MS)
    for _ in range(MOVES):
        slider.focus()
        page.evaluate(WATCH_MOVE)
        slider.press("ArrowLeft")  # to the right this fleet is overloaded, and what it is to serve has no end
        told("preview after a slider moved", page.evaluate("previewed.then(at_ms => at_ms - pressed_ms)"), 0.5)
        told(
            "one simulated path after a slider moved", page.evaluate("simulated.then(at_ms => at_ms - pressed_ms)"), 2.0
        )
    page.context.close()


MOVES = 5
SETTLED_MS = 1500  # Plotly is loaded and has drawn: nobody moves a slider sooner


def told(what: str, took_ms: float, wanted_s: float) -> None:
    """Print how long something took, beside what is wanted of a machine that is not busy."""
    took_s = took_ms / 1000
    print(f"{'ok  ' if took_s < wanted_s else 'slow'}  {what}: {took_s:.2f} s (wanted: {wanted_s:g} s)", flush=True)


def main_path(browser: Browser, url: str) -> None:
    """Open, change the fleet, see numbers change, find a fleet, reopen the link, download."""
    page = opened(browser, f"{url}/?s={encode(State(replications=3))}")
    wait_done(page)
    before = tiles(page)
    check("four figures with intervals", len(before) == 4 and all("±" in tile for tile in before))
    check("a verdict in one sentence", page.get_by_test_id("stAlert").first.inner_text().startswith("PASS"))
    count = page.get_by_test_id("stSidebar").get_by_test_id("stNumberInput").nth(1).get_by_role("spinbutton")
    count.fill("2")
    count.press("Enter")
    page.wait_for_timeout(3000)
    wait_done(page)
    after = tiles(page)
    check(f"a second GPU server changes the numbers: {before[1]!r} to {after[1]!r}", before[1] != after[1])

    page.get_by_text("Share, reproduce, download").click()
    data = download(page, "JSON")
    again = opened(browser, page.url)
    wait_done(again)
    check("the address shows the same figures to another visitor", tiles(again) == after)
    again.get_by_text("Share, reproduce, download").click()
    check("and gives the same JSON, byte for byte", download(again, "JSON") == data)
    again.context.close()
    check("the JSON is the study", json.loads(data)["replications"] == 3)
    check("CSV", download(page, "CSV").startswith(b"figure,value,low,high"))
    check("Parquet", download(page, "Parquet")[:4] == b"PAR1")
    check("HTML", b"<!doctype html>" in download(page, "HTML")[:200].lower())
    yaml = download(page, "YAML")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scenario.yaml"
        file.write_bytes(yaml)
        line = [sys.executable, "-m", "hsim", "simulate", str(file), "--replications", "3", "--json"]
        printed = json.loads(subprocess.run(line, capture_output=True, check=True).stdout)
    same = [
        key
        for key, value in json.loads(data).items()
        if key not in ("scenario", "scenario_sha256") and printed[key] == value
    ]
    check(
        f"the YAML on the command line gives the same figures ({len(same)} parts)",
        {"energy", "latency", "slo"} <= set(same),
    )
    page.context.close()


def what_if(browser: Browser, url: str) -> None:
    """GPU-only against split in one click; and what the Answer advises, in another."""
    page = opened(browser, f"{url}/?s={encode(State(replications=3, page='What if'))}")
    page.get_by_role("button", name="GPU servers alone").click()
    expect(page.get_by_text("The change makes").first).to_be_visible()
    wait_done(page)
    said = page.get_by_text("The change makes").first.inner_text()
    check(f"what if: {said}", "energy a task" in said and "lower" in said)
    page.context.close()
    page = opened(browser, f"{url}/?s={encode(State(replications=3))}")
    wait_done(page)
    page.get_by_role("button", name="Try it").click()
    expect(page.get_by_text("The change makes").first).to_be_visible()
    check(f"the advice is tried: {page.get_by_text('The change makes').first.inner_text()}", True)
    page.context.close()


def find_fleet(browser: Browser, url: str) -> None:
    """The planner: its progress, stopped and gone on with, its answer again from the link; then with what is there."""
    question = Question("agents-split", "", ("workload.tasks=500",))
    page = opened(browser, f"{url}/?s={encode(State(question, replications=2))}")
    page.get_by_text("Find fleet, or use what I have").click()
    page.get_by_role("button", name="Find the fleet").click()
    expect(page.get_by_text("replications so far")).to_be_visible()
    check("the planner says where it is", True)
    page.get_by_role("button", name="Stop").last.click()
    expect(page.get_by_text("Stopped.").last).to_be_visible()
    page.get_by_role("button", name="Go on").last.click()
    expect(page.get_by_text("replications so far")).to_be_visible()
    check("a search is stopped, and goes on when asked to", True)
    taken = page.get_by_role("button", name="Take this fleet")
    expect(taken).to_be_visible(timeout=4 * PATIENCE_MS)
    said = page.get_by_text("USD an hour.").first.inner_text()
    check(f"found: {said[:140]}", "hgx-h100-8" in said)
    again = opened(browser, page.url)
    expect(again.get_by_role("button", name="Take this fleet")).to_be_visible()
    check("its link shows the same plan", again.get_by_text("USD an hour.").first.inner_text() == said)
    again.context.close()
    page.get_by_role("tab", name="Use what I have").click()
    page.get_by_role("button", name="Use these best").click()
    expect(taken).to_have_count(0)
    expect(taken).to_be_visible(timeout=4 * PATIENCE_MS)
    have = page.get_by_text("USD an hour.").first.inner_text()
    check(f"used best: {have[:140]}", "hgx-h100-8" in have)
    taken.click()
    expect(taken).to_have_count(0)
    tiers = page.get_by_test_id("stSidebar").get_by_test_id("stNumberInput").count()
    check("the fleet is taken over into the question", tiers >= 1)
    page.context.close()


def hostile(browser: Browser, url: str) -> None:
    """Uploads that mean harm get a message, and the page goes on."""
    page = opened(browser, f"{url}/?s={encode(State(replications=2))}")
    page.get_by_role("button", name="Upload a scenario").click()
    field = page.locator("input[type=file]")
    for what, data, said in (
        ("YAML bomb", b"a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "alias"),
        ("a path outside", b"model: ../../etc/passwd\n", "names a file"),
        ("wrong types", b"model: [1, 2]\n", "is [1, 2]"),
    ):
        field.set_input_files({"name": "x.yaml", "mimeType": "application/yaml", "buffer": data})
        expect(page.get_by_text(said).first).to_be_visible()
        check(f"upload, {what}: {page.get_by_text(said).first.inner_text()[:120]!r}", True)
    with tempfile.NamedTemporaryFile(suffix=".yaml") as large:
        large.truncate(100_000_000)
        field.set_input_files(large.name)
        expect(page.get_by_text("File must be").or_(page.get_by_text("exceed")).first).to_be_visible()
        check("upload, 100 MB: refused in the browser", True)
    page.context.close()
    page = opened(browser, f"{url}/?s={encode(State(Question('azure-conversation'), replications=2))}")
    expect(page.get_by_text("The trace is not shipped")).to_be_visible()
    check("a scenario without its trace says what to do", page.get_by_test_id("stException").count() == 0)
    field = page.get_by_test_id("stMainBlockContainer").locator("input[type=file]")
    for what, data, said in (
        ("a bomb of gzip", gzip.compress(b"0" * 100_000_000), "once it is unpacked"),
        ("no trace", b"root:x:0:0:root:/root:/bin/bash\n", "the trace:1"),
    ):
        field.set_input_files({"name": "../../etc/passwd.csv", "mimeType": "text/csv", "buffer": data})
        told_so = page.get_by_test_id("stAlert").filter(has_text=said).last
        expect(told_so).to_be_visible()
        check(f"trace, {what}: {told_so.inner_text()[:120]!r}", True)
    rows = "".join(f"{i / 4},{200 + i},40\n" for i in range(200))
    good = gzip.compress(f"arrival_s,input_tokens,output_tokens\n{rows}".encode())
    field.set_input_files({"name": "mine.csv.gz", "mimeType": "application/gzip", "buffer": good})
    expect(page.get_by_test_id("stMetric")).to_have_count(4)
    expect(page.get_by_text("Bottleneck.").first).to_be_visible()
    check("a trace is replayed", "trace arrivals" in page.get_by_test_id("stSidebar").inner_text())
    bad = opened(browser, f"{url}/?s=eJwDAAAAAAE")
    expect(bad.get_by_text("is not one that this dashboard made")).to_be_visible()
    check("a broken link gets a message", True)
    bad.context.close()
    page.context.close()


def screenshots(browser: Browser, url: str, folder: Path) -> None:
    """Every page, in a light and a dark room."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        variation = ("fleet.gpu-tier.count=2",) if name == "What if" else ()
        state = State(Question("agents-split", "", ("workload.tasks=1000",)), variation, 5, page=name)
        for dark in (False, True):
            page = opened(browser, f"{url}/?s={encode(state)}", dark)
            page.get_by_test_id("stSidebar").wait_for()
            page.wait_for_timeout(3000)
            expect(page.get_by_test_id("stProgress")).to_have_count(0)
            page.wait_for_timeout(2000)
            page.screenshot(path=folder / f"{name.lower().replace(' ', '-')}-{'dark' if dark else 'light'}.png")
            page.context.close()


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--screenshots", type=Path)
    parser.add_argument("--only", nargs="*", default=["first_paint", "main_path", "what_if", "find_fleet", "hostile"])
    asked = parser.parse_args()
    expect.set_options(timeout=PATIENCE_MS)
    with server() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=asked.chromium, args=FLAGS)
        for name in asked.only:
            print(name, flush=True)
            globals()[name](browser, url)
        if asked.screenshots:
            screenshots(browser, url, asked.screenshots)
        browser.close()


if __name__ == "__main__":
    main()
