"""A run as the JSON that `vllm bench serve --save-result --save-detailed` writes, key for key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hsim.description.scenario import ClosedArrivals, GammaArrivals, Scenario, TraceArrivals
from hsim.log import Log, Outcome, Stage
from hsim.metrics.summarise import hsim_version, scenario_hash
from hsim.units import MS_PER_S

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PERCENTILES = (90, 95, 99)
ERRORS = {
    Outcome.TIMED_OUT: "timed out",
    Outcome.SHED: "shed: the queue was full",
    Outcome.LOST: "lost: its device broke down",
}


@dataclass(frozen=True)
class _Requests:
    """Visits to the language model in order of their start; where prefill has a pool of its own, its visit and the next.

    Shapes (requests,). `gaps_s` holds each request's times between tokens; a failed request has none. `rough` counts
    requests that were preempted more than once, whose gaps between preemptions are not known from the log.
    """

    start_s: Floats
    first_token_s: Floats
    end_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    outcome: Ints
    gaps_s: list[Floats]
    rough: int


def vllm_bench(log: Log, scenario: Scenario) -> dict[str, Any]:
    """The result in vLLM's words. A request is a visit to the language model: a task has one in each round.

    Times between tokens are exact from the log's steps, but for requests that were preempted twice or more, which
    hsim_rough_itls counts. `date` is null, so that the same seed gives the same bytes.
    """
    requests = _requests(log)
    served = requests.outcome == Outcome.SERVED
    start_s, end_s = float(requests.start_s.min()), float(requests.end_s.max())
    duration_s = end_s - start_s
    outputs = np.where(served, requests.output_tokens, 0)
    latency_s = requests.end_s - requests.start_s
    ttft_s = requests.first_token_s - requests.start_s
    several = served & (outputs > 1)
    tpot_s = np.zeros(len(served))
    tpot_s[several] = (latency_s - ttft_s)[several] / (outputs[several] - 1)
    total_input, total_output = int(requests.input_tokens[served].sum()), int(outputs.sum())
    gaps_s = [gaps for gaps, kept in zip(requests.gaps_s, served, strict=True) if kept]
    samples = {
        "ttft": ttft_s[served],
        "tpot": tpot_s[several],
        "itl": np.concatenate(gaps_s) if gaps_s else np.empty(0),
        "e2el": latency_s[served],
    }
    return {
        **_heading(scenario, len(served), one_a_task=len(log.tasks) == len(served)),
        "duration": duration_s,
        "completed": int(served.sum()),
        "failed": int((~served).sum()),
        "total_input_tokens": total_input,
        "total_output_tokens": total_output,
        "request_throughput": int(served.sum()) / duration_s,
        "request_goodput": _goodput(scenario, served, ttft_s, tpot_s, duration_s),
        "output_throughput": total_output / duration_s,
        "total_token_throughput": (total_input + total_output) / duration_s,
        "input_lens": requests.input_tokens.tolist(),
        "output_lens": outputs.tolist(),
        "ttfts": np.where(served, ttft_s, 0.0).tolist(),
        "itls": [gaps.tolist() for gaps in requests.gaps_s],
        "latencies": np.where(served, latency_s, 0.0).tolist(),
        "start_times": requests.start_s.tolist(),
        "queue_times": [0.0] * len(served),
        "errors": [ERRORS.get(Outcome(int(outcome)), "") for outcome in requests.outcome],
        "max_output_tokens_per_s": _busiest_second(requests, served, start_s),
        "max_concurrent_requests": _most_at_once(requests.start_s[served], requests.end_s[served]),
        "rtfx": 0.0,
        **{key: value for name, values in samples.items() for key, value in _statistics(name, values)},
        "hsim_rough_itls": requests.rough,
    }


def _heading(scenario: Scenario, requests: int, one_a_task: bool) -> dict[str, Any]:
    arrivals = scenario.workload.arrivals
    rate: float | str | None = None  # of requests, which is that of tasks if each makes one
    if isinstance(arrivals, ClosedArrivals | TraceArrivals):
        rate = "inf"
    elif one_a_task:
        rate = arrivals.rate_per_s
    return {
        "date": None,
        "endpoint_type": "hsim",
        "backend": "hsim",
        "label": None,
        "model_id": scenario.model,
        "tokenizer_id": None,
        "num_prompts": requests,
        "hsim_version": hsim_version(),
        "hsim_scenario_sha256": scenario_hash(scenario),
        "hsim_seed": scenario.seed,
        "request_rate": rate,
        "burstiness": arrivals.burstiness if isinstance(arrivals, GammaArrivals) else 1.0,
        "max_concurrency": arrivals.users if isinstance(arrivals, ClosedArrivals) else None,
    }


def _statistics(name: str, values: Floats) -> Iterator[tuple[str, float]]:
    """Mean, median, standard deviation and percentiles in milliseconds; zeros for no values, as vLLM writes them."""
    values_ms = MS_PER_S * (values if len(values) else np.zeros(1))
    yield f"mean_{name}_ms", float(values_ms.mean())
    yield f"median_{name}_ms", float(np.median(values_ms))
    yield f"std_{name}_ms", float(values_ms.std())
    for p in PERCENTILES:
        yield f"p{p}_{name}_ms", float(np.percentile(values_ms, p))


def _goodput(scenario: Scenario, served: NDArray[np.bool_], ttft_s: Floats, tpot_s: Floats, duration_s: float) -> Any:
    """Requests per second that kept the objectives of single requests; None without one."""
    slo = scenario.slo
    if not slo.ttft and not slo.tpot:
        return None
    good = served.copy()
    good &= ~(ttft_s > slo.ttft.max_s) if slo.ttft else True
    good &= ~(tpot_s > slo.tpot.max_s) if slo.tpot else True
    return int(good.sum()) / duration_s


def _busiest_second(requests: _Requests, served: NDArray[np.bool_], start_s: float) -> float:
    """The most tokens in one of the seconds counted from the first start."""
    times_s = [
        first + np.concatenate([[0.0], np.cumsum(gaps)])
        for first, gaps, kept in zip(requests.first_token_s, requests.gaps_s, served, strict=True)
        if kept
    ]
    if not times_s:
        return 0.0
    return float(np.bincount((np.concatenate(times_s) - start_s).astype(np.int64)).max())


def _most_at_once(start_s: Floats, end_s: Floats) -> int:
    """The most requests under way at an instant; one that ends as another starts makes room for it."""
    times_s = np.concatenate([end_s, start_s])
    change = np.concatenate([np.full(len(end_s), -1), np.ones(len(start_s), dtype=np.int64)])
    return int(np.cumsum(change[np.lexsort((change, times_s))]).max(initial=0))


def _requests(log: Log) -> _Requests:
    tables = log.arrays()
    visits, tasks = tables["visits"], tables["tasks"]
    rows = np.flatnonzero(np.isin(visits["stage"], (Stage.PREFILL, Stage.GENERATE)))
    rows = rows[np.lexsort((visits["ready_s"][rows], visits["round"][rows], visits["task"][rows]))]
    begins = np.append(True, (np.diff(visits["task"][rows]) != 0) | (np.diff(visits["round"][rows]) != 0))
    firsts, lasts = rows[begins], rows[np.append(begins[1:], True)]
    outputs = np.add.reduceat(visits["output_tokens"][rows], np.flatnonzero(begins)).astype(np.int64)
    order = np.lexsort((visits["task"][firsts], visits["ready_s"][firsts]))
    firsts, lasts, outputs = firsts[order], lasts[order], outputs[order]
    outcome = visits["outcome"][lasts].astype(np.int64)
    # A client may give up between the two visits of a request; then the second is missing.
    half = (visits["stage"][lasts] == Stage.PREFILL) & (outcome == Outcome.SERVED)
    by_task = np.argsort(tasks["task"])
    ended = tasks["outcome"][by_task][np.searchsorted(tasks["task"][by_task], visits["task"][lasts])].astype(np.int64)
    outcome[half] = ended[half]
    gaps_s, rough = _gaps(tables, lasts, outputs, outcome == Outcome.SERVED)
    return _Requests(
        start_s=visits["ready_s"][firsts],
        first_token_s=visits["first_token_s"][firsts],
        end_s=visits["served_s"][lasts],
        input_tokens=visits["input_tokens"][firsts].astype(np.int64),
        output_tokens=outputs,
        outcome=outcome,
        gaps_s=gaps_s,
        rough=rough,
    )


def _gaps(tables: Any, lasts: Ints, outputs: Ints, served: NDArray[np.bool_]) -> tuple[list[Floats], int]:
    """Times between the tokens of each request, and how many of them are rough.

    From its first token on a sequence has one at each boundary of its replica, up to its last; but none from when it
    is preempted until its context is computed again. So its tokens are at the last boundaries before its end, or, if
    it was preempted, at those up to then and at the last.
    """
    visits, preemptions = tables["visits"], tables["preemptions"]
    boundaries = _boundaries(tables["steps"])
    lost: dict[tuple[float, float], list[float]] = {}
    for device, task, time_s in zip(*(preemptions[key] for key in ("device", "task", "time_s")), strict=True):
        lost.setdefault((device, task), []).append(time_s)
    gaps_s, rough = [], 0
    columns = (visits[key][lasts] for key in ("device", "task", "first_token_s", "served_s"))
    for device, task, first_s, end_s, tokens, kept in zip(*columns, outputs.tolist(), served, strict=True):
        if not kept or tokens < 2:
            gaps_s.append(np.empty(0))
            continue
        ends = boundaries[device]
        before = [t for t in lost.get((device, task), ()) if first_s < t < end_s]
        head = slice(0, 0)
        if before:
            head = slice(*np.searchsorted(ends, [first_s, before[0]], side="right").tolist())
            rough += len(before) > 1
        stop = int(np.searchsorted(ends, end_s, side="right"))
        tail = slice(stop - (tokens - 1 - len(ends[head])), stop)
        gaps_s.append(np.diff(np.concatenate([[first_s], ends[head], ends[tail]])))
    return gaps_s, rough


def _boundaries(steps: Any) -> dict[float, Floats]:
    """When each step of each device ended, in order."""
    counts = steps["steps"].astype(np.int64)
    rows = np.repeat(np.arange(len(counts)), counts)
    last = np.cumsum(counts) - 1
    number = np.arange(len(rows)) - np.repeat(last + 1 - counts, counts) + 1  # from 1 within each row
    seconds = number * (steps["seconds"][rows] + 0.5 * (number - 1) * steps["seconds_growth"][rows])
    ends = steps["start_s"][rows] + seconds
    ends[last] = steps["end_s"]
    return {device: ends[steps["device"][rows] == device] for device in np.unique(steps["device"])}
