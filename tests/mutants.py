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
FAST = ("test_exact.py", "test_sharing.py", "test_life.py", "test_laws.py", "test_workload.py", "test_bad_input.py")
TIMEOUT_S = 120


@dataclass(frozen=True)
class Mutant:
    """One small fault: `old` becomes `new` in a file, wherever line breaks fall. `test` catches it quickly."""

    name: str
    file: str
    old: str
    new: str
    test: str


GAP = "test_tool_gaps.py"
SWITCH = "test_precision.py::test_laws_hold_whatever_goes_over_and_back"
STAYS = "test_precision.py::test_nobody_goes_back_before_having_stayed"
PIPELINE = "test_special_chips.py::test_alone_a_sequence_passes_one_stage_after_another_while_the_others_rest"
CHIPS = "test_special_chips.py::test_so_many_chips_hold_a_model_and_one_fewer_do_not"
POOLED = "test_memory_pools.py::test_bytes_of_a_pool_are_conserved_and_laws_hold_however_little_it_has"
SLEEP = "test_power_states.py"
REPLICA = "test_exact.py::test_replica_equals_brute_force_with_arrivals_on_boundaries"
CORES = "test_exact.py::test_cores_are_exactly_a_first_come_first_served_queue[hyper-exponential-2]"
SHARED_POWER = "test_exact.py::test_jobs_share_the_power_of_their_host_equally_at_each_instant"
CLOCK = "test_sharing.py::test_contended_cores_are_exactly_a_virtual_clock"
BATCHES = "test_sharing.py::test_batches_on_cores_are_exactly_those_of_a_full_look_at_the_queue"
LINK = "test_exact.py::test_link_is_exactly_processor_sharing[continuous-0.375]"
FAIR = "test_sharing.py::test_rates_are_max_min_fair"
NETWORK = "test_sharing.py::test_a_network_moves_bytes_exactly_max_min_fairly"
KERNELS = "test_exact.py::test_composed_costs_are_the_sum_of_their_kernels[llama-3.1-70b on four]"
SEGMENT = "test_exact.py::test_segment_is_every_step_asked_for_anew_for_exactly_as_long_as_it_says[llama on one]"
WINDOW = "test_exact.py::test_segment_is_every_step_asked_for_anew_for_exactly_as_long_as_it_says[a window]"
ALONE = "test_exact.py::test_alone_a_task_takes_the_sum_of_its_parts"
BOOKS = "test_laws.py::test_every_joule_is_booked_once"
LATENCY = "test_laws.py::test_latencies_and_objectives_are_what_their_definitions_say"
UNMOVED = "test_laws.py::test_tasks_do_not_depend_on_the_fleet_nor_on_tasks_or_classes_beside_them"
BATCHER = "test_laws.py::test_batches_keep_their_limits_and_no_replica_holds_back_work"
PREFIXES = "test_laws.py::test_kv_blocks_of_prompts_with_common_prefixes_are_free_shared_or_own"
ROUNDS = "test_life.py::test_a_round_computes_what_the_cache_has_not_kept_of_the_one_before"
GIVEN_UP = "test_life.py::test_who_is_given_up_leaves_a_queue_at_once_a_replica_at_the_next_boundary_and_a_core_when_it_is_done"
USERS = "test_life.py::test_a_user_thinks_asks_and_waits_for_the_answer"
OUT = "test_elastic.py::test_tasks_tokens_and_joules_keep_their_laws_whatever_leaves_service"
CUT = "test_elastic.py::test_a_task_that_is_lost_is_served_from_its_beginning_when_its_replica_is_back"
HANDED_OVER = "test_life.py::test_alone_with_a_prefill_pool_a_task_takes_the_sum_of_its_parts"
FAR = "test_sites.py::test_alone_a_task_takes_a_round_trip_and_its_bytes_longer"
CROSSED = "test_sites.py::test_messages_each_way_do_not_share_their_bandwidth"
RESENT = "test_sites.py::test_a_network_moves_and_pays_for_what_is_sent_again_half_at_each_end"
REPEATS = "test_sites.py::test_repeats_are_the_inverse_of_their_law"
PUE = "test_sites.py::test_each_site_has_a_pue_of_its_own"
HOURS = "test_economics.py::test_two_hours_by_hand_later_in_the_day"
PAID = "test_economics.py::test_rent_holds_electricity_and_each_site_is_paid_in_its_own_way"
EMBODIED = "test_economics.py::test_embodied_carbon_is_shared_out_over_the_lifetime_and_named"
ROUTED = "test_keeping.py::test_a_router_of_accuracy_a_saves_a_times_what_the_oracle_saves"
AGAIN = "test_keeping.py::test_an_answer_that_is_not_good_enough_costs_both_models_and_counts_once"
CROWD = "test_keeping.py::test_a_full_edge_sends_tasks_on_and_a_patient_one_keeps_them"


def choice(router: str) -> str:
    return f"test_laws.py::test_routers_choose_by_the_state_at_the_last_boundary[{router}]"


MUTANTS = (
    # cores and hosts
    Mutant("cores: last come first served", "engine/cores.py", "[self.waiting.popleft()]", "[self.waiting.pop()]", CORES),
    Mutant("cores: the last job waits for good", "engine/cores.py", "following = self._next_batch() if self.waiting else []", "following = self._next_batch() if len(self.waiting) > 1 else []\n        if self.waiting and not following:\n            self.waiting.clear()", CORES),
    Mutant("cores: contention forgets that a core is free", "engine/cores.py", "if cores < 0: self._rearm()", "if cores < -99:\n                self._rearm()", CLOCK),
    Mutant("cores: contention by all cores, not by the others", "engine/cores.py", "max(0, n - 1) / max(1, cores - 1)", "n / max(1, cores - 1)", CLOCK),
    Mutant("cores: contention spares jobs already running", "engine/cores.py", "clock.worked_s += clock.speed * (now - self._since_s)", "clock.worked_s += now - self._since_s", CLOCK),
    Mutant("cores: work ends when it was first foreseen", "engine/cores.py", "if self._slowed and end_s > self.env.now:", "if False:", CLOCK),
    Mutant("cores: all work slows down by one curve", "engine/cores.py", "curve = contention or self._own", "curve = self._own", CLOCK),
    Mutant("cpu: a curve of contention is steps", "costs/cpu.py", "return times + (longer - times) * (part - at) / (following - at)", "return times", CLOCK),
    Mutant("cores: a batch may be of several operations", "engine/cores.py", "if job.operation == first.operation]", "if job]", BATCHES),
    Mutant("cores: a batch waits for its window though it is full", "engine/cores.py", "if len(alike) < self.max_batch and self.env.now", "if self.env.now", BATCHES),
    Mutant("cores: nobody looks when a window is over", "engine/cores.py", "self._dispatch() # those that wait", "pass  # those that wait", BATCHES),
    Mutant("cores: every job of a batch pays the base", "engine/cores.py", "seconds += sum(job.seconds - job.base_s", "seconds += sum(job.seconds", BATCHES),
    Mutant("cores: the first of a batch pays the base alone", "engine/cores.py", "base_s = batch[0].base_s / len(batch)", "base_s = batch[0].base_s", BATCHES),
    Mutant("host: a busy core takes the power of all", "engine/cores.py", "power.dynamic_w(n) / max(1, n)", "power.dynamic_w(n)", SHARED_POWER),
    Mutant("host: joules at the load of a job's start", "engine/cores.py", "self._joules = self.joules_per_core()", "self._joules = self._joules + 0.0", SHARED_POWER),
    # links
    Mutant("link: bandwidth not shared", "engine/link.py", "* self.spec.bytes_per_s / len(ends)\n        else", "* self.spec.bytes_per_s\n        else", LINK),
    Mutant("link: a stale timer fires", "engine/link.py", "return # a transfer has joined since self._advance() moving = heappop", "pass\n        self._advance()\n        moving = heappop", LINK),
    Mutant("link: no latency", "engine/link.py", "self.env.now + self.spec.latency_s, WORK_ENDS", "self.env.now, WORK_ENDS", LINK),
    Mutant("link: the widest link decides", "engine/link.py", "tightest = min(", "tightest = max(", FAIR),
    Mutant("link: a fixed transfer leaves its links as they were", "engine/link.py", "left[link] -= rate", "left[link] -= 0 * rate", FAIR),
    Mutant("link: a path's other links are free", "engine/link.py", "for link in m.path: left", "for link in m.path[:1]:\n                left", FAIR),
    Mutant("network: old rates after a join", "engine/link.py", "self._moving.append(moving)\n        self._rearm()", "self._moving.append(moving)\n        moving.rate = 1.0 if len(self._moving) > 1 else 0.0\n        if not moving.rate:\n            self._rearm()", NETWORK),
    Mutant("network: the latency of one link", "engine/link.py", "sum(self.specs[link].latency_s for link in path)", "self.specs[path[0]].latency_s", NETWORK),
    Mutant("network: the joules of one link", "engine/link.py", "sum(self.specs[link].joules_per_byte for link in moving.path)", "self.specs[moving.path[0]].joules_per_byte", NETWORK),
    # the life of a task
    Mutant("life: a message weighs nothing beside its tokens", "engine/life.py", "return pipeline.bytes_per_message + pipeline", "return pipeline", ALONE),
    Mutant("life: nobody waits outside", "engine/life.py", "and visit.outside_wait_s and not visit.outcome: yield env.at(min(env.now + visit.outside_wait_s, deadline_s), task.id)", "and visit.outside_wait_s < 0:\n                yield env.at(env.now, task.id)", ALONE),
    Mutant("life: deadlines count from each visit", "engine/life.py", "elif env.now < deadline_s: yield _submitted(env, visit, pool, deadline_s)", "elif env.now < deadline_s:\n            yield _submitted(env, visit, pool, env.now + task.timeout_s)", GIVEN_UP),
    Mutant("life: nobody is given up", "engine/life.py", "if not visit.done.triggered:", "if False:", GIVEN_UP),
    Mutant("life: nobody is given up while being served", "engine/life.py", "if deadline_s < math.inf: env.call_at(deadline_s, TASK_GOES_ON + visit.task", "if False:\n        env.call_at(deadline_s, TASK_GOES_ON + visit.task", GIVEN_UP),
    Mutant("life: who is given up on the way queues all the same", "engine/life.py", "elif env.now < deadline_s: yield _submitted(", "elif env.now < deadline_s + 60:\n            yield _submitted(", "test_life.py::test_who_is_given_up_on_the_way_never_queues"),
    Mutant("life: users do not think", "engine/life.py", "env.at(env.now + task.think_s, task.id)", "env.at(env.now, task.id)", USERS),
    Mutant("life: users do not wait for answers", "engine/life.py", "yield from live(env, log, pipeline, task)", "env.process(live(env, log, pipeline, task))", USERS),
    Mutant("life: a task sheds nothing", "engine/life.py", "place, outcome = pool.name, visit.outcome", "place, outcome = pool.name, Outcome.SERVED", "test_life.py::test_a_visit_that_finds_a_full_queue_is_shed[1]"),
    Mutant("life: keys and values weigh as much as text", "engine/life.py", "pipeline.kv_bytes_per_token * prompt.input_tokens", "pipeline.bytes_per_token * prompt.input_tokens", HANDED_OVER),
    Mutant("life: what a prefill replica kept stays there", "engine/life.py", "_let_go(pipeline, visit.source)", "pass", "test_life.py::test_keys_and_values_stay_where_they_were_made_until_they_have_arrived_elsewhere"),
    Mutant("life: half of the shared context is forgotten", "engine/life.py", "this.shared_tokens),) if", "this.shared_tokens // 2),) if", ROUNDS),
    # order of an instant, segments
    Mutant("instant: arrivals before the steps that end", "engine/environment.py", "WORK_ENDS = 0", "WORK_ENDS = 1 << 42", REPLICA),
    Mutant(
        "segment: on a boundary the step has not ended",
        "costs/shapes.py",
        "while start_s + (steps + 1) * (seconds + 0.5 * steps * growth) <= now_s:",
        "while start_s + (steps + 1) * (seconds + 0.5 * steps * growth) < now_s:",
        "test_exact.py::test_steps_by_inverts_boundaries_to_the_last_bit",
    ),
    Mutant(
        "segment: growth counted once too often",
        "costs/shapes.py",
        "return steps * (self.joules + 0.5 * (steps - 1) * self.joules_growth)",
        "return steps * (self.joules + 0.5 * steps * self.joules_growth)",
        "test_exact.py::test_closed_forms_of_a_segment_equal_naive_accumulation",
    ),
    # replica
    Mutant("replica: cut one step late", "engine/replica.py", "steps = run.passed(self.env.now) + 1", "steps = run.passed(self.env.now) + 2", REPLICA),
    Mutant("replica: coalescing ignores arrivals", "engine/replica.py", "elif joined and not self._run.shape.chunks", "elif False and not self._run.shape.chunks", REPLICA),
    Mutant("replica: coalescing ignores the end of the segment", "engine/replica.py", "plan.steps if plan.steps < segment.valid_steps else segment.valid_steps", "min(plan.steps, 1e9)", REPLICA),
    Mutant("replica: coalescing ignores blocks", "engine/replica.py", "run.steps = self._affordable(run)", "run.steps = max(run.steps, self._affordable(run))", REPLICA),
    Mutant("replica: a token too many", "engine/replica.py", "self._step + prompt.output_tokens - prompt.generated_tokens", "self._step + prompt.output_tokens - prompt.generated_tokens + 1", REPLICA),
    Mutant("replica: the oldest is preempted", "engine/replica.py", "self._preempt(next(reversed(self.running)))", "self._preempt(next(iter(self.running)))", REPLICA),
    Mutant("replica: who was preempted goes to the end of the queue", "engine/replica.py", "self.waiting.appendleft(prompt)", "self.waiting.append(prompt)", REPLICA),
    Mutant("replica: what was generated is not recomputed", "engine/replica.py", "prompt.prefill_tokens = prompt.prompt_left = prompt.input_tokens + prompt.generated_tokens", "prompt.prefill_tokens = prompt.prompt_left = prompt.input_tokens", REPLICA),
    Mutant("replica: preempted prompts keep their blocks", "engine/replica.py", "self.kv.release(prompt, self._tokens_held(prompt))\n        computed", "computed", REPLICA),
    Mutant("replica: decoding sequences need no blocks", "engine/replica.py", "needed = cycles * self._decodes", "needed = 0 * cycles * self._decodes", REPLICA),
    Mutant("replica: preempts as if nobody decoded", "engine/replica.py", "if needed > kv.free_blocks:", "if needed - due > kv.free_blocks:", REPLICA),
    Mutant("replica: a block is due a step late", "engine/replica.py", "self._due[(self._step - prompt.prefill_tokens) % self.kv.block_tokens] += 1", "self._due[(self._step - prompt.prefill_tokens + 1) % self.kv.block_tokens] += 1", REPLICA),
    Mutant("replica: who was preempted is outstanding no more", "engine/replica.py", "self._outstanding_tokens += prompt.prefill_tokens prompt.rank", "prompt.rank", choice("least-outstanding-tokens")),
    Mutant("replica: joules of context off by one token", "engine/shares.py", "offset = prompt.prefill_tokens + 1 - prompt.first_step", "offset = prompt.prefill_tokens - prompt.first_step", REPLICA),
    Mutant("replica: sum of steps off", "engine/shares.py", "triangle = steps * (steps - 1) / 2", "triangle = steps * (steps + 1) / 2", REPLICA),
    Mutant("shares: all joules by token, none by context", "engine/shares.py", "each_j = segment.context_joules", "each_j = 0.0", REPLICA),
    Mutant("shares: a chunk counts as one token", "engine/shares.py", "prompt.dynamic_j += chunk * (self.sums[0] - since[0])", "prompt.dynamic_j += self.sums[0] - since[0]", REPLICA),
    Mutant("shares: idle by token, not by sequence", "engine/shares.py", "each_s = seconds / sequences", "each_s = seconds / run.step_tokens", REPLICA),
    Mutant("replica: a router sees nothing between changes", "engine/replica.py", "tokens -= (run.passed(self.env.now) - run.taken)", "tokens -= 0 * (run.passed(self.env.now) - run.taken)", "test_laws.py::test_outstanding_tokens_fall_step_by_step"),
    Mutant("replica: host cores busy for good", "engine/replica.py", "self.host.change(-self.spec.host_cores)", "self.host.change(0)", "test_laws.py::test_littles_law_is_an_identity"),
    Mutant("replica: the queue has no limit", "engine/replica.py", "len(self.waiting) >= limit:", "len(self.waiting) > limit:", "test_life.py::test_a_visit_that_finds_a_full_queue_is_shed[1]"),
    Mutant("replica: who is given up stays in the batch", "engine/replica.py", "self._leaving.append(prompt) self._cut()", "self._leaving.append(prompt)", GIVEN_UP),
    # the KV cache
    Mutant("kv: a released block is lost", "engine/kv.py", "self.free_blocks += prompt.own_blocks", "self.free_blocks += max(0, prompt.own_blocks - 1)", REPLICA),
    Mutant("kv: part of a block is none", "engine/kv.py", "lacking = -(-tokens // self.block_tokens) - prompt.held_blocks\n        if lacking > 0:\n            self.take(lacking)", "lacking = tokens // self.block_tokens - prompt.held_blocks\n        if lacking > 0:\n            self.take(lacking)", REPLICA),
    Mutant("kv: the last token is found too", "engine/kv.py", "prompt.prefill_tokens - 1) // self.block_tokens", "prompt.prefill_tokens) // self.block_tokens", PREFIXES),
    Mutant("kv: what is cached is never evicted", "engine/kv.py", "while self._cached_blocks > self.free_blocks:", "while False:", PREFIXES),
    Mutant("kv: whoever leaves ends the sharing", "engine/kv.py", "if not shared[0]:", "if shared[0] < 99:", PREFIXES),
    Mutant("kv: found pieces are free still", "engine/kv.py", "self.free_blocks -= blocks self._shared[key]", "self._shared[key]", PREFIXES),
    Mutant("kv: published pieces are counted twice", "engine/kv.py", "prompt.own_blocks -= blocks", "prompt.own_blocks -= 0 * blocks", PREFIXES),
    Mutant("kv: a piece is found though the one before is not", "engine/kv.py", "if here < tokens: break", "if here < 0:\n                break", PREFIXES),
    Mutant("kv: a context keeps its last token", "engine/kv.py", "self._keep(key, min(tokens // self.block_tokens, prompt.held_blocks))", "self._keep(key, min((tokens + self.block_tokens) // self.block_tokens, prompt.held_blocks + 1))", ROUNDS),
    # power states
    Mutant("power: a server that boots is at rest", "engine/power.py", "if not math.isnan(self._up_at_s): return False", "pass", SLEEP),
    Mutant("power: a rest counts from the first", "engine/power.py", "self._rest_since_s = self.env.now self._arm()", "self._arm()", SLEEP),
    Mutant("power: engines load while their server boots", "engine/power.py", "self.under.wake() return", "self.under.wake()", SLEEP),
    Mutant("power: a cache outlives its power", "engine/replica.py", "self.kv.forget()", "pass", SLEEP),
    Mutant("power: an engine that unloads loads for nothing", "engine/power.py", "self._up_at_s = self.env.now + self.sleep.wake_s", "self._up_at_s = self.env.now", SLEEP),
    Mutant("ledger: servers that are off keep their fans running", "metrics/ledger.py", "base_j -= tier.rest.base_w", "base_j -= 0 * tier.rest.base_w", SLEEP),
    Mutant("ledger: cores idle in servers that are off", "metrics/ledger.py", "(window.seconds - rests[i].down_s)", "window.seconds", SLEEP),
    # what leaves service
    Mutant("failures: a step that broke off drew nothing", "engine/failures.py", "self._book_broken(run)\n        for", "for", CUT),
    Mutant("failures: a broken step ends when it would have", "engine/failures.py", "if self._under_way.pop(id(batch), None) is not None:", "if self._under_way.pop(id(batch), 1) is not None:", OUT),
    Mutant("failures: what was computed outlives its device", "engine/failures.py", "self.kv.lose()", "self.kv.forget()", OUT),
    Mutant("failures: lost attempts deliver", "engine/visits.py", "or self.discarded or self.outcome is Outcome.LOST", "or self.discarded", OUT),
    Mutant("failures: sent again once too often", "engine/life.py", "if visit.lost == pipeline.retries.max_retries", "if visit.lost == pipeline.retries.max_retries + 1", OUT),
    Mutant("failures: a lost visit is asked for anew", "metrics/measured.py", "rows_of({**visits, \"ready_s\": asked_s[which.ravel()]}, ~lost)", "rows_of(visits, ~lost)", CUT),
    Mutant("service: whoever goes takes new work", "engine/service.py", "if (member := self.members.get(d.index)) is None or member.is_open]", "if True]", OUT),
    Mutant("service: open before it is up", "engine/service.py", "opens = wanted and (self.is_open or self.sleeper.up)", "opens = wanted", "test_elastic.py::test_a_schedule_switches_servers_on_and_off_at_its_hours"),
    Mutant("power: who broke down while booting comes up", "engine/power.py", "if self._up_at_s != self.env.now: return", "pass", "test_elastic.py::test_what_breaks_down_while_it_boots_is_down_until_it_has_booted_again"),
    Mutant("scaling: fewer without a cooldown", "engine/scaling.py", "self.env.now - self._changed_s < self.spec.cooldown_s", "False", "test_elastic.py::test_a_reactive_scaler_follows_a_burst_and_lets_go_after_its_cooldown"),
    Mutant("governor: the step under way goes on for good", "engine/governing.py", "replica.replan()", "pass", "test_elastic.py::test_a_lower_cap_holds_from_the_next_step_on"),
    # contexts in tool gaps
    Mutant("gaps: what is held is free still", "engine/kv.py", "self.free_blocks -= blocks self._kept[key] = blocks", "self._kept[key] = blocks", GAP),
    Mutant("gaps: what went to host memory stays here too", "engine/gaps.py", "del self._moving[key] self._drop(key)", "del self._moving[key]", GAP),
    Mutant("gaps: a context comes back at once", "engine/gaps.py", "self._returning[prompt] = None back = self._way.back(", "return None\n        back = self._way.back(", GAP),
    # other weights, pipelines, memories
    Mutant("switch: going over takes no time", "engine/precision.py", "segment.seconds + due.seconds", "segment.seconds", SWITCH),
    Mutant("switch: every step after it pays", "engine/precision.py", "self._due = None return Segment", "return Segment", STAYS),
    Mutant("switch: nobody stays for long", "engine/precision.py", "if now_s - self._since_s < spec.stay_s:", "if False:", STAYS),
    Mutant("pipeline: stages that rest work too", "costs/composed.py", "self._groups * min(self._stages, max(1, math.ceil(m / self._groups)))", "self._groups * self._stages", PIPELINE),
    Mutant("pipeline: every stage holds a copy", "costs/memory.py", "placement.data_parallel * each_group", "placement.data_parallel * placement.pipeline_parallel * each_group", CHIPS),
    Mutant("memory: a pool is never full", "engine/memory.py", "return self.used_bytes + n_bytes <= self.capacity_bytes", "return True", POOLED),
    Mutant("memory: what is read back stays", "engine/memory.py", "self._use(-n_bytes)", "self._use(0 * n_bytes)", POOLED),
    Mutant("gaps: who held it is gone, and it stays", "engine/life.py", "replica.abandon((\"task\", task.id))", "pass", GAP),
    Mutant("gaps: the last that runs gives way to those that wait", "engine/replica.py", "if len(self.running) > 1 or not kv.let_go_oldest():", "if True:", GAP),
    # policies
    Mutant("batching: one sequence too many", "policies/batching.py", "view.max_num_seqs - view.decodes - len", "view.max_num_seqs + 1 - view.decodes - len", REPLICA),
    Mutant("batching: decodes take no budget", "policies/batching.py", "budget = view.max_num_batched_tokens - view.decodes", "budget = view.max_num_batched_tokens", REPLICA),
    Mutant("batching: blocks of the whole prompt must be free", "policies/batching.py", "needed = _new_blocks(prompt, chunk, size)", "needed = _new_blocks(prompt, prompt.prompt_left, size)", BATCHER),
    Mutant("batching: a choice held a step too long", "policies/batching.py", "first.prompt_left // chunks[0] if", "first.prompt_left // chunks[0] + 1 if", REPLICA),
    Mutant("batching: the second in the queue may pass the first", "policies/batching.py", "if needed > free: break", "if needed > free:\n                continue", REPLICA),
    Mutant("routing: the last of equals", "policies/routing.py", "loads = [device.outstanding_tokens for device in pool.devices] return loads.index(min(loads))", "loads = [device.outstanding_tokens for device in pool.devices]\n    return len(loads) - 1 - loads[::-1].index(min(loads))", choice("least-outstanding-tokens")),
    Mutant("routing: the cache does not count", "policies/routing.py", "device.outstanding_tokens - device.cached_tokens", "device.outstanding_tokens", choice("prefix-affinity")),
    Mutant("routing: the shortest queue, whoever runs", "policies/routing.py", "loads = [(device.waiting, device.running)", "loads = [(device.waiting, 0)", choice("join-shortest-queue")),
    Mutant("routing: the worse of two", "policies/routing.py", "return min(first, second, key", "return max(first, second, key", choice("power-of-two")),
    Mutant("routing: least energy fills the emptiest", "policies/routing.py", "-device.running if has_room", "device.running if has_room", choice("least-energy")),
    # the books
    Mutant("ledger: idle while busy", "metrics/ledger.py", "device.idle_w * (window.seconds - drawn.seconds)", "device.idle_w * window.seconds", BOOKS),
    Mutant("ledger: host cores of engines not booked", "metrics/ledger.py", 'totals.add(f"{name}: host cores", "dynamic", device.tier, work_j * part)', "pass", BOOKS),
    Mutant("ledger: supplies that make joules", "metrics/ledger.py", "entry.joules / self.psu_efficiency", "entry.joules * self.psu_efficiency", BOOKS),
    Mutant("power: sum of steps off", "metrics/power.py", "n * (n - 1) / 2", "n * n / 2", BOOKS),
    Mutant("accounts: base load of one server", "metrics/accounts.py", "base_w=tier.count * figures", "base_w=figures", ALONE),
    Mutant("accounts: spare accelerators draw nothing", "metrics/accounts.py", "spare = tier.count * tier.accelerators_per_server - in_use", "spare = 0", ALONE),
    Mutant("result: time to first token without the way there", "metrics/measured.py", 'first["first_token_s"] - first["ready_s"]', 'first["first_token_s"] - first["queued_s"]', LATENCY),
    Mutant("result: a token per gap too many", "metrics/measured.py", 'rows["output_tokens"] - (first_stage is Stage.GENERATE)', 'rows["output_tokens"] - 0 * (first_stage is Stage.GENERATE)', LATENCY),
    # workload
    Mutant(
        "trace: rate_scale slows down",
        "workload/tasks.py",
        "trace.arrival_s[:count] / arrivals.rate_scale",
        "trace.arrival_s[:count] * arrivals.rate_scale",
        "test_workload.py::test_rate_scale_2_makes_the_same_requests_arrive_twice_as_fast",
    ),
    Mutant(
        "trace: six digits",
        "workload/traces/csv_formats.py",
        "int(digits.ljust(FRACTION_DIGITS",
        "int(digits[:6].ljust(FRACTION_DIGITS",
        "test_workload.py::test_traces_are_read_to_the_last_digit",
    ),
    Mutant(
        "tasks: answers not cut",
        "workload/tasks.py",
        "outputs = np.minimum(outputs, self.kind.max_output_tokens)",
        "outputs = np.minimum(outputs, 1 << 40)",
        "test_workload.py::test_answers_longer_than_their_limit_are_cut_and_counted",
    ),
    Mutant("tasks: a class moves another's draws", "workload/tasks.py", "self._uniforms(key, number)[ids]", "self._uniforms(key, number)[: len(ids)]", UNMOVED),
    Mutant("tasks: users share their tasks out in blocks", "workload/tasks.py", "user=task.id % arrivals.users", "user=task.id // arrivals.users", USERS),
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
    # composed costs
    Mutant("costs: an all-reduce of experts' layers alone", "costs/composed.py", "reduces = mixers + model.dense_layers", "reduces = mixers + 0 * model.dense_layers", KERNELS),
    Mutant("costs: every device keeps all KV heads", "costs/composed.py", "max(1.0, model.kv_heads / ways)", "float(model.kv_heads)", KERNELS),
    Mutant("costs: no host time for prompts", "costs/composed.py", "self._host_sequence_s * (decodes + shape.chunks)", "self._host_sequence_s * decodes", KERNELS),
    Mutant("costs: joules of context without those of busy seconds", "costs/composed.py", "each_j = full * context_j + kernel_w * timing.context_step_s", "each_j = full * context_j", KERNELS),
    Mutant("costs: growth of one sequence only", "costs/composed.py", "growth_s = self._full_layers * decodes * context_s", "growth_s = self._full_layers * context_s", SEGMENT),
    Mutant("costs: form held a step too long", "costs/shapes.py", "math.floor(start / -growth) + 1", "math.floor(start / -growth) + 2", SEGMENT),
    Mutant("costs: the cap may bind unseen", "costs/composed.py", "valid = min(valid, steps_until_negative(-over, -over_growth))", "pass", SEGMENT),
    Mutant("costs: a window that never fills", "costs/composed.py", "if room <= 0:", "if False:", WINDOW),
    Mutant(
        "memory: embeddings forgotten",
        "costs/memory.py",
        "+ embeddings * ELEMENT_BYTES[others]",
        "+ 0 * embeddings",
        "test_exact.py::test_memory_that_the_weights_leave_is_kv_cache_to_the_token",
    ),
    Mutant("cpu: load power linear", "costs/cpu.py", "(busy_cores / self.cores) ** self.exponent", "(busy_cores / self.cores)", SHARED_POWER),
    # sites, keeping, bills
    Mutant("sites: half a round trip is a whole one", "engine/sites.py", "return self._move(task, n_bytes, way, 0.5)", "return self._move(task, n_bytes, way, 1.0)", FAR),
    Mutant("sites: the first token is back at once", "engine/sites.py", "return self.homeward[pool][0].way_back_s(visit.task)", "return 0.0", FAR),
    Mutant("sites: what is sent again costs nothing", "engine/sites.py", "n_bytes / (1 - self.spec.loss_fraction)", "n_bytes", RESENT),
    Mutant("sites: one network for both ways", "drivers/sites.py", "way = int(name != f\"{here}-{there}\")", "way = 0", CROSSED),
    Mutant("sites: a packet too few repeats", "workload/crossings.py", "math.log(loss_fraction)) - 1)", "math.log(loss_fraction)) - 2)", REPEATS),
    Mutant("sites: every site has the first one's PUE", "metrics/ledger.py", "wall_j * self.pue[entry.site]", "wall_j * next(iter(self.pue.values()))", PUE),
    Mutant("bill: the hour of the window, not of the day", "metrics/economics.py", "rates = {name: _rates(site, hour)", "rates = {name: _rates(site, hour - first)", HOURS),
    Mutant("bill: rented servers pay for electricity too", "metrics/economics.py", "(usd if site.cost.basis == \"own\" else 0.0)", "usd", PAID),
    Mutant("bill: embodied carbon of one server", "metrics/accounts.py", "return tier.count * server_kg * KG_G", "return server_kg", EMBODIED),
    Mutant("keep: the router is always right", "drivers/keeping.py", "its == seen), limits)", "its), limits)", ROUTED),
    Mutant("keep: bad answers are delivered", "engine/life.py", "kept is Kept.ASKED_AGAIN", "False", AGAIN),
    Mutant("keep: the edge is never full", "engine/keeping.py", "choice = Kept.FULL", "pass", CROWD),
)  # fmt: skip

QUICK = (
    "cores: nobody looks when a window is over",
    "link: a fixed transfer leaves its links as they were",
    "replica: what was generated is not recomputed",
    "life: users do not think",
    "kv: whoever leaves ends the sharing",
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


def _all_failures(mutant: Mutant) -> list[str]:
    """What fails with a fault, of the tests of the engine and of the file of the test that is meant for it."""
    return failures(mutant, sorted({*FAST, mutant.test.partition("::")[0]}), at_most=12)


def main() -> None:
    """Print which fast tests catch each fault."""
    wanted = [m for m in MUTANTS if not sys.argv[1:] or any(part in m.name for part in sys.argv[1:])]
    assert failures(None, FAST) == [], "the tests fail without any fault"
    survivors = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, failed in zip(wanted, pool.map(_all_failures, wanted), strict=True):
            survivors += not failed
            short = ", ".join(test.replace(".py::test_", ": ").removeprefix("test_") for test in failed)
            print(f"{mutant.name:52} {short or 'SURVIVED'}", flush=True)
    print(f"{len(wanted) - survivors} of {len(wanted)} faults caught")
    sys.exit(survivors > 0)


if __name__ == "__main__":
    main()
