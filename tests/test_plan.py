"""Plans of simulated fleets: the space, its bounds, the answer, and that nothing about it depends on how it was found."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from systems import generate_only, prepared_of, run
from test_cli import printed

from hsim.drivers.offered import needed_s
from hsim.errors import DescriptionError
from hsim.metrics.result import Study
from hsim.plan import Plan, PlanOptions, Problem, Step, plan, preview, read_problem
from hsim.plan.bounds import cheapest_mix, conditions_of, cost_bound
from hsim.plan.breakeven import Architectures, breakeven
from hsim.plan.problem import OWN, with_losses
from hsim.plan.result import Aim, Judged, Previews
from hsim.plan.search import COMPARED, Observation
from hsim.plan.simulation import Simulation
from hsim.plan.spending import least_spent
from hsim.plan.survive import losses_of, survive
from hsim.report.plans import _one_each
from hsim.runs import Options, as_json, study
from hsim.runs.studies import workers

ALONE = PlanOptions(processes=1)


def servers(counts: Any = (1, 2, 3, 4), rate_per_s: float = 12, **plan: Any) -> dict[str, Any]:
    """Replicas of one sequence at a time that each take a whole 8-GPU server: queues that need a few of them."""
    data = generate_only(max_num_seqs=1, tensor_parallel=8)
    del data["pools"]["decode"]["replicas"]
    data["workload"] |= {"tasks": 60, "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s}}
    data["workload"]["classes"]["chat"] |= {
        "output_tokens": {"kind": "lognormal", "median": 40, "p95": 120},
        "max_output_tokens": 200,
    }
    data["fleet"]["gpu-tier"]["count"] = list(counts)
    data["slo"] = {"e2e": {"max_s": 1.5, "p": 0.95}}
    return data | ({"plan": plan} if plan else {})


def written(folder: Path, data: dict[str, Any], name: str = "problem") -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(data, indent=1))
    return file


def planned(folder: Path, data: dict[str, Any], options: PlanOptions = ALONE) -> Plan:
    return plan(read_problem(written(folder, data)), options)


# ---- the space


def test_lists_stand_for_choices_wherever_one_value_stands(tmp_path: Path) -> None:
    data = servers([1, 2])
    data["fleet"]["gpu-tier"]["server"] = ["hgx-h100-8", "hgx-a100-8"]
    data["pools"]["decode"]["max_num_seqs"] = [1, 4]
    problem = read_problem(written(tmp_path, data))
    assert len(problem.fleets) == 8
    assert problem.fleets[0].name == "1 x hgx-h100-8; decode max_num_seqs 1"
    assert {json.dumps(fleet.choices) for fleet in problem.fleets}.__len__() == 8
    for fleet in problem.fleets:
        system = problem.system(fleet.number)
        tier = system.tiers["gpu-tier"]
        assert fleet.servers == {tier.server.name: tier.count}
        assert system.engine_pools()["decode"].replicas == tier.count
        assert system.engine_pools()["decode"].max_num_seqs == fleet.choices["pools.decode.max_num_seqs"]


def test_what_no_pool_needs_is_not_bought() -> None:
    """GPU-only and split are one space: where tools run on the GPU servers there is no CPU tier, and no link."""
    problem = read_problem("agents-plan")
    split = [f for f in problem.fleets if f.choices["pools.agents.runs_on"] == "cpu-tier.cpu"]
    together = [f for f in problem.fleets if f not in split]
    assert (len(split), len(together)) == (480, 80)
    assert all("fleet.cpu-tier.count" not in f.choices for f in together)
    assert all(len(f.servers) == 1 for f in together)
    assert not problem.system(together[0].number).paths
    assert problem.system(split[0].number).paths


def test_a_server_of_memory_alone_is_bought() -> None:
    (fleet,) = read_problem("memory-pool", ["architecture=remote"]).fleets
    assert fleet.servers == {"hgx-h100-8": 2, "epyc-9654-2s": 1}


def test_price_and_power_are_those_of_the_servers(tmp_path: Path) -> None:
    problem = read_problem(written(tmp_path, servers([1, 3])))
    one, three = problem.fleets
    assert one.usd_per_h == pytest.approx(23.6)
    assert three.usd_per_h == pytest.approx(3 * 23.6)
    assert one.rated_w is not None
    assert one.rated_w > 8 * 700  # eight accelerators at their caps, and more
    assert three.rated_w == pytest.approx(3 * one.rated_w)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slo": {}}, "there is no objective"),
        ({"fleet": {"gpu-tier": {"server": "hgx-h100-8", "count": []}}}, "is an empty list"),
        ({"fleet": {"gpu-tier": {"server": "hgx-h100-8", "count": [1, 1]}}}, "names a choice twice"),
        ({"fleet": {"gpu-tier": {"server": "hgx-h100-8", "count": [[1]]}}}, "is no choice"),
        ({"plan": {"have": {"hgx-h10-8": 1}}}, "did you mean 'hgx-h100-8'"),
        ({"plan": {"minimize": "cost"}}, "did you mean 'minimise'"),
        ({"fleet": {"gpu-tier": {"server": "hgx-h10-8", "count": [1]}}}, "did you mean 'hgx-h100-8'"),
        ({"fleet": {"gpu-tier": {"server": "l4-1", "count": [1]}}}, "no choice can run"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DescriptionError, match=message):
        read_problem(written(tmp_path, servers() | change))


@pytest.mark.parametrize(
    ("path", "values", "message"),
    [
        ("pools.decode.router", "[round-robin, round-robbin]", "there is no router 'round-robbin'; did you mean"),
        ("pools.decode.engine", "[vllm, vlm]", "there is no hardware profile 'vlm'; did you mean 'vllm'"),
        ("fleet.gpu-tier.server", "[hgx-h100-8, hgx-h10-8]", "'hgx-h10-8'; did you mean 'hgx-h100-8'"),
        ("fleet.gpu-tier.server", "[hgx-h100-8, xeon-8480c]", "it must be of kind 'server'"),
        ("fleet.gpu-tier.site", "[site, sight]", "there is no site 'sight'; did you mean 'site'"),
        ("pools.decode.model", "[llama-3.1-8b, llama-3.1-8]", "'llama-3.1-8'; did you mean 'llama-3.1-8b'"),
        ("pools.decode.tool_gaps", "[cache, cash]", "there is no policy 'cash'; did you mean 'cache'"),
        ("pools.decode.priority", "[started-first, started-fist]", "did you mean 'started-first'"),
        ("pools.decode.host_link", "[pcie5-pinned, pcie5-pind]", "did you mean 'pcie5-pinned'"),
    ],
)
def test_no_choice_is_left_out_for_a_name_that_stands_for_nothing(
    tmp_path: Path, path: str, values: str, message: str
) -> None:
    """Were it one that cannot run, a slip of the pen would take what was meant out of a certified answer."""
    with pytest.raises(DescriptionError, match=re.escape(message)) as refused:
        preview(read_problem(written(tmp_path, servers([2])), [f"{path}={values}"]))
    assert path in refused.value.where


@pytest.mark.parametrize("runs_on", ["[gpu-tier.cpu, cpu-teir.cpu]", "cpu-teir.cpu"])
def test_a_misspelt_tier_is_looked_for_in_the_whole_fleet(runs_on: str) -> None:
    """Nothing would run on the tier that was meant, and what nothing runs on is not bought."""
    with pytest.raises(DescriptionError, match=r"no tier 'cpu-teir'; did you mean 'cpu-tier'\?"):
        read_problem("agents-plan", [f"pools.agents.runs_on={runs_on}"])


def test_why_a_choice_cannot_run_names_the_choice(tmp_path: Path) -> None:
    problem = read_problem(written(tmp_path, servers([2])), ["fleet.gpu-tier.server=[hgx-h100-8, l4-1]"])
    assert not problem.designs[0].impossible
    assert "8 accelerators do not fit in one l4-1 with 1" in problem.designs[1].impossible
    settings = ["pools.decode.tensor_parallel=[8, 16]"]
    problem = read_problem(written(tmp_path, servers([2])), settings)
    assert problem.designs[1].impossible.startswith(
        "--set pools.decode.tensor_parallel=16: pools.decode.tensor_parallel:"
    )


def test_a_server_without_a_price_is_named(tmp_path: Path) -> None:
    data = servers()
    data["fleet"]["gpu-tier"]["server"] = "tpu-v5e-8"
    data["fleet"]["gpu-tier"]["server"] = "l4-1"
    data["pools"]["decode"]["tensor_parallel"] = 1
    with pytest.raises(DescriptionError, match=r"has no price: .*set assume\.l4-1\.rent_usd_per_h"):
        planned(tmp_path, data)


def sleeping_or_not(**assume: float) -> dict[str, Any]:
    """Two tiers of one kind of server to choose from: one of them sleeps, and has watts and seconds for that assumed."""
    data = servers([1])
    asleep = {"server": "hgx-h100-8", "count": 2, "sleep_after_s": 120, "stay_on": 1}
    data["fleet"]["napping"] = asleep
    data["pools"]["decode"]["runs_on"] = ["napping.gpu", "gpu-tier.gpu"]
    return data | {"assume": {"hgx-h100-8": {"off_w": 20, "boot_w": 600, "boot_s": 120, **assume}}}


def test_what_one_choice_alone_uses_may_be_assumed(tmp_path: Path) -> None:
    """A choice that never sleeps is no choice that cannot run for that."""
    problem = read_problem(written(tmp_path, sleeping_or_not()))
    assert conditions_of(problem, 1e-3, alone=False).impossible == {}
    observed = study(problem.system(1), Options(1, processes=1))  # nor when it is simulated
    assert "hgx-h100-8.off_w" not in {each.name for each in observed.assumptions}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["assume.hgx-h100-8.boot_ss=1"], "boot_ss: is not a figure that any choice uses; did you mean"),
        (["assume.hgx-h10-8.boot_s=1"], "is not a figure that any choice uses; did you mean 'hgx-h100-8.boot_s'"),
        (["assume.l4-1.boot_s=1"], "is not a figure that any choice uses"),
        (["pools.decode.runs_on=gpu-tier.gpu"], "off_w: is not a figure that any choice uses"),
        (["pools.decode.tensor_parallel=[8, 16]", "assume.hgx-h100-8.boot_ss=1"], "did you mean 'hgx-h100-8.boot_s'"),
    ],
)
def test_what_no_choice_uses_may_not_be_assumed(tmp_path: Path, settings: list[str], message: str) -> None:
    with pytest.raises(DescriptionError, match=re.escape(message)):
        preview(read_problem(written(tmp_path, sleeping_or_not()), settings))


def test_of_several_problems_none_has_to_use_all_that_is_assumed(tmp_path: Path) -> None:
    """Architectures that are planned each by itself share what is assumed; a figure that nothing has is still refused."""
    file = written(tmp_path, sleeping_or_not())
    tiers = Architectures("pools.decode.runs_on", ("napping.gpu", "gpu-tier.gpu"))
    (point,) = breakeven(file, (), tiers, [1.0]).points
    assert all(best.fleet for best in point.best.values())
    with pytest.raises(DescriptionError, match="is not a figure that any choice uses"):
        breakeven(file, ["assume.hgx-h100-8.boot_ss=1"], tiers, [1.0])


# ---- bounds


def test_melange_own_toy_costs_6_70() -> None:
    """Three A10G and one A100 for its mix of 30 requests a second: Melange's example, solved here by brute force too."""
    usd, rates = [1.01, 3.67], [6.0, 3.0, 15.0, 6.0]
    throughput = [(2, 20), (1, 20), (5, 40), (2, 20)]  # of an A10G and an A100, by slice
    load = [[rate / each for each in both] for rate, both in zip(rates, throughput, strict=True)]
    found = cheapest_mix(usd, load)
    assert found is not None
    assert found.cost == pytest.approx(6.70)
    assert [round(x) for x in found.values[:2]] == [3, 1]
    assert found.gap_fraction == pytest.approx(0, abs=1e-9)
    best = min(
        usd[0] * a + usd[1] * b
        for kinds in itertools.product((0, 1), repeat=4)
        for a in range(15)
        for b in range(15)
        if sum(load[i][0] for i in range(4) if kinds[i] == 0) <= a
        and sum(load[i][1] for i in range(4) if kinds[i] == 1) <= b
    )
    assert found.cost == pytest.approx(best)


def test_bounds_refute_only_what_simulation_refutes(tmp_path: Path) -> None:
    """Fleets that cannot do the work have no steady state; a task that is late alone is late in company."""
    data = servers([1, 2, 3], rate_per_s=30)
    data["slo"]["e2e"]["max_s"] = 0.1
    data["workload"]["tasks"] = 300
    problem = read_problem(written(tmp_path, data))
    conditions = conditions_of(problem, 1e-3)
    found = [{by for by, _ in conditions.unsatisfied(fleet)} for fleet in problem.fleets]
    assert found[0] == {"capacity", "alone"}
    simulated = study(problem.system(0), Options(6, processes=1))
    assert simulated.stability is not None
    assert simulated.stability.verdict == "unstable"
    data["workload"]["arrivals"]["rate_per_s"] = 1
    calm = study(read_problem(written(tmp_path, data, "calm")).system(2), Options(6, processes=1))
    assert calm.slo[0].verdict == "FAIL"


def test_the_bound_is_below_every_fleet_that_may_hold(tmp_path: Path) -> None:
    problem = read_problem(written(tmp_path, servers([1, 2, 3, 4, 5, 6], rate_per_s=30)))
    conditions = conditions_of(problem, 1e-6)
    bound = cost_bound(conditions)
    alive = [f.usd_per_h for f in problem.fleets if conditions.refutes(f) is None]
    assert bound.lp_usd_per_h is not None
    assert bound.milp_usd_per_h is not None
    assert 23.6 < bound.lp_usd_per_h <= bound.milp_usd_per_h + 1e-9
    assert bound.milp_usd_per_h == pytest.approx(min(usd for usd in alive if usd))


# ---- what bounds and screening may not say


def chats(rate_per_s: float, tasks: int, prompt: int, answer: int, **parts: Any) -> dict[str, Any]:
    """Equal chats on one L40S server, but for the parts that are given."""
    lengths = {"input_tokens": prompt, "output_tokens": answer, "max_output_tokens": answer}
    data = {
        "model": "llama-3.1-8b",
        "workload": {
            "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s},
            "tasks": tasks,
            "classes": {"a": lengths},
        },
        "fleet": {"gpu": {"server": "l40s-4", "count": 1}},
        "pools": {"decode": {"runs_on": "gpu.gpu"}},
        "stages": {"generate": "decode"},
        "slo": {"e2e": {"max_s": 60, "p": 0.7}},
    }
    return data | parts


ONE_REPLICA = {"runs_on": "gpu.gpu", "replicas": 1, "max_num_seqs": 64, "max_num_batched_tokens": 2048}
READS = {"understand": {"tokens": 3000}, "input_tokens": 16, "output_tokens": 300, "max_output_tokens": 300}
HELPED = {
    "what is shed makes room": chats(
        16, 100, 200, 200, pools={"decode": ONE_REPLICA}, balance={"admission": "within-objective"}, slo={"ttft": {"max_s": 3, "p": 0.25}}
    ),
    "a message joins a window that is open": chats(
        10, 100, 50, 2,
        fleet={"cpu": {"server": "epyc-9654-2s", "count": 1}, "gpu": {"server": "l40s-4", "count": 1}},
        pools={"tools": {"runs_on": "cpu.cpu"}, "decode": {"runs_on": "gpu.gpu"}}, stages={"tool": "tools", "generate": "decode"},
        tools={"t": {"operation": "http-call", "outside_wait_s": {"kind": "constant", "value": 0}}},
        links={"tools-decode": "ethernet-100g"}, payload={"window_s": 1.0}, slo={"e2e": {"max_s": 0.9, "p": 0.6}},
    ),
    "a governor lifts its cap under load": chats(
        4, 100, 2000, 200, model="llama-3.1-70b", fleet={"gpu": {"server": "hgx-h100-8", "count": 1}}, slo={"answer_ttft": {"max_s": 0.235, "p": 0.6}},
        pools={"decode": {"runs_on": "gpu.gpu", "tensor_parallel": 4, "governor": {
            "caps_w": [400, 690], "policy": "all-or-least", "target": 0.02, "every_s": 0.1, "hold_s": 5, "takes_s": 0.065}}},
    ),
    "fewer replicas share a memory": chats(
        0.5, 100, 100, 100, model="llama-3.1-70b", fleet={"gpu": {"server": "hgx-h100-8", "count": [1, 8]}}, slo={"e2e": {"max_s": 600, "p": 0.7}},
        pools={"decode": {"runs_on": "gpu.gpu", "tensor_parallel": 8, "memory": "pool", "host_weight_bytes": 20e9, "max_num_seqs": 32}},
        memory={"pool": {"on": "gpu", "bytes": 240e9, "link": "cxl"}},
    ),
    "a step reads and decodes": chats(
        3.6, 100, 16, 300, pools={"decode": ONE_REPLICA | {"max_num_batched_tokens": 512}},
        stages={"understand": "decode", "generate": "decode"}, slo={"e2e": {"max_s": 200, "p": 0.5}},
    ),
}  # fmt: skip
HELPED["what is shed makes room"]["workload"]["classes"]["a"]["input_tokens"] = 200
HELPED["a message joins a window that is open"]["workload"]["classes"]["a"]["tools"] = {"t": 1}
HELPED["a step reads and decodes"]["workload"]["classes"]["a"] = READS


@pytest.mark.parametrize("why", HELPED)
def test_bounds_refute_nobody_where(why: str, tmp_path: Path) -> None:
    problem = read_problem(written(tmp_path, HELPED[why]))
    assert conditions_of(problem, 1e-4).refutes(problem.fleets[0]) is None


def test_what_a_replica_needs_for_reading_and_decoding_is_no_more_than_it_takes() -> None:
    data = HELPED["a step reads and decodes"]
    done = run(
        prepared_of(
            data | {"workload": data["workload"] | {"tasks": 400, "arrivals": {"kind": "poisson", "rate_per_s": 5}}}
        )
    )
    steps = done.steps_of(0)
    least_s = needed_s(done.prepared, done.prepared.drawn.tasks)["decode"]
    assert 0.7 < least_s / (steps["end_s"] - steps["start_s"]).sum() <= 1


def screened(folder: Path, data: dict[str, Any], block: int = 0) -> tuple[list[Observation], Study]:
    """What the search sees of the first fleet before it tries it for a certificate, or compares it; and its study."""
    problem = read_problem(written(folder, data))
    options = Options(processes=1)
    with workers(options) as those:
        simulation = Simulation(problem, conditions_of(problem, 1e-4), options, those)
        return list(simulation.replicate(0, block, range(4))), simulation.study(0)


def test_screening_waits_until_prefixes_are_cached(tmp_path: Path) -> None:
    """The first prompt of each replica reads the instruction of all: that says nothing of the others."""
    data = chats(3, 200, 50, 5, fleet={"gpu": {"server": "l40s-4", "count": 4}}, slo={"e2e": {"max_s": 1.5, "p": 0.9}})
    data["pools"]["decode"]["router"] = "round-robin"
    data["stages"]["understand"] = "decode"
    data["workload"]["classes"]["a"]["understand"] = {"tokens": 50, "instruction_tokens": 30_000}
    observed, study = screened(tmp_path, data)
    assert study.slo[0].attained.value > 0.98
    assert max(each.missed[0] for each in observed) < 0.02


@pytest.mark.parametrize(("block", "asleep"), [(0, True), (COMPARED, True), (COMPARED, False)])
def test_joules_are_compared_when_servers_have_gone_to_sleep(block: int, asleep: bool, tmp_path: Path) -> None:
    """And of servers that do not, when they are as busy as they will be."""
    data = chats(1, 300, 300, 100, fleet={"gpu": {"server": "l40s-4", "count": 4}})
    if asleep:
        data["fleet"]["gpu"] |= {"sleep_after_s": 60, "stay_on": 1}
        data["assume"] = {"l40s-4": {"off_w": 20, "boot_w": 600, "boot_s": 120}}
    data["plan"] = {"minimise": "tst"}
    data["pools"]["decode"]["router"] = "least-energy"
    observed, study = screened(tmp_path, data, block)
    tst_j = sum(each.spent for each in observed) / sum(each.over for each in observed)
    assert tst_j == pytest.approx(study.energy.tst_j["full"]["facility"].value, rel=0.15)


# ---- plans


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Problem, Plan]:
    problem = read_problem(written(tmp_path_factory.mktemp("answer"), servers()))
    return problem, plan(problem, ALONE)


def test_the_cheapest_fleet_that_holds_is_certified(answer: tuple[Problem, Plan]) -> None:
    found = answer[1]
    assert found.chosen is not None
    assert found.chosen.verdict == "PASS"
    assert found.claim.startswith("With at least 95% confidence, in this model and counting sampling error only")
    cheaper = [judged for judged in found.judged if judged is not found.chosen]
    assert {judged.verdict for judged in cheaper} <= {"FAIL", "UNDECIDED"}
    assert all(judged.reason for judged in cheaper)
    assert found.chosen.replications >= 59
    assert len(found.judged) + found.dearer == found.space == 4
    assert found.study is not None
    assert (found.study.slo[0].attained.value or 0) > 0.95
    assert "CPU cores are busy per accelerator" in found.cores_per_accelerator
    assert found.bound.milp_usd_per_h is not None
    assert found.chosen.fleet.usd_per_h is not None
    assert found.bound.milp_usd_per_h <= found.chosen.fleet.usd_per_h + 1e-9


def test_an_interrupted_plan_goes_on_to_the_same_bytes(answer: tuple[Problem, Plan], tmp_path: Path) -> None:
    problem, uninterrupted = answer
    steps: list[Step] = []
    kept = PlanOptions(processes=1, out=tmp_path)
    part = plan(problem, kept, steps.append, lambda: len(steps) == 6)
    assert not part.complete
    assert part.claim.startswith("Interrupted")
    before = {file: json.loads(file.read_text()) for file in (tmp_path / "runs").rglob("search-*.json")}
    assert before
    whole = plan(problem, kept)
    assert whole.complete
    assert all(json.loads(file.read_text()).items() >= rows.items() for file, rows in before.items())
    assert as_json(whole) == as_json(uninterrupted) == (tmp_path / "plan.json").read_text()


@pytest.mark.slow
def test_processes_do_not_change_a_plan(answer: tuple[Problem, Plan]) -> None:
    assert as_json(answer[1]) == as_json(plan(answer[0], PlanOptions(processes=2)))


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"have": {"hgx-h100-8": 0}}, r"what is there \(plan.have\): \d of 4 fleets"),
        ({"max_usd_per_h": 10}, r"the budget .* such as .* 10.00"),
        ({"max_w": 5000}, r"the power limit"),
    ],
)
def test_an_infeasible_problem_names_what_is_in_the_way(tmp_path: Path, limits: dict[str, Any], named: str) -> None:
    found = planned(tmp_path, servers(**limits))
    assert found.chosen is None
    assert found.replications == 0
    assert re.search(named, found.binding)


def test_objectives_that_no_fleet_meets_are_named_with_the_nearest(tmp_path: Path) -> None:
    found = planned(tmp_path, servers([1, 2], rate_per_s=14))
    assert found.chosen is None
    assert found.binding


@pytest.mark.slow
def test_objectives_must_hold_under_every_load(tmp_path: Path) -> None:
    alone = planned(tmp_path, servers(range(1, 9), rate_per_s=4))
    both = planned(tmp_path, servers(range(1, 9), rate_per_s=4, loads={"peak": {"workload.arrivals.rate_per_s": 16}}))
    assert alone.chosen is not None
    assert both.chosen is not None
    assert (both.chosen.fleet.usd_per_h or 0) > (alone.chosen.fleet.usd_per_h or 0)
    assert {missed.load for missed in both.chosen.missed} == {OWN, "peak"}


@pytest.mark.slow
def test_joules_are_minimised_by_paired_differences(tmp_path: Path) -> None:
    """More servers draw more idle: the leanest fleet that holds is the smallest, and the others are shown to take more."""
    found = planned(tmp_path, servers([2, 3, 4], rate_per_s=4, minimise="tst"))
    assert found.chosen is not None
    assert found.chosen.fleet.servers == {"hgx-h100-8": 2}
    others = [judged for judged in found.judged if judged is not found.chosen]
    assert all(judged.by == "worse" for judged in others)
    assert "no other of the 3 that does takes fewer joules a task" in found.claim


def two_sites(servers: tuple[str, str], sites: tuple[dict[str, Any], dict[str, Any]], **plan: Any) -> dict[str, Any]:
    """A server at one site or another at another, under so little load that both hold."""
    data = generate_only()
    data["workload"] |= {"tasks": 100, "arrivals": {"kind": "poisson", "rate_per_s": 2}}
    tiers = {name: {"server": server, "count": 1, "site": name} for name, server in zip("xy", servers, strict=True)}
    pools = {"decode": {"runs_on": ["x.gpu", "y.gpu"], "engine": "vllm"}}
    named = dict(zip("xy", sites, strict=True))
    return data | {
        "fleet": tiers,
        "pools": pools,
        "sites": named,
        "slo": {"e2e": {"max_s": 60, "p": 0.7}},
        "plan": plan,
    }


CLEAN_AND_DIRTY = ({"gco2_per_kwh": 20}, {"gco2_per_kwh": 900})


def test_co2_is_that_of_each_site_and_not_joules(tmp_path: Path) -> None:
    """The larger server takes twice the joules and, where it stands, a twentieth of the grams."""
    data = two_sites(("hgx-a100-8", "l40s-4"), CLEAN_AND_DIRTY, minimise="co2")
    data["pools"]["decode"]["runs_on"] = ["y.gpu", "x.gpu"]
    found = planned(tmp_path, data)
    assert found.chosen is not None
    assert found.chosen.fleet.servers == {"hgx-a100-8": 1}
    assert "no other of the 2 that does emits less CO2 a task" in found.claim
    data["plan"]["minimise"] = "tst"
    leanest = planned(tmp_path, data)
    assert leanest.chosen is not None
    assert leanest.chosen.fleet.servers == {"l40s-4": 1}


def test_where_nothing_is_left_to_chance_the_one_that_takes_least_is_chosen(tmp_path: Path) -> None:
    """On one path too: the first in order of price holds, and emits more."""
    data = two_sites(("hgx-a100-8", "l40s-4"), CLEAN_AND_DIRTY, minimise="co2")
    data["workload"] |= {"arrivals": {"kind": "uniform", "rate_per_s": 2}, "measure": "terminating", "tasks": 20}
    tokens = {"kind": "constant", "value": 50}
    data["workload"]["classes"] = {"chat": {"input_tokens": tokens, "output_tokens": tokens, "max_output_tokens": 50}}
    found = planned(tmp_path, data)
    assert found.chosen is not None
    assert found.chosen.fleet.servers == {"hgx-a100-8": 1}
    assert "nothing is left to chance" in found.claim
    (other,) = (judged for judged in found.judged if judged is not found.chosen)
    assert re.fullmatch(r"takes [\d.]+ g a task more than the best", other.reason)


HOURS = [100.0, *[300.0] * 23]
MAKING = {"l40s-4": {"embodied_kgco2": 1000}, "l40s": {"embodied_kgco2": 100}}


def test_no_fleet_spends_less_than_its_floor(tmp_path: Path) -> None:
    """Idle joules at the cleanest hour, and making the servers: below what is simulated, and more than half of it."""
    site = {"hourly": {"gco2_per_kwh": HOURS}, "embodied": True}
    data = two_sites(("l40s-4", "l40s-4"), (site, site)) | {"assume": MAKING}
    system = read_problem(written(tmp_path, data)).system(0)
    figures = study(system, Options(4, processes=1)).figures()
    aims: dict[Aim, str] = {"tst": "tst_j", "co2": "gco2_per_task"}
    for aim, figure in aims.items():
        value = figures[figure].value
        assert value is not None
        assert value / 2 < least_spent(aim, system, 2.0) < value
    cleaner = data | {"sites": dict.fromkeys("xy", site | {"embodied": False})}
    less = read_problem(written(tmp_path, cleaner)).system(0)
    making_g = 1400e3 / (4 * 365.25 * 86400) / 2
    assert least_spent("co2", system, 2.0) - least_spent("co2", less, 2.0) == pytest.approx(making_g, rel=1e-2)


OWNED = tuple({"usd_per_kwh": usd, "cost": {"basis": "own"}} for usd in (0.60, 0.03))
PRICED: dict[str, Any] = {"assume": {"l40s-4": {"capex_usd": 60000}}}


def test_what_owned_servers_cost_is_with_their_electricity(tmp_path: Path) -> None:
    """The same server where electricity is dear and where it is cheap: dollars are those of the run, and are shown so."""
    data = two_sites(("l40s-4", "l40s-4"), OWNED, minimise="cost") | PRICED
    problem = read_problem(written(tmp_path, data))
    assert all(fleet.electricity for fleet in problem.fleets)
    assert problem.fleets[0].usd_per_h == problem.fleets[1].usd_per_h
    found = plan(problem, ALONE)
    assert found.chosen is not None
    assert found.chosen.fleet.choices["pools.decode.runs_on"] == "y.gpu"
    assert "costs less an hour, servers and their electricity together" in found.claim
    assert found.study is not None
    assert found.study.money is not None
    assert found.usd_per_h is not None
    a_task, an_hour = found.study.money.usd_per_task.value, found.usd_per_h.value
    assert a_task is not None
    assert an_hour == pytest.approx(a_task * (found.study.tasks_per_s.value or 0) * 3600, rel=1e-3)
    floor = least_spent("cost", problem.system(1), None)
    assert (found.chosen.fleet.usd_per_h or 0) < floor < an_hour


def test_a_rented_fleet_costs_what_its_servers_do(tmp_path: Path) -> None:
    """Beside owned ones that cost more it is chosen, and that they cannot cost less ends the search."""
    data = two_sites(("l40s-4", "hgx-a100-8"), (OWNED[0], {"usd_per_kwh": 0.60}), minimise="cost")
    data["assume"] = {"l40s-4": {"capex_usd": 1e6}}
    found = planned(tmp_path, data)
    assert found.chosen is not None
    assert found.chosen.fleet.choices["pools.decode.runs_on"] == "y.gpu"
    assert found.dearer == 1
    assert found.usd_per_h is None
    assert not found.chosen.fleet.electricity


def test_one_search_goes_on_from_another_for_something_else(tmp_path: Path) -> None:
    """What is kept of a replication does not depend on what is minimised."""
    data = two_sites(("l40s-4", "l40s-4"), OWNED, minimise="tst") | PRICED
    data["pools"]["decode"]["runs_on"] = "y.gpu"
    kept = PlanOptions(processes=1, out=tmp_path / "out")
    planned(tmp_path, data, kept)
    before = {file: file.read_bytes() for file in (tmp_path / "out" / "runs").rglob("search-0-*.json")}
    data["plan"]["minimise"] = "cost"
    again, anew = planned(tmp_path, data, kept), planned(tmp_path, data)
    assert as_json(again) == as_json(anew)
    assert before
    assert all(file.read_bytes() == rows for file, rows in before.items())


def test_a_budget_is_one_for_servers_and_says_so(tmp_path: Path) -> None:
    data = two_sites(("l40s-4", "l40s-4"), OWNED, max_usd_per_h=1.5) | PRICED
    assert "1.71 USD an hour in servers alone of 1.50" in planned(tmp_path, data).binding


def test_owned_servers_whose_electricity_is_unknown_are_refused(tmp_path: Path) -> None:
    """Unless it is free, or nobody counts it: then they are compared by what they cost alone."""
    data = two_sites(("mac-m4-max", "mac-m4-max"), OWNED) | {"assume": {"mac-m4-max": {"capex_usd": 6000}}}
    with pytest.raises(DescriptionError, match=r"money is unavailable: .*base_w.*set usd_per_kwh to 0"):
        planned(tmp_path, data)
    free = two_sites(("mac-m4-max", "mac-m4-max"), ({"usd_per_kwh": 0, "cost": {"basis": "own"}},) * 2)
    found = planned(tmp_path, free | {"assume": data["assume"]})
    assert found.chosen is not None
    assert "no other of the 2 that does costs less." in found.claim


def test_co2_that_is_unknown_is_refused(tmp_path: Path) -> None:
    data = two_sites(("l40s-4", "l40s-4"), ({"embodied": True}, {"embodied": True}), minimise="co2")
    with pytest.raises(DescriptionError, match=r"CO2 is unavailable: .*embodied_kgco2"):
        planned(tmp_path, data)


def test_the_search_sees_the_hours_of_the_scenario(tmp_path: Path) -> None:
    """A short cohort would see the first hour alone, at a third of the grams."""
    data = two_sites(("l40s-4", "l40s-4"), ({"hourly": {"gco2_per_kwh": HOURS}},) * 2, minimise="co2")
    data["workload"] |= {"tasks": 400, "arrivals": {"kind": "poisson", "rate_per_s": 0.02}}
    problem = read_problem(written(tmp_path, data))
    options = Options(1, processes=1)
    with workers(options) as those:
        (seen,) = Simulation(problem, conditions_of(problem, 1e-3), options, those).replicate(0, 0, range(1))
    assert seen.over == pytest.approx(400, abs=5)


def test_the_preview_is_instant_and_says_what_it_is(tmp_path: Path) -> None:
    found = preview(read_problem(written(tmp_path, servers(range(1, 9)))))
    assert [each.fleet.usd_per_h for each in found] == sorted(each.fleet.usd_per_h or 0 for each in found)
    used = [each.utilisation["decode"] for each in found]
    assert used == sorted(used, reverse=True)
    assert found[-1].holds
    assert all(each.bottleneck == "decode" for each in found)


def test_of_each_reason_the_fleet_that_came_nearest_is_shown(tmp_path: Path) -> None:
    """One server is already over the budget, and no more servers say more; too few to do the work say most as many."""
    fleets = read_problem(written(tmp_path, servers([1, 2, 3, 4]))).fleets
    for by, nearest in (("budget", 0), ("power", 0), ("inventory", 0), ("memory", 0), ("capacity", 3), ("alone", 3)):
        judged = [Judged(fleet, "FAIL", by, "") for fleet in fleets]  # type: ignore[arg-type]
        assert [each.fleet.number for each in _one_each(judged)] == [nearest]


def test_a_preview_as_json_is_json_that_says_what_it_is(tmp_path: Path) -> None:
    """Also of a fleet that cannot keep up, whose waits have no end: JSON knows no infinity."""
    file = written(tmp_path, servers([4, 8]))
    fleets = preview(read_problem(file))
    found = json.loads(printed("plan", str(file), "--preview", "--json"))
    assert found["method"] == "queueing approximation, no simulation, no certificate"
    assert [each["fleet"]["servers"] for each in found["fleets"]] == [each.fleet.servers for each in fleets]
    assert [each["attained"] for each in found["fleets"]] == [each.attained for each in fleets]
    endless = replace(fleets[0], e2e_mean_s=math.inf)
    assert json.loads(as_json(Previews("a", (endless,))))["fleets"][0]["e2e_mean_s"] is None


# ---- losses


@pytest.mark.slow
def test_a_fleet_that_survives_is_certified_without_any_one_server(tmp_path: Path) -> None:
    found = survive(read_problem(written(tmp_path, servers(range(1, 6)))), "server", ALONE)
    assert found.plan.chosen is not None
    assert not found.survives
    (after,) = found.losses.values()
    assert after.verdict != "PASS"
    assert found.hardened is not None
    assert found.hardened.chosen is not None
    (kept,) = found.hardened.chosen.fleet.servers.values()
    (bought,) = found.plan.chosen.fleet.servers.values()
    assert kept == bought + 1
    assert {missed.load for missed in found.hardened.chosen.missed} == {OWN, "the loss of a gpu-tier server"}


def test_a_loss_is_the_run_without_it(tmp_path: Path) -> None:
    """What is judged after the loss of a server is the very system of one server fewer; of one there is nothing left."""
    problem = read_problem(written(tmp_path, servers([1, 3])))
    (loss,) = losses_of(problem, "server")
    hardened = with_losses(problem, [loss])
    assert not hardened.survives(0, loss.name)
    assert hardened.survives(1, loss.name)
    left = hardened.system(1, loss.name)
    two = read_problem(written(tmp_path, servers([2]), "two")).system(0)
    assert left.scenario == two.scenario
    (device,) = losses_of(problem, "device")
    assert with_losses(problem, [device]).system(1, device.name).engine_pools()["decode"].replicas == 2
    conditions = conditions_of(hardened, 1e-6)
    assert [by for by, _ in conditions.unsatisfied(hardened.fleets[0])][-1] == "loss"
