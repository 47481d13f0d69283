"""Bad input: one clear line that says where, what, and what would be right, before time zero."""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from hsim.description.scenario import load
from hsim.description.system import resolve
from hsim.drivers.prepared import Prepared, prepare
from hsim.drivers.simulated import run
from hsim.errors import DescriptionError
from hsim.metrics.result import Result
from hsim.metrics.summarise import summarise

BASE = """\
# A scenario with nothing wrong.
model: llama-3.1-8b
workload:
  arrivals:
    kind: poisson
    rate_per_s: 2
  tasks: 3
  classes:
    agent:
      understand:
        op: encode-minilm
        tokens: {kind: lognormal, median: 300, p95: 900}
      rounds: 2
      tools:
        vector-search-1m: 1
        http-api: 2
      input_tokens: 500
      output_tokens: 20
      max_output_tokens: 100
fleet:
  cpu-tier:
    server: epyc-9654-2s
    count: 1
  gpu-tier:
    server: hgx-h100-8
    count: 1
pools:
  agents:
    runs_on: cpu-tier.cpu
    cores: 4
  decode:
    runs_on: gpu-tier.gpu
    tensor_parallel: 1
    replicas: 1
    max_num_seqs: 64
stages:
  understand: agents
  tool: agents
  generate: decode
links:
  agents-decode: ethernet-100g
site:
  pue: 1.2
"""

Edit = tuple[str, str]
SHIPPED = Path(__file__).parent.parent / "hardware_profiles"


def prepared(folder: Path, edits: Sequence[Edit] = (), settings: Sequence[str] = ()) -> Prepared:
    """The base scenario with edits, ready to run."""
    text = BASE
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the base"
        text = text.replace(old, new)
    (folder / "bad.yaml").write_text(text)
    return prepare(resolve(*load(folder / "bad.yaml", settings)))


def refused(folder: Path, edits: Sequence[Edit] = (), settings: Sequence[str] = ()) -> str:
    """What is said of the edited base scenario: one line."""
    with pytest.raises(DescriptionError) as caught:
        prepared(folder, edits, settings)
    message = str(caught.value).replace(f"{folder}/", "")
    assert "\n" not in message
    assert len(message) < 400
    return message


def unknown(folder: Path, name: str, figure: str) -> None:
    """A shipped profile beside the user with one figure null, whatever its value was."""
    text = (SHIPPED / f"{name}.yaml").read_text()
    (was,) = re.findall(rf"^ *{figure}: (\{{value: .*?), tier:", text, re.MULTILINE)
    profile(folder, name, name, (f"{figure}: {was}", f"{figure}: {{value: null"))


def result_of(ready: Prepared) -> Result:
    return summarise(run(ready), ready.system, ready.accounts, ready.drawn)


def line_of(folder: Path, text: str) -> int:
    """The line of the edited scenario on which a text first stands."""
    lines = (folder / "bad.yaml").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def test_the_base_is_good(tmp_path: Path) -> None:
    assert len(prepared(tmp_path).drawn.tasks) == 3


# Each: what is replaced, by what, a text on the line that is to blame, and what follows `file:line: `.
CASES: dict[str, tuple[Edit, str, str]] = {
    "a misspelt key": (
        ("max_num_seqs: 64", "max_num_seq: 64"),
        "max_num_seq: 64",
        "pools.decode.max_num_seq: unknown key 'max_num_seq'; did you mean 'max_num_seqs'?",
    ),
    "a misspelt section": (
        ("workload:", "workloads:"),
        "workloads:",
        "workloads: unknown key 'workloads'; did you mean 'workload'?",
    ),
    "a misspelt key inside a distribution": (
        ("p95: 900", "p59: 900"),
        "p59",
        "workload.classes.agent.understand.tokens.p59: unknown key 'p59'; did you mean 'p95'?",
    ),
    "a key of another kind of arrivals": (
        ("rate_per_s: 2", "rate_scale: 2"),
        "rate_scale",
        "workload.arrivals.rate_scale: unknown key 'rate_scale'; did you mean 'rate_per_s'?",
    ),
    "a negative rate": (
        ("rate_per_s: 2", "rate_per_s: -2"),
        "rate_per_s",
        "workload.arrivals.rate_per_s: is -2; input should be greater than 0",
    ),
    "a rate that is no number": (
        ("rate_per_s: 2", "rate_per_s: .nan"),
        "rate_per_s",
        "workload.arrivals.rate_per_s: is '.nan'; input should be a valid number",
    ),
    "no tasks": (("tasks: 3", "tasks: 0"), "tasks:", "workload.tasks: is 0; input should be greater than 0"),
    "a fraction of a task": (
        ("tasks: 3", "tasks: 3.5"),
        "tasks:",
        "workload.tasks: is 3.5; input should be a valid integer",
    ),
    "tasks left out": (("  tasks: 3\n", ""), "workload:", "workload: tasks is missing; say how many tasks arrive"),
    "lengths left out": (
        ("      input_tokens: 500\n", ""),
        "workload:",
        "workload: classes.agent.input_tokens is missing; declare it, or draw it from a trace with sampled_from",
    ),
    "a task of no rounds": (
        ("rounds: 2", "rounds: 0"),
        "agent:",
        "workload.classes.agent: rounds is 0; a count is whole and at least 1",
    ),
    "half a token": (
        ("output_tokens: 20\n", "output_tokens: 0.5\n"),
        "agent:",
        "workload.classes.agent: output_tokens is 0.5; a count is whole and at least 1",
    ),
    "a p95 below the median": (
        ("p95: 900", "p95: 9"),
        "p95: 9",
        "workload.classes.agent.understand.tokens: p95 9.0 is below the median 300.0; p95 >= median must hold",
    ),
    "an unknown distribution": (
        ("kind: lognormal", "kind: lognorml"),
        "lognorml",
        "workload.classes.agent.understand.tokens: kind is 'lognorml'; did you mean 'lognormal'?",
    ),
    "a distribution of no kind": (
        ("{kind: lognormal, median: 300, p95: 900}", "{median: 300, p95: 900}"),
        "p95: 900",
        "workload.classes.agent.understand.tokens: has no kind; say which: constant, exponential, geometric, histogram, lognormal, uniform",
    ),
    "arrivals of no kind": (
        ("    kind: poisson\n", ""),
        "arrivals:",
        "workload.arrivals: has no kind; say which: closed, gamma, hourly, on-off, poisson, trace, uniform, weibull",
    ),
    "an unknown kind of arrivals": (
        ("kind: poisson", "kind: poison"),
        "arrivals:",
        "workload.arrivals: kind is 'poison'; did you mean 'poisson'?",
    ),
    "an unknown model": (
        ("model: llama-3.1-8b", "model: llama-3.1-9b"),
        "model:",
        "model: there is no model (or give the path of a config.json) 'llama-3.1-9b'; did you mean 'llama-3.1-8b'?",
    ),
    "an unknown server": (
        ("hgx-h100-8", "hgx-h100-9"),
        "hgx-h100-9",
        "fleet.gpu-tier.server: there is no hardware profile 'hgx-h100-9'; did you mean 'hgx-h100-8'?",
    ),
    "a chip for a server": (
        ("hgx-h100-8", "h100-sxm"),
        "h100-sxm",
        "fleet.gpu-tier.server: 'h100-sxm' is a profile of kind 'accelerator'; it must be of kind 'server'",
    ),
    "a tier without servers": (
        ("    server: epyc-9654-2s\n    count: 1\n", ""),
        "cpu-tier:",
        "fleet.cpu-tier: is None; input should be a valid dictionary",
    ),
    "an unknown tier": (
        ("gpu-tier.gpu", "gpu-tear.gpu"),
        "gpu-tear",
        "pools.decode.runs_on: the fleet has no tier 'gpu-tear'; did you mean 'gpu-tier'?",
    ),
    "a tier without accelerators": (
        ("gpu-tier.gpu", "cpu-tier.gpu"),
        "cpu-tier.gpu",
        "pools.decode.runs_on: the server 'epyc-9654-2s' has no accelerator; run it on a tier that has",
    ),
    "a pool on no part of a tier": (
        ("gpu-tier.gpu", "gpu-tier"),
        "runs_on: gpu-tier",
        "pools.decode.runs_on: is 'gpu-tier'; write tier.cpu or tier.gpu, such as gpu-tier.gpu",
    ),
    "a pool on an unknown part of a tier": (
        ("cpu-tier.cpu", "cpu-tier.cores"),
        "cpu-tier.cores",
        "pools.agents.runs_on: is 'cpu-tier.cores'; write tier.cpu or tier.gpu, such as gpu-tier.gpu",
    ),
    "a dangling pool": (
        ("generate: decode", "generate: decoder"),
        "generate:",
        "stages.generate: there is no pool 'decoder'; did you mean 'decode'?",
    ),
    "a pool of the wrong kind": (
        ("generate: decode", "generate: agents"),
        "generate:",
        "stages.generate: pool 'agents' runs on cpu-tier.cpu; generate needs a pool that runs on a tier's .gpu",
    ),
    "a stage that is needed and not served": (
        ("  tool: agents\n", ""),
        "stages:",
        "stages.tool: class 'agent' needs the stage 'tool', which no pool serves; add tool: <pool>",
    ),
    "no stage generate": (("  generate: decode\n", ""), "stages:", "stages.generate: 'generate' is missing; add it"),
    "a link to nowhere": (
        ("agents-decode:", "agents-decoder:"),
        "agents-decoder",
        "links.agents-decoder: 'agents-decoder' does not name two pools; did you mean 'agents-decode'?",
    ),
    "an unknown link": (
        ("ethernet-100g", "ethernet-10g"),
        "ethernet-10g",
        "links.agents-decode: there is no hardware profile 'ethernet-10g'; did you mean 'ethernet-100g'?",
    ),
    "servers that no link joins": (
        ("links:\n  agents-decode: ethernet-100g\n", ""),
        "model:",
        "links: pools 'agents' and 'decode' stand on different servers, and no link joins them; add agents-decode: ethernet-100g",
    ),
    "an unknown tool": (
        ("http-api: 2", "http-apy: 2"),
        "http-apy",
        "workload.classes.agent.tools.http-apy: there is no tool 'http-apy'; did you mean 'http-api'?",
    ),
    "an unknown operation": (
        ("op: encode-minilm", "op: encode-minillm"),
        "encode-minillm",
        "workload.classes.agent.understand.op: the profile 'epyc-9654' has no operation 'encode-minillm'; did you mean 'encode-minilm'?",
    ),
    "an unknown engine": (
        ("max_num_seqs: 64", "engine: vlm"),
        "vlm",
        "pools.decode.engine: there is no hardware profile 'vlm'; did you mean 'vllm'?",
    ),
    "an unknown router": (
        ("max_num_seqs: 64", "router: least-outstandng"),
        "router:",
        "pools.decode.router: there is no router 'least-outstandng'; did you mean 'least-outstanding'?",
    ),
    "an unknown router of cores": (
        ("cores: 4", "router: random"),
        "router:",
        "pools.agents.router: there is no router 'random'; known: round-robin, least-outstanding, join-shortest-queue, least-outstanding-tokens, power-of-two, prefix-affinity, least-energy",
    ),
    "an unknown precision": (
        ("max_num_seqs: 64", "precision: fp4"),
        "precision:",
        "pools.decode.precision: is 'fp4'; input should be 'bf16', 'fp16', 'fp32', 'fp8', 'fp8_block', 'mxfp4' or 'nvfp4'",
    ),
    "a precision that the chip has no figures for": (
        ("max_num_seqs: 64", "precision: fp16"),
        "precision:",
        "pools.decode.precision: h100-sxm has no figures for fp16; it has bf16, fp8",
    ),
    "a precision that is for experts alone": (
        ("max_num_seqs: 64", "precision: mxfp4"),
        "precision:",
        "pools.decode.precision: llama-3.1-8b has no experts, and mxfp4 is for those alone; use another precision",
    ),
    "a split that heads do not allow": (
        ("tensor_parallel: 1", "tensor_parallel: 3"),
        "tensor_parallel:",
        "pools.decode.tensor_parallel: 3 does not divide the model's 8 KV heads; use 1, 2, 4 or 8",
    ),
    "a replica larger than a server": (
        ("tensor_parallel: 1", "tensor_parallel: 16"),
        "tensor_parallel:",
        "pools.decode.tensor_parallel: 16 accelerators do not fit in one hgx-h100-8 with 8; use at most 8",
    ),
    "experts to share out where there are none": (
        ("tensor_parallel: 1", "expert_parallel: true"),
        "expert_parallel:",
        "pools.decode.expert_parallel: llama-3.1-8b has no experts to share out; leave it out",
    ),
    "groups that would share nothing": (
        ("tensor_parallel: 1", "data_parallel: 2"),
        "data_parallel:",
        "pools.decode.data_parallel: llama-3.1-8b has no experts to share out; use replicas: 2",
    ),
    "keys in a precision that none are kept in": (
        ("tensor_parallel: 1", "kv_precision: mxfp4"),
        "kv_precision:",
        "pools.decode.kv_precision: is 'mxfp4'; input should be 'bf16', 'fp16', 'fp32' or 'fp8'",
    ),
    "a cap that would never bind": (
        ("tensor_parallel: 1", "power_cap_w: 900"),
        "power_cap_w:",
        "pools.decode.power_cap_w: 900 W is more than h100-sxm ever draws, 690 W; leave it out",
    ),
    "more replicas than fit": (
        ("replicas: 1", "replicas: 9"),
        "replicas:",
        "pools.decode.replicas: 9 replicas of 1 accelerators do not fit on tier 'gpu-tier'; 8 fit",
    ),
    "too many cores": (
        ("cores: 4", "cores: 193"),
        "cores:",
        "pools.agents.cores: epyc-9654-2s has 192 cores for pools (192 less 0 that engines keep); ask for 192 or fewer in all",
    ),
    "too many cores beside an engine": (
        ("cpu-tier.cpu\n    cores: 4", "gpu-tier.cpu\n    cores: 110"),
        "cores:",
        "pools.agents.cores: hgx-h100-8 has 109 cores for pools (112 less 3 that engines keep); ask for 109 or fewer in all",
    ),
    "two pools on cores that nobody divided": (
        (
            "  agents:\n    runs_on: cpu-tier.cpu\n    cores: 4",
            "  agents:\n    runs_on: cpu-tier.cpu\n  more:\n    runs_on: cpu-tier.cpu",
        ),
        "agents:",
        "pools.agents.cores: pools agents, more share tier 'cpu-tier'; say how many cores each has",
    ),
    "a model that does not fit": (
        ("model: llama-3.1-8b", "model: llama-3.1-70b"),
        "decode:",
        "pools.decode: llama-3.1-70b in bf16 has 141.1 GB of weights; 1 x h100-sxm leave 68.0 GB for weights and KV cache; "
        "use tensor_parallel 4 or more, or a lower precision",
    ),
    "a model that no server of the tier holds": (
        ("model: llama-3.1-8b", "model: llama-3.1-405b"),
        "decode:",
        "pools.decode: llama-3.1-405b in bf16 has 811.7 GB of weights; 1 x h100-sxm leave 68.0 GB for weights and KV cache; "
        "a server has 8 of them: use a lower precision, or a server with more or larger accelerators",
    ),
    "a prompt longer than the model allows": (
        ("input_tokens: 500", "input_tokens: 131072"),
        "workload:",
        "workload: task 0, round 1 needs 131172 tokens of context (131072 of prompt and max_output_tokens 100), "
        "more than 131072 (the model allows); lower max_output_tokens",
    ),
    "an assumption that is not needed": (
        ("  pue: 1.2", "  pue: 1.2\nassume:\n  hgx-h100-8:\n    capex_usd: 300e3"),
        "capex_usd",
        "assume.hgx-h100-8.capex_usd: is not a figure that this run uses",
    ),
    "an assumption that is no number": (
        ("  pue: 1.2", "  pue: 1.2\nassume:\n  h100-sxm:\n    memory_bytes: lots"),
        "lots",
        "assume.h100-sxm.memory_bytes: is 'lots'; input should be a valid number",
    ),
    "a misspelt assumption": (
        ("  pue: 1.2", "  pue: 1.2\nassume:\n  h100-sxm:\n    power:\n      idle: 3"),
        "idle: 3",
        "assume.h100-sxm.power.idle: is not a figure that this run uses; did you mean 'h100-sxm.power.idle_w'?",
    ),
    "a duplicate key": (
        ("tasks: 3", "tasks: 3\n  tasks: 4"),
        "tasks: 4",
        "the key 'tasks' is given twice (first at bad.yaml:7); remove one",
    ),
    "an alias": (
        ("tasks: 3\n  classes:", "tasks: &n 3\n  classes: *n\n  more:"),
        "*n",
        "has an alias (*name), which hsim does not read; write the value out",
    ),
    "a sexagesimal, which YAML 1.2 has not": (
        ("tasks: 3", "tasks: 12:30"),
        "12:30",
        "workload.tasks: is '12:30'; input should be a valid integer",
    ),
    "`on`, which is a word in YAML 1.2": (
        ("understand: agents", "on: agents"),
        "on: agents",
        "stages.on: unknown key 'on'",
    ),
    "a key that is no word": (
        ("tool: agents", "true: agents"),
        "true: agents",
        "a key must be a word, not True; quote it",
    ),
    "a tab": (("  tasks: 3", "\ttasks: 3"), "\ttasks", "is not valid YAML: found a tab character"),
    "an open bracket": (("p95: 900}", "p95: 900"), "rounds: 2", "is not valid YAML"),
    "a tag of another language": (
        ("tasks: 3", "tasks: !!python/object/apply:os.system ['true']"),
        "python",
        "workload.tasks: is ['true']; input should be a valid integer",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_is_refused_with_place_and_remedy(name: str, tmp_path: Path) -> None:
    edit, at, expected = CASES[name]
    message = refused(tmp_path, [edit])
    assert message.startswith(f"bad.yaml:{line_of(tmp_path, at)}: {expected}"), message


def test_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e3 as text and 010 as eight."""
    scenario = prepared(tmp_path, [("rate_per_s: 2", "rate_per_s: 1e3"), ("tasks: 3", "tasks: 010")]).system.scenario
    assert scenario.workload.arrivals.rate_per_s == 1000
    assert scenario.workload.tasks == 10


def test_a_prompt_larger_than_the_kv_cache_is_refused(tmp_path: Path) -> None:
    edits = [("  pue: 1.2", "  pue: 1.2\nassume:\n  h100-sxm:\n    memory_bytes: 22.3e9")]
    message = refused(tmp_path, edits)
    assert message.startswith(
        "bad.yaml:3: workload: task 0, round 1 needs 600 tokens of context (500 of prompt and max_output_tokens 100)"
    )
    assert (
        "(KV cache of one replica); lower max_output_tokens, filter the workload, or use more memory per replica"
        in message
    )


def test_an_unknown_price_makes_money_unavailable_and_an_assumption_is_accepted(tmp_path: Path) -> None:
    """Prices and watts are null in some profiles: what follows from them is unavailable, and the result says why."""
    own = ("  pue: 1.2", "  pue: 1.2\n  cost: {basis: own}")
    result = result_of(prepared(tmp_path, [own]))
    assert result.money is None
    assert result.energy is not None
    assert result.energy.total_j > 0
    assert set(result.unavailable) == {"money"}
    place, _, rest = result.unavailable["money"].partition(": ")
    file, _, line = place.rpartition(":")
    assert "capex_usd" in Path(file).read_text().splitlines()[int(line) - 1]
    assert rest.startswith(
        "capex_usd: is unknown (the CPUs alone list at 11,805 USD each; no price of a whole server was found)"
    )
    assert rest.endswith("give your own: --set assume.epyc-9654-2s.capex_usd=<value>")

    settings = ["assume.epyc-9654-2s.capex_usd=30e3", "assume.hgx-h100-8.capex_usd=300e3"]
    ready = prepared(tmp_path, [own], settings)
    use = ready.system.figures.used["hgx-h100-8.capex_usd"]
    assert (use.value, use.tier, use.source) == (300e3, "assumed", "the scenario's `assume`")
    result = result_of(ready)
    assert result.money is not None
    assert not result.unavailable


@pytest.mark.parametrize(
    ("source", "at"),
    [
        ("h100-sxm", "power.floor_w"),
        ("h100-sxm", "power.loaded_idle_w"),
        ("h100-sxm", "power.joules_per_byte"),
        ("hgx-h100-8", "psu_efficiency"),
        ("epyc-9654", "max_w"),
        ("ethernet-100g", "joules_per_byte"),
    ],
)
def test_unknown_watts_make_energy_unavailable_and_change_no_second(
    source: str, at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    known = result_of(prepared(tmp_path))
    unknown(tmp_path, source, at.rpartition(".")[2])
    result = result_of(prepared(tmp_path))
    assert result.energy is None
    assert result.gco2_per_task is None
    assert set(result.unavailable) == {"energy", "co2"}
    assert f"{at}: is unknown (" in result.unavailable["energy"]
    assert result.unavailable["energy"].endswith(f"give your own: --set assume.{source}.{at}=<value>")
    assert result.latency == known.latency
    assert result.money == known.money  # rent: electricity is in it
    assumed = result_of(prepared(tmp_path, settings=[f"assume.{source}.{at}=0.9"]))
    assert assumed.energy is not None
    assert not assumed.unavailable


def test_an_unknown_figure_without_which_nothing_runs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unknown(tmp_path, "h100-sxm", "memory_bytes")
    lines = Path("hardware_profiles/h100-sxm.yaml").read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if text.startswith("memory_bytes:"))
    source = re.search(r'^memory_bytes: .*source: "(.*)"', "\n".join(lines), re.MULTILINE)
    assert source
    assert refused(tmp_path) == (
        f"hardware_profiles/h100-sxm.yaml:{line}: memory_bytes: is unknown ({source[1]}); "
        "give your own: --set assume.h100-sxm.memory_bytes=<value>"
    )
    assert prepared(tmp_path, settings=["assume.h100-sxm.memory_bytes=80e9"]).drawn.tasks


SETTINGS = {
    "pools.decode.max_num_seqs": "has no value; write --set path.to.key=value",
    "=3": "has no value; write --set path.to.key=value",
    "pools.decode.max_num_seq=3": "pools.decode.max_num_seq: unknown key 'max_num_seq'; did you mean 'max_num_seqs'?",
    "workload.tasks.foo=1": "workload.tasks is 3; no key 'foo' can be set in it",
    "workload.tasks.foo.bar=1": "workload.tasks is 3; no key 'foo' can be set in it",
    "links.agents-decode.0=1": "links.agents-decode is 'ethernet-100g'; no key '0' can be set in it",
    "site.pue=0.5": "site.pue: is 0.5; input should be greater than or equal to 1",
    "pools=3": "pools: is 3; input should be a valid dictionary",
    "fleet.gpu-tier.count=": "fleet.gpu-tier.count: is None; input should be a valid integer",
    "workload.classes={}": "workload.classes: is {}; dictionary should have at least 1 item",
    "pools.decode.runs_on=gpu-tear.gpu": "pools.decode.runs_on: the fleet has no tier 'gpu-tear'; did you mean 'gpu-tier'?",
    "slo.ttft.max_s=1": "slo.ttft.p: 'p' is missing; add it",
    "sloe.ttft.max_s=1": "sloe: unknown key 'sloe'; did you mean 'slo'?",
    "pools.decod.tensor_parallel=8": "there is no pool 'decod'; did you mean 'decode'?",
    "workload.classes.agnt.rounds=1": "there is no class 'agnt'; did you mean 'agent'?",
    "fleet.gpu-teir.count=2": "there is no tier 'gpu-teir'; did you mean 'gpu-tier'?",
    "fleet.third.count=2": "there is no tier 'third'; known: cpu-tier, gpu-tier",
    "pools.more={cores: 2}": "pools.more.runs_on: 'runs_on' is missing; add it",
    "workload.tasks=4=5": "workload.tasks: is '4=5'; input should be a valid integer",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_bad_setting_is_refused_by_its_own_name(setting: str, tmp_path: Path) -> None:
    assert refused(tmp_path, settings=[setting]).startswith(f"--set {setting}: {SETTINGS[setting]}")


def test_settings_that_are_not_yaml_are_refused(tmp_path: Path) -> None:
    assert "is not valid YAML" in refused(tmp_path, settings=["model=[1"])
    assert "has an alias" in refused(tmp_path, settings=["seed=*x"])


def test_a_setting_may_add_a_whole_pool_or_tier_or_one_key_by_key(tmp_path: Path) -> None:
    tiers = ["fleet.more.server=hgx-h100-8", "fleet.more.count=1"]
    found = prepared(tmp_path, settings=[*tiers, "pools.more={runs_on: more.gpu}", "pools.other.runs_on=more.cpu"])
    assert {"more", "other"} < found.system.scenario.pools.keys()


def test_settings_edit_the_parsed_scenario(tmp_path: Path) -> None:
    scenario = prepared(
        tmp_path, settings=["workload.tasks=7", "slo={ttft: {max_s: 1, p: 0.9}}", "workload.arrivals.rate_per_s=1e3"]
    ).system.scenario
    assert scenario.workload.tasks == 7
    assert scenario.slo.ttft is not None
    assert scenario.slo.ttft.max_s == 1
    assert scenario.workload.arrivals.rate_per_s == 1000


def test_a_setting_may_name_a_class_that_is_a_number(tmp_path: Path) -> None:
    ready = prepared(
        tmp_path, [("    agent:", "    7:")], ["workload.classes.7.share=2", "assume.h100-sxm.memory_bytes=70e9"]
    )
    assert ready.system.scenario.workload.classes["7"].share == 2
    assert ready.system.figures.used["h100-sxm.memory_bytes"].value == 70e9


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match=r"nowhere\.yaml: there is no such file"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(
        DescriptionError, match=r"agents-splt: there is no scenario 'agents-splt'; did you mean 'agents-split'\?"
    ):
        load("agents-splt")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with pytest.raises(DescriptionError, match=r"empty\.yaml: is empty or not a mapping; write the keys of a Scenario"):
        load(tmp_path / "empty.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DescriptionError, match=r"binary\.yaml: cannot be read"):
        load(tmp_path / "binary.yaml")


# ---- profiles of one's own


def profile(folder: Path, name: str, source: str, *edits: Edit) -> None:
    """A profile beside the user, made from a shipped one."""
    text = (SHIPPED / f"{source}.yaml").read_text()
    for old, new in ((f"name: {source}", f"name: {name}"), *edits):
        assert old in text
        text = text.replace(old, new, 1)
    (folder / "hardware_profiles").mkdir(exist_ok=True)
    (folder / "hardware_profiles" / f"{name}.yaml").write_text(text)


PROFILE_FAULTS: dict[str, tuple[Edit, str, str]] = {
    "a misspelt key": (("base_w:", "base:"), "base:", "base: unknown key 'base'; did you mean 'base_w'?"),
    "a value outside its bounds": (
        ("low: 500", "low: 1500"),
        "base_w:",
        "base_w: 1000.0 lies outside 1500.0 to 1700.0",
    ),
    "an unknown kind": (("kind: server", "kind: sever"), "kind:", "kind: kind is 'sever'; did you mean 'server'?"),
    "another name than its file's": (
        ("name: mine", "name: yours"),
        "name:",
        "name: is 'yours'; a profile has the name of its file, 'mine'",
    ),
    "a figure without source": (
        ('source: "80 PLUS Platinum to Titanium at half load"', 'source: ""'),
        "psu_efficiency:",
        "psu_efficiency.source: is ''; string should have at least 1 character",
    ),
    "an unknown tier of evidence": (
        ("value: 1000, low: 500, high: 1700, tier: assumed", "value: 1000, tier: guessed"),
        "base_w:",
        "base_w.tier: is 'guessed'; input should be 'measured', 'published'",
    ),
    "a dangling profile": (
        ("cpu: xeon-8480c", "cpu: xeon-8480"),
        "cpu:",
        "cpu: there is no hardware profile 'xeon-8480'; did you mean 'xeon-8480c'?",
    ),
}


@pytest.mark.parametrize("name", PROFILE_FAULTS)
def test_a_profile_is_refused_with_place_and_remedy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    edit, at, expected = PROFILE_FAULTS[name]
    profile(tmp_path, "mine", "hgx-h100-8", edit)
    lines = Path("hardware_profiles/mine.yaml").read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if text.startswith(at))
    message = refused(tmp_path, [("server: hgx-h100-8", "server: mine")])
    assert message.startswith(f"hardware_profiles/mine.yaml:{line}: {expected}"), message


def test_a_profile_beside_the_user_comes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    profile(tmp_path, "hgx-h100-8", "hgx-h100-8", ("value: 1000", "value: 1234"))
    prepared(tmp_path)
    system = prepared(tmp_path).system
    assert system.figures.used["hgx-h100-8.base_w"].value == 1234


def test_engines_that_need_more_cores_than_a_server_has_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before time zero, and not by an assertion at the first step."""
    monkeypatch.chdir(tmp_path)
    profile(tmp_path, "mine", "hgx-h100-8", ("cpu: xeon-8480c", "cpu: small"))
    profile(tmp_path, "small", "xeon-8480c", ("cores: 56", "cores: 11"))
    mine = ("server: hgx-h100-8", "server: mine")
    message = refused(tmp_path, [mine, ("    replicas: 1\n", "")])
    assert message.startswith(
        "bad.yaml:31: pools.decode: engines keep 24 cores of each mine, which has 22; use fewer replicas"
    )
    assert prepared(tmp_path, [mine, ("replicas: 1", "replicas: 7")]).replicas["decode"].host_cores == 3


def test_accelerators_are_not_given_to_two_pools(tmp_path: Path) -> None:
    """Eight in one replica and seven alone are fifteen, on a server that has eight; four and four alone fit."""
    other = "  other:\n    runs_on: gpu-tier.gpu\n    tensor_parallel: {}\n    replicas: {}\nstages:"
    edits = [
        ("tensor_parallel: 1\n    replicas: 1", "tensor_parallel: 8\n    replicas: 1"),
        ("stages:", other.format(1, 7)),
    ]
    message = refused(tmp_path, edits)
    line = line_of(tmp_path, "replicas: 7")
    assert message.startswith(
        f"bad.yaml:{line}: pools.other.replicas: 7 replicas of 1 accelerators do not fit on tier 'gpu-tier'; "
        "0 fit beside the pools before it; say how many replicas each pool has"
    )
    assert prepared(tmp_path, [("replicas: 1", "replicas: 4"), ("stages:", other.format(4, 1))]).system.engine_pools()


# ---- traces

HEADER = "arrival_s,input_tokens,output_tokens\n"

TRACES: dict[str, tuple[str, bytes | None, str]] = {
    "missing": ("t.csv", None, "t.csv: there is no such trace file; set workload.arrivals.file"),
    "empty": ("t.csv", b"", "t.csv: the file is empty; give a trace with at least one row"),
    "without requests": ("t.csv", HEADER.encode(), "t.csv: the trace holds no request; give a trace with at least one row"),
    "of another format": ("t.csv", b"time,in,out\n1,2,3\n", "t.csv:1: the header is 'time,in,out'; known columns are Azure: TIMESTAMP"),
    "with a broken line": ("t.csv", f"{HEADER}0,10,5\n1,many,2\n".encode(), "t.csv:3: input_tokens is 'many'; it must be a whole number, 0 or more"),
    "with a short line": ("t.csv", f"{HEADER}0,10,5\n\n1,5\n".encode(), "t.csv:4: has 2 columns, '1,5'; the header has 3"),
    "with an empty answer": ("t.csv", f"{HEADER}0,10,0\n".encode(), "t.csv: none of its 1 requests has both a prompt and an answer; give a trace with at least one row"),
    "with an endless arrival": ("t.csv", f"{HEADER}0,10,5\ninf,10,5\n".encode(), "t.csv:3: "),
    "that is not gzip": ("t.csv.gz", b"0,10,5", "t.csv.gz: cannot be read (Not a gzipped file"),
    "cut short": ("t.csv.gz", gzip.compress(HEADER.encode() * 9)[:30], "t.csv.gz: cannot be read (Compressed file ended"),
    "with a flipped bit": (
        "t.csv.gz",
        gzip.compress(HEADER.encode())[:-5] + b"\0" + gzip.compress(HEADER.encode())[-4:],
        "t.csv.gz: cannot be read (",
    ),
    "that is not text": ("t.csv", HEADER.encode() + b"0,10,\xff\n", "t.csv: cannot be read ('utf-8' codec"),
    "that is a folder": (".", None, "cannot be read (["),
}  # fmt: skip


def trace_scenario(folder: Path, name: str, content: bytes | None) -> tuple[list[Edit], Path]:
    if content is not None:
        (folder / name).write_bytes(content)
    arrivals = ("    kind: poisson\n    rate_per_s: 2\n", f"    kind: trace\n    file: {name}\n")
    return [arrivals, ("  tasks: 3\n", ""), ("      input_tokens: 500\n      output_tokens: 20\n", "")], folder


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_is_refused(name: str, tmp_path: Path) -> None:
    file, content, expected = TRACES[name]
    edits, folder = trace_scenario(tmp_path, file, content)
    assert expected in refused(folder, edits)


# ---- models

DIMENSIONS = (
    '"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 9'
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "config.json: there is no such file"),
        ("{", "config.json: is not a readable JSON file"),
        ("[1]", "config.json: is not a Hugging Face model configuration"),
        ('{"model_type": "gpt2"}', "config.json: model_type is 'gpt2'; hsim models deepseek_v2, "),
        ("{}", "config.json: model_type is 'None'; hsim models deepseek_v2, "),
        (f'{{"model_type": "mixtral", {DIMENSIONS}}}', "config.json: has no 'num_local_experts', which mixtral needs; use the model's own config.json"),
        (f'{{"model_type": "gemma2", {DIMENSIONS}}}', "config.json: has no 'sliding_window', which gemma2 needs"),
        (f'{{"model_type": "deepseek_v3", {DIMENSIONS}}}', "config.json: has no 'kv_lora_rank', which deepseek_v3 needs"),
        (
            f'{{"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3, {DIMENSIONS}}}',
            "per_token 3 is more than count 2; per_token <= count must hold",
        ),
        ('{"model_type": "llama", "hidden_size": 64}', "config.json: has no whole number for num_hidden_layers, intermediate_size"),
        (
            '{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64, '
            '"num_attention_heads": 5, "num_key_value_heads": 2, "vocab_size": 9}',
            "kv_heads 2 does not divide attention_heads 5; each KV head serves a whole group of query heads",
        ),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_modelled_is_refused(text: str | None, expected: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    message = refused(tmp_path, [("model: llama-3.1-8b", "model: config.json")])
    assert expected in message
