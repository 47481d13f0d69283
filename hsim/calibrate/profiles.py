"""From points to profiles: what hardware_profiles/ files say of this machine, every figure with its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from hsim.backends.couriers import Manner
from hsim.calibrate import fit
from hsim.calibrate.agenda import HAND_OVER, Served, Target, one_layer
from hsim.calibrate.bench import Facts
from hsim.calibrate.machine import Machine
from hsim.calibrate.options import HeldOut, Law
from hsim.calibrate.page import Fitted, contention_figures, fitted_figure, line_over, section, step_figures
from hsim.calibrate.points import Point
from hsim.calibrate.steptable import TableName, between_steps, fit_steps, shape_of
from hsim.calibrate.work import CAPPED
from hsim.costs.composed import ELEMENT_BYTES, ComposedCosts, Placement, working_precision
from hsim.description.catalogue import load_model
from hsim.description.hardware import AcceleratorProfile, EngineProfile, Precision, StepTable
from hsim.description.system import Figures
from hsim.description.yamlfile import Document, validated
from hsim.units import GB

Profile = dict[str, Any]
LARGE_BYTES = 1 << 24  # a copy this large does not fit beside its source in a core's own cache
FEWEST_FOR_KNEE = 6  # sizes of an operation
PAYS = 1.25  # how many times smaller the held-out error must be for each coefficient more
# What a calibration aims at: a kind of law, how the names of its laws begin, and the mean error on points held out.
AIMS = (
    ("compute kernels", ("products", "decode attention", "prefill attention", "routed experts"), 0.08),
    ("CPU stages", ("operation ",), 0.15),
)
NO_PRICE = "calibrate cannot know what this machine costs"
NO_WALL_METER = "calibrate reads no meter at the wall: fans, memory, network and the supply's loss are unknown"


Predict = Callable[[fit.Array, Point], float]


@dataclass
class Findings:
    """What fitting brought to light: laws with their errors, profiles by name, and what could not be had."""

    machine: Machine
    name: str
    laws: list[Law] = field(default_factory=list)
    profiles: dict[str, Profile] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    fits: list[Fitted] = field(default_factory=list)
    drawn: dict[str, list[str]] = field(default_factory=dict)

    def keep(
        self, law: Law, points: Sequence[Point], curve: fit.Array | None, predict: Predict, across: str = ""
    ) -> None:
        """Keep a fitted law with its points for the report; `across` is the parameter that it is a curve of, if of one."""
        if curve is None:
            return
        line: tuple[tuple[float, float], ...] = ()
        if across:
            places = line_over([point.number(across) for point in points])
            like = points[0]
            line = tuple((x, predict(curve, replace(like, parameters={**like.parameters, across: x}))) for x in places)
        predicted = tuple(predict(curve, point) for point in points)
        unit = "W" if points[0].kind == "power" else "s"
        self.fits.append(Fitted(law.name, tuple(points), predicted, unit, across, line))

    def source(self, device: str, what: str) -> str:
        """Where a figure comes from."""
        return f"{what}; {self.machine.told(device)}, calibration/{self.name}"

    def unknown(self, figure: str, reason: str) -> Profile:
        """A null figure, remembered with its reason."""
        self.unavailable[figure] = reason
        return {"value": None, "tier": "measured", "source": reason}

    def tested(self, law: Law) -> str:
        """A law's errors in words, for sources; it is recorded too."""
        self.laws.append(law)
        if law.median_error is None or law.p90_error is None:
            return law.method
        return f"errs {law.median_error:.1%} (p90 {law.p90_error:.1%}) on {law.method}"


def known(value: float, tier: str, source: str) -> Profile:
    """A figure as a profile has it, to six digits."""
    return {"value": float(f"{value:.6g}"), "tier": tier, "source": source}


def of(points: Sequence[Point], kind: str, **at: str) -> list[Point]:
    """The points of a kind, with the given parameters."""
    return [p for p in points if p.kind == kind and all(str(p.parameters.get(k)) == v for k, v in at.items())]


# ---- kernels of an accelerator


def kernels(points: Sequence[Point], target: Target, findings: Findings) -> Profile | None:
    """Peaks, bandwidth and kernel laws of a device; None where too little was measured for any."""
    served, device = target.served, target.device
    bandwidth = _bandwidth(points)
    peaks = {p: peak for p in target.precisions if (peak := _peak(of(points, "gemm", dtype=p)))}
    working = working_precision(served.precision)
    if bandwidth is None or working not in peaks:
        findings.laws.append(Law(f"kernels of {device}", 0, 0, None, None, "not fitted: too little was measured"))
        return None
    source = partial(findings.source, device)
    gemm = {p: law for p in peaks if (law := _gemm_law(points, p, (bandwidth, peaks[p]), device, findings))}
    decode = _decode_law(of(points, "decode-attention", dtype=working), working, bandwidth, device, findings)
    if served.precision not in gemm or decode is None:
        return None
    kv_element_s = ELEMENT_BYTES[working] / (decode["bandwidth_fraction"]["value"] * bandwidth)
    prompts = of(points, "prefill-attention", dtype=working)
    prefill = _prefill_law(prompts, peaks[working], kv_element_s, device, findings)
    if prefill is None:
        return None
    return {
        "memory_bytes_per_s": known(
            bandwidth, "measured", source("the most bytes per second of any product or large copy")
        ),
        "peak_flops_per_s": {
            p: known(
                peaks[p], "measured", source("the most FLOP/s of any product: a measured maximum, not the maker's peak")
            )
            for p in gemm
        },
        "kernels": {
            "overlap_factor": known(
                1.0, "assumed", "kernels are taken to run one after another, as hsim's decoder runs them"
            ),
            "gemm": gemm,
            "decode_attention": decode,
            "prefill_attention": prefill,
            **_experts(points, served.precision, (bandwidth, peaks[working]), device, findings),
            **_all_reduce(points, device, findings),
        },
    }


def _experts(
    points: Sequence[Point], precision: Precision, peaks: tuple[float, float], device: str, findings: Findings
) -> Profile:
    """ExpertsLaw where experts were measured: as a product of the touched experts' weights, launches and all."""
    mine = of(points, "experts", dtype=precision)
    bandwidth, peak = peaks

    def at_peaks(point: Point) -> tuple[float, float]:
        m, count, each = (point.number(name) for name in ("tokens", "experts", "per_token"))
        matrices = 3.0 * point.number("hidden") * point.number("width")
        touched = count * (1 - (1 - each / count) ** m)
        moved = touched * matrices + m * each * (2.0 * point.number("hidden") + 3.0 * point.number("width"))
        return moved * ELEMENT_BYTES[precision] / bandwidth, 2.0 * matrices * m * each / peak

    if not mine:
        return {}
    forms = (_two_sided(at_peaks),)
    figures = _best_form(f"routed experts in {precision} on {device}", mine, forms, device, findings)
    if figures is None:
        return {}
    why = "taken into the law's launch and fractions; routes were drawn evenly"
    others = {"per_expert_s": 0.0, "per_element_s": 0.0, "padding_tokens": 0.0, "imbalance": 1.0, "sharpness": 4.0}
    return {"experts": {precision: figures | {key: known(value, "assumed", why) for key, value in others.items()}}}


def _all_reduce(points: Sequence[Point], device: str, findings: Findings) -> Profile:
    """AllReduceLaw where several devices were measured together."""
    mine = of(points, "all-reduce")

    def terms(point: Point) -> tuple[float, ...]:
        n = point.number("devices")
        return 1.0, n - 1, 2 * (n - 1) / n * point.number("bytes")

    if not mine:
        return {}
    fitted, predicted = fit.fit_sum(terms, (0.0, 0.0, 0.0))
    law, test = fit.tested(f"all-reduce from {device}", mine, 4, fitted, predicted)
    findings.keep(test, mine, law, predicted)
    source = findings.source(device, f"all-reduce: {findings.tested(test)}")
    if law is None or not law[2]:
        return {}
    names, found = (
        ("launch_s", "per_peer_s", "bytes_per_s"),
        _bounds(fit.used_of(mine, 4), predicted, law, (0.0, 0.0, 0.0)),
    )
    return {"all_reduce": _figures(names, law, source, found, lambda x: np.array([*x[:2], 1.0 / x[2]]))}


def whole_layers(points: Sequence[Point], target: Target, made: tuple[Profile, Profile], findings: Findings) -> None:
    """A cross-check that fits nothing: whole layers against what the laws of chip and engine have for them."""
    mine, chip, engine = of(points, "layer"), *made
    if not mine:
        return
    costs = {}
    for name in {str(point.parameters["model"]) for point in mine}:
        whole = target.served.model if name == target.served.model.name else load_model(name, "calibrate", Path())
        costs[name] = composed(replace(target.served, model=one_layer(whole)), chip, engine)

    def predicted(_: fit.Array, point: Point) -> float:
        return costs[str(point.parameters["model"])].segment(shape_of(point)).seconds

    nothing = np.empty(0)
    errors = [abs(predicted(nothing, point) / point.seconds - 1) for point in mine]
    noisy = sum(bool(point.marks) for point in mine)
    law = fit.law_of(f"whole layers on {target.device}", len(mine), noisy, errors, "kernels added up, nothing fitted")
    findings.laws.append(law)
    findings.keep(law, mine, nothing, predicted)


def _bandwidth(points: Sequence[Point]) -> float | None:
    copies = [2 * p.number("bytes") / p.seconds for p in of(points, "memory-copy") if p.number("bytes") >= LARGE_BYTES]
    products = [_product_bytes(p) / p.seconds for p in of(points, "gemm")]
    return max([*copies, *products], default=None)


def _product_bytes(point: Point) -> float:
    precision: Precision = point.parameters["dtype"]  # type: ignore[assignment]  # the agenda writes no other
    return fit.gemm_bytes(point, ELEMENT_BYTES[precision], ELEMENT_BYTES[working_precision(precision)])


def _peak(points: Sequence[Point]) -> float | None:
    return max((fit.gemm_flops(p) / p.seconds for p in points), default=None)


@dataclass(frozen=True)
class _Form:
    """A way to write a law: its coefficients' names in a profile, how they are fitted and predict, the least that each may
    be, how profiles have them where that differs, and figures that go with them.
    """

    names: tuple[str, ...]
    fitted: Callable[[Sequence[Point]], fit.Array]
    predict: Predict
    least: tuple[float, ...]
    shown: Callable[[fit.Array], fit.Array] = np.asarray
    more: Profile = field(default_factory=dict)


def _best_form(
    name: str, points: Sequence[Point], forms: Sequence[_Form], device: str, findings: Findings
) -> Profile | None:
    """The figures of whichever form errs least on points held out; one more coefficient than the first form's must pay."""
    fewest = 4

    def error(number: int, test: Law) -> float:
        mean = float(np.mean(test.errors)) if test.errors else np.inf
        return mean * float(PAYS ** (len(forms[number].names) - len(forms[0].names)))

    ways = [fit.Way(fewest, form.fitted, form.predict) for form in forms]
    number, law, test = fit.chosen(name, points, ways, error)
    form = forms[number]
    findings.keep(test, points, law, form.predict)
    source = findings.source(device, f"{name}: {findings.tested(test)}")
    bounds = _bounds(fit.used_of(points, fewest), form.predict, law, form.least)
    figures = _figures(form.names, law, source, bounds, form.shown)
    return None if figures is None else figures | form.more


def _sum_form(
    names: tuple[str, ...],
    terms: Callable[[Point], Sequence[float]],
    least: tuple[float, ...],
    shown: Callable[[fit.Array], fit.Array],
    explained_s: Callable[[Point], float] = lambda point: 0.0,
) -> _Form:
    """A form that is a sum of coefficients times terms."""
    return _Form(names, *fit.fit_sum(terms, least, explained_s), least, shown)


def _gemm_law(
    points: Sequence[Point], precision: Precision, peaks: tuple[float, float], device: str, findings: Findings
) -> Profile | None:
    """GemmLaw, in two forms: bytes and FLOPs at the same time, as on accelerators; or one after the other, with weights that
    are first laid out anew where there are several rows, as products on cores are.
    """
    bandwidth, peak = peaks

    def at_peaks(point: Point) -> tuple[float, float]:
        return _product_bytes(point) / bandwidth, fit.gemm_flops(point) / peak

    def terms(point: Point) -> tuple[float, ...]:
        packed = point.number("n") * point.number("k") if point.number("m") > 1 else 0.0
        return 1.0, *at_peaks(point), packed

    names = ("launch_s", "bandwidth_fraction", "flops_fraction")
    in_turn = _sum_form(
        (*names, "per_packed_weight_s"), terms, (0.0, 1.0, 1.0, 0.0), lambda x: np.array([x[0], *(1.0 / x[1:3]), x[3]])
    )
    sharp = {"sharpness": known(1.0, "assumed", "bytes and FLOPs follow one another: that form erred less")}
    mine = of(points, "gemm", dtype=precision)
    forms = (_two_sided(at_peaks), replace(in_turn, more=sharp))
    return _best_form(f"products in {precision} on {device}", mine, forms, device, findings)


def _two_sided(at_peaks: Callable[[Point], tuple[float, float]]) -> _Form:
    """Launch, and the larger of bytes and FLOPs; `at_peaks` are the seconds that a point's bytes and FLOPs take at the peaks.

    It is fitted as launch and reciprocals of the two fractions, which are at least 1.
    """

    def fitted(some: Sequence[Point]) -> fit.Array:
        bytes_s, flops_s = np.array([at_peaks(p) for p in some]).T
        return _reciprocal(fit.fit_gemm(bytes_s, flops_s, np.array([p.seconds for p in some])))

    def predicted(law: fit.Array, point: Point) -> float:
        return fit.gemm_seconds(_reciprocal(law), *at_peaks(point))

    names = ("launch_s", "bandwidth_fraction", "flops_fraction")
    return _Form(names, fitted, predicted, (0.0, 1.0, 1.0), _reciprocal)


def _reciprocal(law: fit.Array) -> fit.Array:
    """Launch as it is, the rest one over."""
    return np.array([law[0], *(1.0 / law[1:])])


def _bounds(
    points: Sequence[Point], predict: Predict, law: fit.Array | None, least: Sequence[float]
) -> tuple[fit.Array, fit.Array] | None:
    """Bounds of a law, if there is one, by the points that it was fitted to."""
    return None if law is None else fit.bounds(points, predict, law, np.array(least))


def _figures(
    names: Sequence[str],
    law: fit.Array | None,
    source: str,
    bounds: tuple[fit.Array, fit.Array] | None,
    shown: Callable[[fit.Array], fit.Array] = np.asarray,
) -> Profile | None:
    """A law's coefficients as figures (as they are `shown`, where profiles have others), with bounds where there are any."""
    if law is None:
        return None
    figures = {name: known(value, "fitted", source) for name, value in zip(names, shown(law), strict=True)}
    with np.errstate(
        divide="ignore"
    ):  # one over nothing: such a coefficient is bounded on one side only, and is left so
        ends = [shown(end) for end in bounds] if bounds else []
    for name, *pair in zip(names, *ends, strict=True) if ends else ():
        value, (low, high) = figures[name]["value"], (float(f"{end:.6g}") for end in sorted(pair))
        if np.isfinite(high):
            figures[name] |= {"low": min(low, value), "high": max(high, value)}
    return figures


def _decode_law(
    points: Sequence[Point], precision: Precision, bandwidth: float, device: str, findings: Findings
) -> Profile | None:
    """DecodeAttentionLaw, with and without a cost of each score beside its bytes."""
    names = ("launch_s", "per_element_s", "per_sequence_s", "bandwidth_fraction")
    least = (0.0, 0.0, 0.0, 1.0 / bandwidth)

    def terms(point: Point) -> tuple[float, ...]:
        return fit.decode_attention_terms(point, ELEMENT_BYTES[precision])

    def scored(point: Point) -> tuple[float, ...]:
        return *terms(point), point.number("batch") * point.number("heads") * point.number("context")

    def shown(law: fit.Array) -> fit.Array:
        return np.array([*law[:3], 1.0 / (law[3] * bandwidth), *law[4:]])

    forms = (_sum_form(names, terms, least, shown), _sum_form((*names, "per_score_s"), scored, (*least, 0.0), shown))
    return _best_form(f"decode attention on {device}", points, forms, device, findings)


def _prefill_law(
    points: Sequence[Point], peak: float, kv_element_s: float, device: str, findings: Findings
) -> Profile | None:
    """PrefillAttentionLaw, which reads keys and values at the rate of decode attention."""

    def reading_s(point: Point) -> float:
        return fit.kv_bytes(point, point.number("tokens"), kv_element_s)

    def shown(law: fit.Array) -> fit.Array:
        return np.array([law[0], 1.0 / (law[1] * peak), law[2]])

    names, least = ("launch_s", "flops_fraction", "per_element_s"), (0.0, 1.0 / peak, 0.0)
    forms = (_sum_form(names, fit.prefill_attention_terms, least, shown, reading_s),)
    return _best_form(f"prefill attention on {device}", points, forms, device, findings)


# ---- watts of an accelerator


def core_power() -> Profile:
    """AcceleratorPower of cores of the CPU: nothing of its own, because the CPU profile counts their watts."""
    nothing = known(0.0, "assumed", "the device is cores of the CPU: their watts are counted with the CPU's")
    names = (
        "idle_w",
        "loaded_idle_w",
        "floor_w",
        "cap_w",
        "joules_per_byte",
        "joules_per_flop",
        "joules_per_output_token",
    )
    return dict.fromkeys(names, nothing)


def board_power(points: Sequence[Point], target: Target, facts: Facts, findings: Findings, why_not: str) -> Profile:
    """AcceleratorPower of a board with a meter; null figures with the reason where there is none."""
    device, source = target.device, partial(findings.source, target.device)
    names = ("floor_w", "joules_per_byte", "joules_per_flop", "joules_per_output_token")
    idle = {str(p.parameters["state"]): p.watts for p in of(points, "idle")}
    power: Profile = {
        f"{prefix}idle_w": known(watts, "measured", source(f"energy counter over a window, {state}"))
        if (watts := idle.get(state)) is not None
        else findings.unknown(f"{device} {prefix}idle_w", why_not or "its meter gave no figure: see failed in fit.json")
        for state, prefix in (("bare", ""), ("loaded", "loaded_"))
    }
    limit_w = facts.power_limit_w
    power["cap_w"] = (
        known(limit_w, "measured", source("the enforced power limit that NVML reports"))
        if limit_w is not None
        else findings.unknown(f"{device} cap_w", why_not or "NVML does not tell it")
    )
    free = [p for p in of(points, "power") if CAPPED not in p.notes]
    work = _work_per_call(target.served)
    powers = [
        replace(p, seconds=p.watts) for p in free if p.watts
    ]  # the law is of watts: it takes the place of seconds
    rates = {p.name: [1.0, *(amount / p.seconds for amount in work(p))] for p in free}
    least = (idle.get("loaded") or 0.0, 0.0, 0.0, 0.0)
    fitted, predicted = fit.fit_sum(lambda p: rates[p.name], least)
    law, test = fit.tested(f"watts of {device}", powers, 5, fitted, predicted)
    findings.keep(test, powers, law, predicted)
    said = source(f"energy counter: {findings.tested(test)}")
    figures = _figures(names, law, said, _bounds(fit.used_of(powers, 5), predicted, law, least)) if powers else None
    return power | (figures or {name: findings.unknown(f"{device} {name}", why_not or test.method) for name in names})


def _work_per_call(served: Served) -> Any:
    """Bytes, FLOPs and output tokens of one call of a power point, counted as the cost model counts them."""
    counters = [_step_work(served, name) for name in ("joules_per_byte", "joules_per_flop", "joules_per_output_token")]

    def work(point: Point) -> tuple[float, float, float]:
        if point.parameters["of"] == "gemm":
            return _product_bytes(point), fit.gemm_flops(point), 0.0
        if point.parameters["of"] == "memory-copy":
            return 2 * point.number("bytes"), 0.0, 0.0
        bytes_moved, flops, tokens = (costs.segment(shape_of(point)).joules for costs in counters)
        return bytes_moved, flops, tokens

    return work


def _step_work(served: Served, name: str) -> ComposedCosts:
    """Composed costs of a chip on which one unit of `name` is a joule and nothing else takes any."""
    one = {"value": 1.0, "tier": "assumed", "source": "to count"}
    nothing = one | {"value": 0.0}
    power = dict.fromkeys(("idle_w", "loaded_idle_w", "floor_w", "joules_per_byte", "joules_per_flop"), nothing)
    power |= {"joules_per_output_token": nothing, "cap_w": one | {"value": 1e100}, name: one}
    law = {"launch_s": one, "bandwidth_fraction": one, "flops_fraction": one}
    chip = {
        "name": "counter", "kind": "accelerator", "memory_bytes": one, "memory_bytes_per_s": one,
        "peak_flops_per_s": {working_precision(served.precision): one, served.precision: one}, "power": power,
        "kernels": {
            "overlap_factor": one, "gemm": {served.precision: law},
            "decode_attention": {"launch_s": one, "per_element_s": one, "per_sequence_s": one, "bandwidth_fraction": one},
            "prefill_attention": {"launch_s": one, "flops_fraction": one, "per_element_s": one},
        },
    }  # fmt: skip
    return composed(served, chip, _engine(served, "counter", dict.fromkeys(_HOST, nothing)))


def composed(served: Served, chip: Profile, engine: Profile) -> ComposedCosts:
    """Composed costs of a served model on a chip and an engine that are still in the making."""
    profile = validated(Document(chip["name"], chip), AcceleratorProfile)
    host = validated(Document(engine["name"], engine), EngineProfile)
    return ComposedCosts(Placement(served.model, profile, host, 1, served.precision), Figures({}))


# ---- the engine: hsim's own decoder

_HOST = (
    "host_s_per_layer",
    "host_s_per_layer_and_sequence",
    "host_s_per_sequence",
    "reserved_bytes",
    "host_cores_per_replica",
    "host_cores_per_accelerator",
)


def _engine(served: Served, name: str, figures: Mapping[str, Profile]) -> Profile:
    return {
        "name": name,
        "kind": "engine",
        "description": "hsim's own decoder",
        "max_num_seqs": served.slots,
        "max_num_batched_tokens": served.max_num_batched_tokens,
        "gpu_memory_utilization": 0.5,
        "block_tokens": 16,
        "prefix_caching": False,
        "defaults_source": "the limits with which its steps were measured",
        **figures,
    }


def engine(points: Sequence[Point], target: Target, chip: Profile, cores: int, findings: Findings) -> Profile:
    """The engine profile of hsim's decoder on a chip: the host time that kernel laws leave unexplained, and its table."""
    served, device, name = target.served, target.device, f"hsim-decoder-{chip['name']}"
    zero = known(0.0, "assumed", "to be fitted")
    bare = composed(served, chip, _engine(served, name, dict.fromkeys(_HOST, zero)))
    decodes = of(points, "step", role="decode")

    def each_layer(point: Point) -> tuple[float, float]:
        return float(served.model.layers), float(served.model.layers * shape_of(point).sequences)

    def fitted(some: Sequence[Point]) -> fit.Array:
        # What is left of a step after its kernels is the host's: in each layer so much, and so much for each sequence, since the
        # decoder attends unlike contexts one after another there. Never negative.
        columns = np.array([each_layer(p) for p in some])
        kernels_s = np.array([bare.segment(shape_of(p)).seconds for p in some])
        return fit.relative_nonnegative(columns, np.array([p.seconds for p in some]), explained_s=kernels_s)

    def predicted(host: fit.Array, point: Point) -> float:
        return bare.segment(shape_of(point)).seconds + float(host @ each_layer(point))

    law, test = fit.tested(f"composed decode steps on {device}", decodes, 4, fitted, predicted)
    findings.keep(test, decodes, law, predicted)
    source = findings.source(device, f"decode steps less composed kernels: {findings.tested(test)}")
    host = _figures(_HOST[:2], law, source, _bounds(fit.used_of(decodes, 4), predicted, law, (0.0, 0.0))) or {
        n: findings.unknown(f"{name} {n}", test.method) for n in _HOST[:2]
    }
    on_cpu = target.kind == "cpu"
    reserved = known(GB, "assumed", "torch itself and what its kernels put aside while they run")
    replica = known(
        cores, "assumed", "the cores that the decoder runs on" if on_cpu else "one process launches all kernels"
    )
    accelerator = known(0.0, "assumed", "none beside those of the replica")
    sequence = known(0.0, "assumed", "what a sequence takes is counted in each layer")
    rest = dict(zip(_HOST[2:], (sequence, reserved, replica, accelerator), strict=True))
    return _engine(served, name, host | rest)


def with_the_loop(engine: Profile, points: Sequence[Point], target: Target, findings: Findings) -> Profile:
    """The engine with what passes between steps in the live loop, for models whose steps are not in a table."""
    if not (loops := of(points, "loop")):
        return engine
    step_s, sequence_s = between_steps(loops)
    source = findings.source(target.device, "between two steps in the live loop")
    own = {"host_s_per_step": step_s, "host_s_per_sequence": sequence_s}
    return engine | {name: known(seconds, "measured", source) for name, seconds in own.items()}


def step_table(points: Sequence[Point], target: Target, names: tuple[str, str], findings: Findings) -> StepTable | None:
    """The measured steps of an engine on a chip (their names); None where too few were measured."""
    engine_name, chip_name = names
    source = findings.source(target.device, "means of repeated steps, in bursts on a CPU")
    name = TableName(f"steps-{target.served.model.name}-{chip_name}", engine_name, chip_name, source)
    table, law = fit_steps(of(points, "step"), target.served, name, of(points, "loop"))
    findings.laws.append(law)
    if table is not None:
        findings.drawn[f"Decoder steps on {target.device}"] = step_figures(table, of(points, "step"))
    return table


# ---- CPU, server, links


def cpu(points: Sequence[Point], units: Mapping[str, str], findings: Findings, why_not: str) -> Profile:
    """The CPU profile: all cores of the machine as one socket, and what its operations cost."""
    machine, source = findings.machine, partial(findings.source, "cpu")
    copies = [p for p in of(points, "memory-copy") if p.device == "cpu" and p.number("bytes") >= LARGE_BYTES]
    rate = max((2 * p.number("bytes") / p.seconds for p in copies), default=None)
    operations = {name: law for name, unit in units.items() if (law := _operation(points, name, unit, findings))}
    findings.extra["contention"] = contention(points)
    findings.drawn["Cores that work at the same time"] = contention_figures(findings.extra["contention"])
    return {
        "name": f"{findings.name}-cpu",
        "kind": "cpu",
        "description": f"{machine.cpu}, its {machine.cores} cores taken as one socket",
        "cores": machine.cores,
        **_package_power(points, findings, why_not),
        "memory_bytes_per_s": findings.unknown("memory_bytes_per_s", "no copy was measured")
        if rate is None
        else known(rate, "measured", source("large copies by the decoder's cores, bytes read and written")),
        "contention_slowdown": _slowdown(points, findings),
        **_hand_over(points, findings),
        "operations": operations,
    }


def _hand_over(points: Sequence[Point], findings: Findings) -> Profile:
    """What a job takes in hsim's live loop beyond its own seconds, bounded by how it differed; nothing where not measured."""
    seconds = [p.seconds for p in of(points, "loop", role=HAND_OVER)]
    if not seconds:
        return {}
    what = "a job in hsim's own live loop less what its worker took, with one user and with several"
    figure = known(float(np.mean(seconds)), "measured", findings.source("cpu", what))
    return {"hand_over_s": figure | {"low": min(figure["value"], *seconds), "high": max(figure["value"], *seconds)}}


def _operation(points: Sequence[Point], name: str, unit: str, findings: Findings) -> Profile | None:
    """Base and cost per unit, and per unit squared for what has attention in it."""
    mine = of(points, "operation", name=name, workers="1")
    forms = [("per_unit_squared_s", 0.0)] if name.startswith("encode") else [("", 0.0), *_knees(mine)]
    ways = [_operation_way(*form) for form in forms]
    number, law, test = fit.chosen(f"operation {name}", mine, ways, lambda i, test: _knee_pays(forms[i], test))
    form, predicted = forms[number], ways[number].predict
    if law is None:
        return None
    findings.keep(test, mine, law, predicted, "units")
    sizes = [int(p.number("units")) for p in mine]
    source = findings.source("cpu", f"{min(sizes)} to {max(sizes)} units on one core: {findings.tested(test)}")
    names = ("base_s", "per_unit_s", *filter(None, form[:1]))
    figures = _figures(names, law, source, _bounds(fit.used_of(mine, len(law)), predicted, law, [0.0] * len(law)))
    assert figures is not None
    knee = {"knee_units": form[1]} if form[1] else {}
    return {"unit": unit, **figures, **knee, **_own_contention(points, name, findings)}


def _own_contention(points: Sequence[Point], name: str, findings: Findings) -> Profile:
    """How many times longer the operation takes by busy cores: never less than alone, and never falling."""
    mine = of(points, "contention", name=name)
    slower = contention(mine).get(name)
    if not slower:
        return {}
    source = findings.source("cpu", "the operation on so many cores at once against one alone")
    off = float(np.median([p.spread for p in mine])) / np.sqrt(2)  # of a ratio of two means: half the range of each
    times = fit.rising([max(1.0, x) for x in slower.values()])
    figures = {n: known(x, "measured", source) for n, x in zip(slower, times, strict=True)}
    for figure in figures.values():
        value = figure["value"]
        figure |= {"low": max(1.0, value * (1 - off)), "high": value * (1 + off)}
    return {"contention_slowdown": figures}


def _knees(points: Sequence[Point]) -> list[tuple[str, float]]:
    """Where a second slope may begin: at any size that leaves two on either side."""
    sizes = sorted({point.number("units") for point in points})
    return [("per_unit_beyond_s", size) for size in sizes[1:-2]] if len(sizes) >= FEWEST_FOR_KNEE else []


def _knee_pays(form: tuple[str, float], test: Law) -> float:
    """A form's held-out error; that of a second slope counts twice, so that it must halve it."""
    error = np.inf if test.median_error is None else test.median_error
    return float(2.0 * error if form[1] else error)


def _operation_way(third: str, knee: float) -> fit.Way:
    """A way to write an operation's law, with or without a third term."""

    def terms(point: Point) -> tuple[float, ...]:
        n = point.number("units")
        return (1.0, n, *((n * n,) if third == "per_unit_squared_s" else (max(0.0, n - knee),) if knee else ()))

    width = 3 if third else 2
    return fit.Way(width, *fit.fit_sum(terms, [0.0] * width))


def contention(points: Sequence[Point]) -> dict[str, dict[str, float]]:
    """How many times longer an operation takes when so many cores do it at the same time, by operation and cores."""
    alone = {(p.parameters["name"], p.parameters["units"]): p.seconds for p in of(points, "contention", workers="1")}
    slower: dict[str, dict[str, float]] = {}
    for point in of(points, "contention"):
        key = (point.parameters["name"], point.parameters["units"])
        if point.number("workers") > 1 and key in alone:
            slower.setdefault(str(key[0]), {})[str(point.parameters["workers"])] = round(point.seconds / alone[key], 4)
    return {name: dict(sorted(by_cores.items(), key=lambda item: int(item[0]))) for name, by_cores in slower.items()}


def _slowdown(points: Sequence[Point], findings: Findings) -> Profile:
    """How many times longer an operation takes with all cores busy: the median over operations."""
    cores = findings.machine.cores
    full = [slower[str(cores)] for slower in contention(points).values() if str(cores) in slower]
    if not full:
        return known(
            1.0, "assumed", "not measured: one core's time is taken for all" if cores > 1 else "there is one core"
        )
    source = findings.source(
        "cpu", f"the same operation on all {cores} cores at once against one alone, {len(full)} operations"
    )
    slowdown = max(1.0, float(np.median(full)))
    return known(slowdown, "measured", source) | {"low": max(1.0, min(full)), "high": max(slowdown, *full)}


def _package_power(points: Sequence[Point], findings: Findings, why_not: str) -> Profile:
    watts = {int(p.number("busy")): p.watts for p in of(points, "cpu-power") if p.watts is not None}
    cores, names = findings.machine.cores, ("idle_w", "max_w", "load_power_exponent")
    between = [busy for busy in watts if 0 < busy < cores]
    if not {0, cores} <= watts.keys() or watts[cores] <= watts[0]:
        reason = why_not or "the package was not measured idle and with all cores busy, with more watts busy than idle"
        return {name: findings.unknown(f"cpu {name}", reason) for name in names}
    source = findings.source("cpu", "RAPL packages together, idle and with cores busy with products")
    power = {"idle_w": known(watts[0], "measured", source), "max_w": known(watts[cores], "measured", source)}
    shares = [(busy / cores, (watts[busy] - watts[0]) / (watts[cores] - watts[0])) for busy in between]
    exponents = [float(np.log(share) / np.log(load)) for load, share in shares if share > 0]
    if not exponents:
        return power | {
            names[2]: findings.unknown("cpu load_power_exponent", "no level between idle and full was measured")
        }
    return power | {names[2]: known(float(np.median(exponents)), "fitted", source)}


def server(name: str, chip: Profile, count: int, findings: Findings) -> Profile:
    """The server profile: this machine with so many of the chip."""
    memory = findings.machine.memory_bytes
    return {
        "name": name,
        "kind": "server",
        "description": f"the machine that was calibrated, with {count} x {chip['name']}",
        "cpu": f"{findings.name}-cpu",
        "sockets": 1,
        "accelerators": {"chip": chip["name"], "count": count},
        "memory_bytes": findings.unknown(f"{name} memory_bytes", "the system does not tell")
        if memory is None
        else known(memory, "measured", findings.source("cpu", "as the system reports it")),
        "base_w": findings.unknown(f"{name} base_w", NO_WALL_METER),
        "psu_efficiency": findings.unknown(f"{name} psu_efficiency", NO_WALL_METER),
        "rent_usd_per_h": findings.unknown(f"{name} rent_usd_per_h", NO_PRICE),
        "capex_usd": findings.unknown(f"{name} capex_usd", NO_PRICE),
    }


def transfers(points: Sequence[Point], target: Target, findings: Findings) -> None:
    """Seconds and bytes per second of host-device transfers, by direction and kind of host memory, into the findings."""
    for memory in ("pinned", "pageable"):
        for direction in ("h2d", "d2h"):
            every = of(points, "transfer", memory=memory, direction=direction)
            mine = [point for point in every if "pieces" not in point.parameters]
            fitted, predicted = fit.fit_sum(lambda p: (1.0, p.number("bytes")), (0.0, 0.0))
            law, test = fit.tested(f"{memory} {direction} of {target.device}", mine, 3, fitted, predicted)
            findings.keep(test, mine, law, predicted, "bytes")
            if law is not None:
                findings.laws.append(test)
                rate = 1.0 / law[1] if law[1] else None
                findings.extra.setdefault("transfers", {})[test.name] = {
                    "latency_s": law[0],
                    "bytes_per_s": rate,
                    "times_as_long_in_pieces": {
                        str(p.parameters["pieces"]): p.seconds / predicted(law, p) for p in every if p not in mine
                    },
                }


def carried_links(points: Sequence[Point], findings: Findings) -> dict[str, Profile]:
    """Profiles of links between processes of this machine, by how a live run moves what passes on them."""
    found = {}
    for manner in get_args(Manner):
        mine = of(points, "payload", by=manner)
        fitted, predicted = fit.fit_sum(_message_terms, (0.0, 0.0, 0.0))
        law, test = fit.tested(f"payloads by {manner}", mine, 3, fitted, predicted)
        findings.keep(test, mine, law, predicted)
        if law is None or not law[2]:
            continue
        what = (
            "from a message's being asked for in the live loop to its last byte's having been read by another process"
        )
        source = findings.source("cpu", f"{what}: {findings.tested(test)}")
        bounds = _bounds(fit.used_of(mine, 3), predicted, law, (0.0, 0.0, 0.0))
        names, shown = ("latency_s", "per_message_s", "bytes_per_s"), lambda x: np.array([*x[:2], 1.0 / x[2]])
        name = f"{findings.name}-{manner}"
        found[name] = {
            "name": name,
            "kind": "link",
            "description": f"between two processes of this machine, by {manner}",
            **(_figures(names, law, source, bounds, shown) or {}),
            "joules_per_byte": findings.unknown(
                f"{name} joules_per_byte", "no meter tells it from what its cores draw"
            ),
            "carried_by": manner,
        }
    return found


def _message_terms(point: Point) -> tuple[float, float, float]:
    """Of a link: once, each message, each byte."""
    return 1.0, point.number("messages"), point.number("messages") * point.number("bytes")


def held_out(findings: Findings) -> tuple[HeldOut, ...]:
    """How far the laws of kernels, and those of CPU stages, err on points kept out of their fits; what was never held out has no line."""
    spreads = {one.name: [point.deviation for point in fit.used_of(one.points, 0)] for one in findings.fits}
    found = []
    for what, beginnings, target_fraction in AIMS:
        laws = [law for law in findings.laws if law.errors and law.name.startswith(beginnings)]
        errors = [error for law in laws for error in law.errors]
        if errors:
            spread = float(np.median([x for law in laws for x in spreads[law.name]]))
            median, p90 = np.quantile(errors, (0.5, 0.9)).tolist()
            found.append(HeldOut(what, target_fraction, len(errors), float(np.mean(errors)), median, p90, spread))
    return tuple(found)


def sections(findings: Findings) -> list[str]:
    """The report's pictures: every law with its points, by kind."""
    operations = [one for one in findings.fits if one.name.startswith("operation ")]
    others = [one for one in findings.fits if not one.name.startswith("operation ")]
    found = [section(title, figures) for title, figures in findings.drawn.items()]
    found.append(section("CPU operations", [fitted_figure(one) for one in operations]))
    return [*found, section("Kernels, transfers and watts", [fitted_figure(one) for one in others])]
