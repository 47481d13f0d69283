"""What a black-box calibration writes: a step table, the engine, chip and server around it, and a scenario."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hsim.calibrate import blackbox
from hsim.calibrate.blackbox import StepModel, Sweep
from hsim.calibrate.machine import Machine
from hsim.calibrate.options import Law
from hsim.calibrate.profiles import Findings, Profile, known
from hsim.calibrate.store import write_atomically
from hsim.calibrate.sweep import Grid
from hsim.calibrate.work import Row
from hsim.costs.laws import ELEMENT_BYTES, working_precision
from hsim.costs.shapes import StepShape
from hsim.description.catalogue import shipped
from hsim.description.hardware import Precision, StepTable
from hsim.description.model import ModelArchitecture
from hsim.description.yamlfile import Document, validated
from hsim.drivers.replay import Limits

LOAD = 0.4  # of the endpoint in the scenario that is written
NOT_SEEN = "black-box: an endpoint is timed whole, and shows no kernel, no memory and no host"
POWER = ("idle_w", "loaded_idle_w", "floor_w", "cap_w", "joules_per_byte", "joules_per_flop", "joules_per_output_token")


@dataclass(frozen=True)
class ServedFiles:
    """What is served, as its files name it. `device` is the model at its address; `is_local`: on this machine."""

    name: str
    device: str
    is_local: bool
    model: ModelArchitecture
    precision: Precision
    machine: Machine
    grid: Grid
    out: Path

    def source(self, what: str) -> str:
        """Where a figure comes from."""
        return f"black-box: {what}; {self.device}, asked from {self.machine.told('cpu')}, calibration/{self.name}"

    def table(self, model: StepModel, sweep: Sweep, decode: Law | None) -> StepTable:
        """The step table; `decode` is the law of decode steps with its errors."""
        fields: dict[str, Any] = {
            "name": f"steps-{self.name}", "kind": "step-table", "engine": f"{self.name}-engine", "chip": self.name,
            "description": f"steps of {self.device}", "model": self.model.model_dump(),
            "precision": self.precision, "source": self.source("streams of bursts and joining prompts"),
            "median_error_fraction": decode.median_error if decode else None,
            "p90_error_fraction": decode.p90_error if decode else None,
            **blackbox.table_fields(model, sweep),
        }  # fmt: skip
        return validated(Document(f"the step table {fields['name']}", fields), StepTable)

    def profiles(self, model: StepModel, table: StepTable, limits: Limits, power: Profile) -> dict[str, Profile]:
        """Chip, engine, table, server and CPU, by name."""
        name = self.name
        unknown = {"value": None, "tier": "measured", "source": NOT_SEEN}
        kv_bytes = self.model.kv_elements_per_token * ELEMENT_BYTES[working_precision(self.precision)]
        room_bytes = (
            self.model.parameters * ELEMENT_BYTES[self.precision]
            + limits.max_num_seqs * self.model.max_context_tokens * kv_bytes
        )
        zero = known(0.0, "assumed", NOT_SEEN)
        attention = {"launch_s": unknown, "per_element_s": unknown}
        room = f"room for {limits.max_num_seqs} sequences of full context is assumed: how much KV cache a server has does not show"
        chip: Profile = {
            "name": name, "kind": "accelerator", "description": f"{self.device}, as its clients see it",
            "memory_bytes": known(1.001 * room_bytes, "assumed", room),
            "memory_bytes_per_s": unknown, "peak_flops_per_s": {},
            "kernels": {
                "overlap_factor": unknown, "gemm": {},
                "decode_attention": attention | {"per_sequence_s": unknown, "bandwidth_fraction": unknown},
                "prefill_attention": attention | {"flops_fraction": unknown},
            },
            "power": power,
        }  # fmt: skip
        engine: Profile = {
            "name": f"{name}-engine", "kind": "engine", "description": f"the engine behind {self.device}: hidden, taken to batch as vLLM does",
            "max_num_seqs": limits.max_num_seqs, "max_num_batched_tokens": limits.max_num_batched_tokens,
            "gpu_memory_utilization": 1.0, "block_tokens": 16, "prefix_caching": False,
            "defaults_source": self.source(f"bursts of up to {self.grid.max_concurrency} requests are met best with these"),
            "host_s_per_layer": zero, "host_s_per_sequence": zero,
            "request_latency_s": known(model.request_s, "fitted", self.source("first tokens of prompts alone, less a step's own time")),
            "reserved_bytes": zero,
            "host_cores_per_replica": known(0.0, "assumed", "its own cores are inside its step times"),
            "host_cores_per_accelerator": zero, "step_tables": [table.name],
        }  # fmt: skip
        steps: Profile = table.model_dump(mode="json")
        return {p["name"]: p for p in (chip, engine, steps, *self._servers())}

    def power(self, rows: list[Row], seen: tuple[Sweep, float], findings: Findings, no_joules: str) -> Profile:
        """AcceleratorPower where a meter was read beside the endpoint, else null with the reason."""
        idle = next((row.reading.watts for row in rows if row.kind == "idle" and row.reading.watts is not None), None)
        law, test = blackbox.fit_watts(*seen, idle, self.model) if idle is not None else (None, None)
        if law is None or test is None or idle is None:
            return dict.fromkeys(POWER, findings.unknown(f"{self.name} watts", no_joules or "too few units had joules"))
        findings.laws.append(test)
        source = self.source("meters of this machine read beside units, less what it draws idle with the model loaded")
        above_w, output_j, flop_j = law
        unseen = findings.unknown(f"{self.name} idle_w", "it was never seen without its model")
        uncapped = findings.unknown(f"{self.name} cap_w", "a cap shows in step times, which joules follow from")
        return {
            "idle_w": unseen,
            "loaded_idle_w": known(idle, "measured", source),
            "floor_w": known(idle + above_w, "fitted", source),
            "cap_w": uncapped,
            "joules_per_byte": known(0.0, "assumed", NOT_SEEN),
            "joules_per_flop": known(flop_j, "fitted", source),
            "joules_per_output_token": known(output_j, "fitted", source),
        }

    def _servers(self) -> list[Profile]:
        """A server that holds it; its CPU is this machine's where both are and it has been calibrated."""
        name, own = self.name, f"{self.machine.short_name}-cpu"
        beside = self.is_local and (self.out / "hardware_profiles" / f"{own}.yaml").is_file()
        unknown = {"value": None, "tier": "measured", "source": NOT_SEEN}
        figures = dict.fromkeys(("memory_bytes", "base_w", "psu_efficiency", "rent_usd_per_h", "capex_usd"), unknown)
        server = {
            "name": f"{name}-server", "kind": "server", "description": f"what {self.device} runs on",
            "cpu": own if beside else f"{name}-cpu", "sockets": 1, "accelerators": {"chip": name, "count": 1}, **figures,
        }  # fmt: skip
        if beside:
            return [server]
        watts = dict.fromkeys(("idle_w", "max_w", "load_power_exponent", "memory_bytes_per_s"), unknown)
        slowdown = known(1.0, "assumed", NOT_SEEN)
        cores = self.machine.cores if self.is_local else 1
        cpu = {
            "name": f"{name}-cpu", "kind": "cpu", "description": "the host behind the endpoint: not measured, runs no tools",
            "cores": cores, **watts, "contention_slowdown": slowdown, "operations": {},
        }  # fmt: skip
        return [server, cpu]

    def scenario(self, model: StepModel, table: StepTable) -> tuple[Path, list[Path]]:
        """A chat at LOAD of what the endpoint bears, of lengths that were measured; and the model's file, if it needs one."""
        least, most = self.grid.prompt(1 / 32), self.grid.prompt(1 / 2)
        answer = 2 * max(16, min(64, self.grid.max_input_tokens // 8))
        level, tokens, mean_answer = model.levels[-1], (least + most) // 2, (answer // 4 + answer) / 2
        shape = StepShape(level, level * round(tokens + mean_answer / 2))
        busy_s = model.first_s(tokens) + mean_answer * blackbox.costs_of(table).segment(shape).seconds / level
        name, written = self._model_file()
        scenario = {
            "model": name,
            "workload": {
                "arrivals": {"kind": "poisson", "rate_per_s": float(f"{LOAD / busy_s:.2g}")},
                "tasks": 200,
                "measure": "terminating",
                "classes": {
                    "chat": {
                        "input_tokens": {
                            "kind": "uniform",
                            "low": least,
                            "high": most,
                        },
                        "output_tokens": {"kind": "uniform", "low": answer // 4, "high": answer},
                        "max_output_tokens": answer,
                    }
                },
            },
            "fleet": {"served": {"server": f"{self.name}-server", "count": 1}},
            "pools": {
                "decode": {
                    "runs_on": "served.gpu",
                    "engine": f"{self.name}-engine",
                    "precision": self.precision,
                }
            },
            "stages": {"generate": "decode"},
        }
        question = f"# How does {self.device} serve a chat at {LOAD:.0%} of what it bears? Made by `hsim calibrate --endpoint`.\n"
        file = self.out / f"{self.name}.yaml"
        write_atomically(file, question + yaml.safe_dump(scenario, sort_keys=False, default_flow_style=None, width=118))
        return file, [*written, file]

    def _model_file(self) -> tuple[str, list[Path]]:
        """The model's name in scenarios, and its file where the catalogue has none."""
        if (shipped("models") / f"{self.model.name}.yaml").is_file():
            return self.model.name, []
        name = f"{self.name}-model"
        file = self.out / "models" / f"{name}.yaml"
        data = self.model.model_dump(mode="json", exclude_defaults=True) | {"name": name}
        write_atomically(file, yaml.safe_dump(data, sort_keys=False, width=118))
        return name, [file]
