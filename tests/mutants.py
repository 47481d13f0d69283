"""Do the tests have teeth? Seeded faults, one at a time, in a copy of hsim; and which fast tests catch each.

`python tests/mutants.py [part of a name]` runs the fast tests against each fault and prints a table.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FAST = ("test_exact.py", "test_laws.py", "test_workload.py", "test_bad_input.py")
TIMEOUT_S = 600


@dataclass(frozen=True)
class Mutant:
    """One small fault: `old` becomes `new` in a file, wherever line breaks fall. `test` catches it quickly."""

    name: str
    file: str
    old: str
    new: str
    test: str


REPLICA = "test_exact.py::test_replica_equals_brute_force_with_arrivals_on_boundaries"
CORES = "test_exact.py::test_cores_are_exactly_a_first_come_first_served_queue[hyper-exponential-2]"
LINK = "test_exact.py::test_link_is_exactly_processor_sharing[continuous-0.375]"
KERNELS = "test_exact.py::test_composed_costs_are_the_sum_of_their_kernels[llama-3.1-70b on four]"
SEGMENT = "test_exact.py::test_segment_is_every_step_asked_for_anew_for_exactly_as_long_as_it_says"
ALONE = "test_exact.py::test_alone_a_task_takes_the_sum_of_its_parts"
BOOKS = "test_laws.py::test_every_joule_is_booked_once"
LATENCY = "test_laws.py::test_latencies_and_objectives_are_what_their_definitions_say"
UNMOVED = "test_laws.py::test_tasks_do_not_depend_on_the_fleet_nor_on_tasks_or_classes_beside_them"

MUTANTS = (
    Mutant(
        "cores: last come first served",
        "engine/cores.py",
        "self.waiting.popleft()",
        "self.waiting.pop()",
        "test_exact.py::test_cores_are_exactly_a_first_come_first_served_queue[hyper-exponential-2]",
    ),
    Mutant(
        "host: a busy core takes the power of all",
        "engine/cores.py",
        "self.power.dynamic_w(self.busy) / self.busy if",
        "self.power.dynamic_w(self.busy) if",
        "test_exact.py::test_jobs_share_the_power_of_their_host_equally_at_each_instant",
    ),
    Mutant(
        "host: joules at the load of a job's start",
        "engine/cores.py",
        "self._joules = self.joules_per_core()",
        "self._joules = self._joules",
        "test_exact.py::test_jobs_share_the_power_of_their_host_equally_at_each_instant",
    ),
    Mutant(
        "link: bandwidth not shared",
        "engine/link.py",
        "self._shared_bytes += (self.env.now - self._since_s) * self.spec.bytes_per_s / len(self._ends)",
        "self._shared_bytes += (self.env.now - self._since_s) * self.spec.bytes_per_s",
        "test_exact.py::test_link_is_exactly_processor_sharing[continuous-0.375]",
    ),
    Mutant(
        "link: no latency",
        "engine/link.py",
        "self.env.now + self.spec.latency_s, WORK_ENDS",
        "self.env.now, WORK_ENDS",
        "test_exact.py::test_link_is_exactly_processor_sharing[continuous-0.375]",
    ),
    Mutant(
        "link: a message weighs nothing beside its tokens",
        "engine/life.py",
        "return pipeline.bytes_per_message + pipeline.bytes_per_token * tokens",
        "return pipeline.bytes_per_token * tokens",
        "test_exact.py::test_alone_a_task_takes_the_sum_of_its_parts",
    ),
    Mutant(
        "life: nobody waits outside",
        "engine/life.py",
        "if isinstance(visit, Job) and visit.outside_wait_s and not visit.outcome:",
        "if False:",
        "test_exact.py::test_alone_a_task_takes_the_sum_of_its_parts",
    ),
    Mutant(
        "instant: arrivals before the steps that end",
        "engine/environment.py",
        "WORK_ENDS = 0",
        "WORK_ENDS = 1 << 42",
        "test_exact.py::test_replica_equals_brute_force_with_arrivals_on_boundaries",
    ),
    Mutant(
        "segment: on a boundary the step has not ended",
        "costs/shapes.py",
        "while start_s + self.seconds_of(steps + 1) <= now_s:",
        "while start_s + self.seconds_of(steps + 1) < now_s:",
        "test_exact.py::test_steps_by_inverts_boundaries_to_the_last_bit",
    ),
    Mutant(
        "segment: growth counted once too often",
        "costs/shapes.py",
        "return steps * (self.joules + 0.5 * (steps - 1) * self.joules_growth)",
        "return steps * (self.joules + 0.5 * steps * self.joules_growth)",
        "test_exact.py::test_closed_forms_of_a_segment_equal_naive_accumulation",
    ),
    Mutant(
        "replica: cut one step late",
        "engine/replica.py",
        "run.passed(self.env.now) + 1",
        "run.passed(self.env.now) + 2",
        "test_exact.py::test_replica_equals_brute_force_with_arrivals_on_boundaries",
    ),
    Mutant(
        "replica: coalescing ignores arrivals",
        "engine/replica.py",
        "elif joined and not self._run.shape.chunks",
        "elif False and not self._run.shape.chunks",
        "test_exact.py::test_replica_equals_brute_force_with_arrivals_on_boundaries",
    ),
    Mutant(
        "replica: coalescing ignores the end of the segment",
        "engine/replica.py",
        "min(plan.steps, segment.valid_steps)",
        "min(plan.steps, 1e9)",
        "test_exact.py::test_replica_equals_brute_force_with_arrivals_on_boundaries",
    ),
    Mutant(
        "replica: a token too many",
        "engine/replica.py",
        "self._step + prompt.output_tokens - prompt.generated_tokens",
        "self._step + prompt.output_tokens",
        "test_exact.py::test_replica_equals_brute_force_with_arrivals_on_boundaries",
    ),
    Mutant(
        "replica: KV given back for what was used only",
        "engine/kv.py",
        "self.free_blocks += prompt.own_blocks",
        "self.free_blocks += max(0, prompt.own_blocks - 1)",
        "test_exact.py::test_replica_equals_brute_force_with_arrivals_on_boundaries",
    ),
    Mutant(
        "replica: joules of context off by one token",
        "engine/shares.py",
        "offset = prompt.prefill_tokens + 1 - prompt.first_step",
        "offset = prompt.prefill_tokens - prompt.first_step",
        "test_exact.py::test_replica_equals_brute_force_with_arrivals_on_boundaries",
    ),
    Mutant(
        "replica: sum of steps off",
        "engine/shares.py",
        "triangle = steps * (steps - 1) / 2",
        "triangle = steps * (steps + 1) / 2",
        "test_exact.py::test_replica_equals_brute_force_with_arrivals_on_boundaries",
    ),
    Mutant(
        "replica: a router sees nothing between changes",
        "engine/replica.py",
        "tokens -= (run.passed(self.env.now) - run.taken) * (run.shape.decodes + run.shape.chunk_tokens)",
        "tokens -= 0",
        "test_laws.py::test_outstanding_tokens_fall_step_by_step",
    ),
    Mutant(
        "replica: host cores busy for good",
        "engine/replica.py",
        "self.host.change(-self.spec.host_cores)",
        "self.host.change(0)",
        "test_laws.py::test_littles_law_is_an_identity",
    ),
    Mutant(
        "batching: one sequence too many",
        "policies/batching.py",
        "admitted, room = 0, view.max_num_seqs - view.decodes - len(view.prefilling)",
        "admitted, room = 0, view.max_num_seqs + 1 - view.decodes - len(view.prefilling)",
        "test_exact.py::test_replica_equals_brute_force_with_arrivals_on_boundaries",
    ),
    Mutant(
        "batching: decodes take no budget",
        "policies/batching.py",
        "budget = view.max_num_batched_tokens - view.decodes",
        "budget = view.max_num_batched_tokens",
        "test_exact.py::test_replica_equals_brute_force_with_arrivals_on_boundaries",
    ),
    Mutant(
        "batching: KV of prompts only",
        "engine/replica.py",
        "if needed <= kv.free_blocks:",
        "if needed - due <= kv.free_blocks:",
        "test_exact.py::test_replica_equals_brute_force_with_arrivals_on_boundaries",
    ),
    Mutant(
        "batching: a choice held a step too long",
        "policies/batching.py",
        "first.prompt_left // chunks[0] if",
        "first.prompt_left // chunks[0] + 1 if",
        "test_exact.py::test_replica_equals_brute_force_with_arrivals_on_boundaries",
    ),
    Mutant(
        "routing: the last of equals",
        "policies/routing.py",
        "loads = [device.outstanding_tokens for device in pool.devices] return loads.index(min(loads))",
        "loads = [device.outstanding_tokens for device in pool.devices]\n    return len(loads) - 1 - loads[::-1].index(min(loads))",
        "test_laws.py::test_routers_choose_by_the_state_at_the_last_boundary",
    ),
    Mutant(
        "ledger: supplies that make joules",
        "metrics/ledger.py",
        "entry.joules / self.psu_efficiency",
        "entry.joules * self.psu_efficiency",
        "test_laws.py::test_every_joule_is_booked_once",
    ),
    Mutant(
        "power: sum of steps off",
        "metrics/power.py",
        "n * (n - 1) / 2",
        "n * n / 2",
        "test_laws.py::test_every_joule_is_booked_once",
    ),
    Mutant(
        "accounts: base load of one server",
        "metrics/accounts.py",
        "base_w=tier.count * figures",
        "base_w=figures",
        "test_exact.py::test_alone_a_task_takes_the_sum_of_its_parts",
    ),
    Mutant(
        "accounts: spare accelerators draw nothing",
        "metrics/accounts.py",
        "spare = tier.count * tier.accelerators_per_server - in_use",
        "spare = 0",
        "test_exact.py::test_alone_a_task_takes_the_sum_of_its_parts",
    ),
    Mutant(
        "trace: rate_scale slows down",
        "workload/tasks.py",
        "trace.arrival_s[:count] / arrivals.rate_scale",
        "trace.arrival_s[:count] * arrivals.rate_scale",
        "test_workload.py::test_rate_scale_2_makes_the_same_requests_arrive_twice_as_fast",
    ),
    Mutant(
        "tasks: answers not cut",
        "workload/tasks.py",
        "outputs = np.minimum(outputs, self.kind.max_output_tokens)",
        "outputs = np.minimum(outputs, 1 << 40)",
        "test_workload.py::test_answers_longer_than_their_limit_are_cut_and_counted",
    ),
    Mutant(
        "tasks: a class moves another's draws",
        "workload/tasks.py",
        "self._uniforms(key, number)[ids]",
        "self._uniforms(key, number)[: len(ids)]",
        "test_laws.py::test_tasks_do_not_depend_on_the_fleet_nor_on_tasks_or_classes_beside_them",
    ),
    Mutant(
        "streams: one for all purposes",
        "workload/streams.py",
        "crc32(purpose.encode())",
        "crc32(purpose[:0].encode())",
        "test_workload.py::test_classes_have_their_shares_and_tools_their_weights",
    ),
    Mutant(
        "streams: p95 is p97.5",
        "workload/streams.py",
        "_NORMAL.inv_cdf(0.95)",
        "_NORMAL.inv_cdf(0.975)",
        "test_workload.py::test_lognormal_lengths_have_their_median_and_p95",
    ),
    Mutant(
        "costs: one all-reduce per layer",
        "costs/composed.py",
        "reduces = mixers + model.dense_layers",
        "reduces = model.dense_layers",
        "test_exact.py::test_composed_costs_are_the_sum_of_their_kernels[llama-3.1-70b on four]",
    ),
    Mutant(
        "costs: every device keeps all KV heads",
        "costs/composed.py",
        "max(1.0, model.kv_heads / ways)",
        "model.kv_heads",
        "test_exact.py::test_composed_costs_are_the_sum_of_their_kernels[llama-3.1-70b on four]",
    ),
    Mutant(
        "costs: no host time for prompts",
        "costs/composed.py",
        "self._host_sequence_s * (decodes + shape.chunks)",
        "self._host_sequence_s * decodes",
        "test_exact.py::test_composed_costs_are_the_sum_of_their_kernels[llama-3.1-70b on four]",
    ),
    Mutant(
        "costs: form held a step too long",
        "costs/composed.py",
        "math.floor(start / -growth) + 1",
        "math.floor(start / -growth) + 2",
        "test_exact.py::test_segment_is_every_step_asked_for_anew_for_exactly_as_long_as_it_says",
    ),
    Mutant(
        "costs: the cap may bind unseen",
        "costs/composed.py",
        "steps_until_negative(*side))",
        "math.inf)",
        "test_exact.py::test_segment_is_every_step_asked_for_anew_for_exactly_as_long_as_it_says",
    ),
    Mutant(
        "memory: embeddings forgotten",
        "costs/memory.py",
        "embeddings * ELEMENT_BYTES[others]",
        "0.0",
        "test_exact.py::test_memory_that_the_weights_leave_is_kv_cache_to_the_token",
    ),
    Mutant(
        "cpu: load power linear",
        "costs/cpu.py",
        "(busy_cores / self.cores) ** self.exponent",
        "(busy_cores / self.cores)",
        "test_exact.py::test_jobs_share_the_power_of_their_host_equally_at_each_instant",
    ),
    Mutant(
        "kv: shared blocks are never let go",
        "engine/kv.py",
        "shared[0] -= 1\n            if not shared[0]:",
        "shared[0] -= 1\n            if False:",
        "test_engine_depth.py::test_nothing_leaks",
    ),
    Mutant(
        "replica: the oldest is preempted",
        "engine/replica.py",
        "self._preempt(next(reversed(self.running)))",
        "self._preempt(next(iter(self.running)))",
        "test_exact.py::test_replica_equals_brute_force_with_arrivals_on_boundaries",
    ),
    Mutant(
        "replica: preemption forgets what was generated",
        "engine/replica.py",
        "prompt.prefill_tokens = prompt.prompt_left = prompt.input_tokens + prompt.generated_tokens",
        "prompt.prefill_tokens = prompt.prompt_left = prompt.input_tokens",
        "test_exact.py::test_replica_equals_brute_force_with_arrivals_on_boundaries",
    ),
    Mutant(
        "replica: blocks due are not taken",
        "engine/replica.py",
        "needed = cycles * self._decodes\n",
        "needed = 0\n",
        "test_exact.py::test_replica_equals_brute_force_with_arrivals_on_boundaries",
    ),
    Mutant(
        "life: nobody is given up",
        "engine/life.py",
        "if not visit.done.triggered:",
        "if False:",
        "test_life.py::test_who_is_given_up_leaves_a_queue_at_once_a_replica_at_the_next_boundary_and_a_core_when_it_is_done",
    ),
)

QUICK = (
    "cores: last come first served",
    "link: bandwidth not shared",
    "replica: cut one step late",
    "costs: one all-reduce per layer",
    "replica: a token too many",
)


def mutate(text: str, mutant: Mutant) -> str:
    """The text with the fault in it. Spaces and line breaks do not count in finding its place."""
    tokens = re.findall(r"\w+|[^\w\s]", mutant.old)
    pattern = r"\s*".join(map(re.escape, tokens))
    found = re.findall(pattern, text)
    assert len(found) == 1, (
        f"{mutant.name}: {mutant.old!r} stands {len(found)} times in {mutant.file}; mend tests/mutants.py"
    )
    return re.sub(pattern, lambda _: mutant.new, text)


def copy_with(mutant: Mutant | None, folder: Path) -> None:
    """A copy of hsim and its tests, with the fault if there is one."""
    skip = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for name in ("hsim", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for name in ("hardware_profiles", "models", "scenarios", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    if mutant:
        file = folder / "hsim" / mutant.file
        file.write_text(mutate(file.read_text(), mutant))


def failures(mutant: Mutant | None, tests: Sequence[str], at_most: int = 1) -> list[str]:
    """The tests that fail with the fault, or `hangs`. An empty list: it survived."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        copy_with(mutant, folder)
        command = [sys.executable, "-m", "pytest", "-q", "-rf", "--no-header", "--tb=no", f"--maxfail={at_most}"]
        command += ["-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]
        env = os.environ | {
            "HYPOTHESIS_PROFILE": "mutants",
            "HSIM_TESTED_IN": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        env = {key: value for key, value in env.items() if not key.startswith("PYTEST_")}
        try:
            done = subprocess.run(
                command, cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return ["hangs"]
    if done.returncode == 0:
        return []
    failed = re.findall(r"^FAILED tests/(\S+)", done.stdout, re.MULTILINE)
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert failed, f"no test failed, and yet: {done.stdout}{done.stderr}"
    return list(dict.fromkeys(re.sub(r"\[.*", "", test) for test in failed))


def main() -> None:
    """Print which fast tests catch each fault."""
    wanted = [m for m in MUTANTS if not sys.argv[1:] or any(part in m.name for part in sys.argv[1:])]
    assert failures(None, FAST) == [], "the tests fail without any fault"
    survivors = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, failed in zip(wanted, pool.map(lambda m: failures(m, FAST, at_most=12), wanted), strict=True):
            survivors += not failed
            short = ", ".join(test.replace(".py::test_", ": ").removeprefix("test_") for test in failed)
            print(f"{mutant.name:52} {short or 'SURVIVED'}", flush=True)
    print(f"{len(wanted) - survivors} of {len(wanted)} faults caught")
    sys.exit(survivors > 0)


if __name__ == "__main__":
    main()
