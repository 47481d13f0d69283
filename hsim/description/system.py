"""A scenario with everything that it names found and checked: the one input of the drivers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from hsim.description.catalogue import load_model, load_profile, load_tools
from hsim.description.hardware import (
    AcceleratorProfile,
    CpuProfile,
    EngineProfile,
    LinkProfile,
    Phase,
    Profile,
    ServerProfile,
    SparsityProfile,
    StepTable,
    Tool,
    WireProfile,
)
from hsim.description.model import ModelArchitecture
from hsim.description.quantities import Figure
from hsim.description.reach import STAGES, check_sites, site_of_pool
from hsim.description.scenario import CorePool, EnginePool, Scenario
from hsim.description.yamlfile import Document, did_you_mean
from hsim.errors import DescriptionError, MistakeError


@dataclass(frozen=True)
class FigureUse:
    """A figure that the run stood on."""

    name: str
    value: float
    tier: str
    source: str
    low: float | None
    high: float | None


@dataclass
class Figures:
    """Reads figures out of profiles, puts the scenario's assumptions in their place, and remembers which were used.

    `cautions` are what the cost models that were made of them say of themselves, each once. With `shared`, others that
    are chosen from have the assumptions too, and this run need not use them all.
    """

    assume: Mapping[str, float]
    used: dict[str, FigureUse] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    cautions: dict[str, None] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)
    shared: bool = False

    def unread(self, assume: Mapping[str, float] | None = None) -> Figures:
        """The same of which nothing was read yet, perhaps with other assumptions."""
        return Figures(self.assume if assume is None else assume, documents=self.documents, shared=self.shared)

    def value(self, profile: Profile, path: str) -> float:
        """The figure at `path` (dotted) of a profile. Raises DescriptionError where it is unknown and not assumed."""
        name, figure = f"{profile.name}.{path}", _walk(profile, path)
        if name in self.assume:
            use = FigureUse(name, self.assume[name], "assumed", "the scenario's `assume`", None, None)
        elif figure.value is None:
            document = self.documents.get(profile.name)  # a profile made in code has none
            where = document.where(tuple(path.split("."))) if document else name
            remedy = f"give your own: --set assume.{name}=<value>"
            raise DescriptionError(where, f"is unknown ({figure.source})", remedy)
        else:
            use = FigureUse(name, figure.value, figure.tier, figure.source, figure.low, figure.high)
        self.used[name] = use
        return use.value

    def if_known(self, profile: Profile, path: str) -> float:
        """The figure, or nan where it is unknown: what follows from it is then unavailable, and the result says why.

        For figures without which a run still has a meaning: watts and prices.
        """
        try:
            return self.value(profile, path)
        except DescriptionError as error:
            self.unknown[f"{profile.name}.{path}"] = str(error)
            return math.nan

    def stands_on(self, name: str, value: float, tier: str, source: str) -> None:
        """Note something other than a figure that the run stood on, such as a table."""
        self.used[name] = FigureUse(name, value, tier, source, None, None)

    def check_all_assumptions_used(self, scenario: Document) -> None:
        """Raises DescriptionError for an assumption about a figure that this run does not use."""
        for name in () if self.shared else self.assume:
            if name not in self.used:
                where = scenario.where(("assume", *name.split(".")))
                raise DescriptionError(
                    where, "is not a figure that this run uses", did_you_mean(name, sorted(self.used))
                )


def _walk(profile: Profile, path: str) -> Figure:
    at: Any = profile
    for part in path.split("."):
        at = at[part] if isinstance(at, dict) else getattr(at, part)
    assert isinstance(at, Figure), f"{profile.name}.{path} is not a figure"
    return at


@dataclass(frozen=True)
class Tier:
    """Servers of one kind, with the profiles of what is in them."""

    name: str
    count: int
    server: ServerProfile
    cpu: CpuProfile
    chip: AcceleratorProfile | None

    @property
    def cores_per_server(self) -> int:
        return self.cpu.cores * self.server.sockets

    @property
    def accelerators_per_server(self) -> int:
        return self.server.accelerators.count if self.server.accelerators else 0


class FilledPool(EnginePool):
    """An engine pool with every number filled in, from the scenario or from its engine's defaults."""

    replicas: PositiveInt
    max_num_seqs: PositiveInt
    max_num_batched_tokens: PositiveInt
    gpu_memory_utilization: float
    block_tokens: PositiveInt
    prefix_caching: bool


def _no_wires() -> WireProfile:
    return WireProfile(name="none", kind="wire", representations={}, compressions={})


@dataclass(frozen=True)
class System:
    """A scenario and all that it refers to. `paths` names, for two pools, the networks between them in order.

    `allow_code`: its user trusts the policies of their own that it names.
    """

    scenario: Scenario
    document: Document
    model: ModelArchitecture
    tiers: Mapping[str, Tier]
    engines: Mapping[str, EngineProfile]
    networks: Mapping[str, LinkProfile]
    paths: Mapping[frozenset[str], tuple[str, ...]]
    tools: Mapping[str, Tool]
    figures: Figures
    step_tables: Mapping[str, StepTable] = field(default_factory=dict)
    models: Mapping[str, ModelArchitecture] = field(default_factory=dict)
    wires: WireProfile = field(default_factory=_no_wires)
    allow_code: bool = False
    host_links: Mapping[str, LinkProfile] = field(default_factory=dict)
    switch_links: Mapping[str, LinkProfile] = field(default_factory=dict)
    memory_links: Mapping[str, LinkProfile] = field(default_factory=dict)
    sparsity: SparsityProfile | None = None

    @property
    def name(self) -> str:
        """What results call it: its file, and its architecture where it has several."""
        architecture = self.scenario.architecture
        return f"{self.document.file}, {architecture}" if architecture else self.document.file

    def tier_of(self, pool: str) -> Tier:
        """The tier on which a pool runs."""
        return self.tiers[self.scenario.pools[pool].runs_on.rpartition(".")[0]]

    def model_of(self, pool: str) -> ModelArchitecture:
        """The model that an engine pool serves: its own, or the scenario's."""
        return self.models.get(pool, self.model)

    def core_pools(self) -> dict[str, CorePool]:
        """Pools of cores for jobs, by name."""
        return {n: p for n, p in self.scenario.pools.items() if isinstance(p, CorePool)}

    def engine_pools(self) -> dict[str, FilledPool]:
        """Pools of model replicas, by name."""
        return {n: self._filled(n, p) for n, p in self.scenario.pools.items() if isinstance(p, EnginePool)}

    def placements(self) -> dict[str, tuple[int, ...]]:
        """The server on which each replica of each engine pool stands, servers filled one after another.

        Raises DescriptionError where a tier has too few accelerators.
        """
        free = {tier.name: [tier.accelerators_per_server] * tier.count for tier in self.tiers.values()}
        placed: dict[str, tuple[int, ...]] = {}
        for name, pool in self.engine_pools().items():
            if pool.on_cores:  # evenly, each in turn; whether its cores are there is checked where they are counted
                placed[name] = tuple(i % self.tier_of(name).count for i in range(pool.replicas))
                continue
            left = free[self.tier_of(name).name]
            servers: list[int] = []
            for _ in range(pool.replicas):
                server = next((i for i, count in enumerate(left) if count >= pool.accelerators), None)
                if server is None:
                    at = self.document.where(("pools", name, "replicas"))
                    what = f"{pool.replicas} replicas of {pool.accelerators} accelerators do not fit on tier {self.tier_of(name).name!r}"
                    more = " beside the pools before it; say how many replicas each pool has" if placed else ""
                    raise DescriptionError(at, what, f"{len(servers)} fit{more}")
                left[server] -= pool.accelerators
                servers.append(server)
            placed[name] = tuple(servers)
        return placed

    def _filled(self, name: str, pool: EnginePool) -> FilledPool:
        engine, tier = self.engines[name], self.tier_of(name)
        fitting = tier.count * (tier.accelerators_per_server // pool.accelerators)
        if pool.on_cores:
            fitting = tier.count
        elif taken := self._taken_by_others(name, tier):
            fitting = max(1, (tier.count * tier.accelerators_per_server - taken) // pool.accelerators)
        defaults = {
            "max_num_seqs": engine.max_num_seqs,
            "max_num_batched_tokens": engine.max_num_batched_tokens,
            "gpu_memory_utilization": engine.gpu_memory_utilization,
            "block_tokens": engine.block_tokens,
            "prefix_caching": engine.prefix_caching,
            "replicas": fitting,
        }
        given = {key: value for key, value in pool if value is not None}
        return FilledPool.model_construct(**(defaults | given))

    def _taken_by_others(self, name: str, tier: Tier) -> int:
        """Accelerators of a tier that other pools take which say how many replicas they have."""
        others = [(n, p) for n, p in self.scenario.pools.items() if isinstance(p, EnginePool) and n != name]
        return sum((p.replicas or 0) * p.accelerators for n, p in others if self.tier_of(n) is tier and not p.on_cores)


def resolve(scenario: Scenario, document: Document) -> System:
    """Find everything that the scenario names. Raises DescriptionError naming the line of what is not there."""
    check_sites(scenario, document)
    figures = Figures(scenario.assume)

    def find(name: str, kind: Any, path: tuple[str | int, ...], source: Document = document) -> Any:
        profile, found = load_profile(name, kind, source.where(path), Path(document.file).parent)
        figures.documents[profile.name] = found
        return profile

    tiers = _tiers(scenario, figures, find)
    engines = {
        name: find(pool.engine, EngineProfile, ("pools", name, "engine"))
        for name, pool in scenario.pools.items()
        if isinstance(pool, EnginePool)
    }
    networks, paths = _networks(scenario, document, find)
    beside = Path(document.file).parent
    model = load_model(scenario.model, document.where(("model",)), beside)
    models = {
        name: load_model(pool.model, document.where(("pools", name, "model")), beside)
        for name, pool in scenario.pools.items()
        if isinstance(pool, EnginePool) and pool.model
    }
    tools = {**load_tools(document.file).tools, **scenario.tools}
    host_links = {
        name: find(pool.host_link, LinkProfile, ("pools", name, "host_link"))
        for name, pool in scenario.pools.items()
        if isinstance(pool, EnginePool) and pool.host_link
    }
    system = System(scenario, document, model, tiers, engines, networks, paths, tools, figures, models=models)
    system = replace(system, wires=_wires(system, find), host_links=host_links)
    system = replace(system, sparsity=_sparsity(system, find), switch_links=_switch_links(system, find))
    memory_links = {
        name: find(memory.link, LinkProfile, ("memory", name, "link")) for name, memory in scenario.memory.items()
    }
    system = replace(system, memory_links=memory_links)
    system = replace(system, step_tables=_step_tables(system, find))
    _check_tools(system)
    _check_models(system)
    _check_fit_on_servers(system)
    _check_links(system)
    return system


def _tiers(scenario: Scenario, figures: Figures, find: Callable[..., Any]) -> dict[str, Tier]:
    """The servers of each tier, with what stands in them."""
    tiers = {}
    for name, tier in scenario.fleet.items():
        server: ServerProfile = find(tier.server, ServerProfile, ("fleet", name, "server"))
        own = figures.documents[server.name]
        cpu = find(server.cpu, CpuProfile, ("cpu",), own)
        chip = None
        if server.accelerators:
            chip = find(server.accelerators.chip, AcceleratorProfile, ("accelerators", "chip"), own)
        tiers[name] = Tier(name, tier.count, server, cpu, chip)
    return tiers


def _networks(
    scenario: Scenario, document: Document, find: Callable[..., Any]
) -> tuple[dict[str, LinkProfile], dict[frozenset[str], tuple[str, ...]]]:
    """All links between pools by name, and for each two pools the links on their way."""
    networks = {name: find(link, LinkProfile, ("networks", name)) for name, link in scenario.networks.items()}
    paths = {}
    for name, way in scenario.links.items():
        if isinstance(way, str):  # a link of their own
            networks[name] = find(way, LinkProfile, ("links", name))
        paths[_ends(name, scenario, document)] = (name,) if isinstance(way, str) else tuple(way)
    return networks, paths


def _wires(system: System, find: Callable[..., Any]) -> WireProfile:
    """The catalogue of what may pass over links, where the scenario names something of it."""
    payload = system.scenario.payload
    if not payload.representation and not payload.compression:
        return system.wires
    wires: WireProfile = find("wire", WireProfile, ("payload",))
    for key, known in (("representation", wires.representations), ("compression", wires.compressions)):
        name = getattr(payload, key)
        if name is not None and name not in known:
            at = system.document.where(("payload", key))
            raise MistakeError(at, f"there is no {key} {name!r}", did_you_mean(name, sorted(known)))
    return wires


def _sparsity(system: System, find: Callable[..., Any]) -> SparsityProfile | None:
    """The catalogue of patterns of pruned weights, where a pool names one."""
    profile: SparsityProfile | None = None
    for name, pool in system.scenario.pools.items():
        if isinstance(pool, EnginePool):
            for path, pattern in (
                (("pools", name, "sparsity"), pool.sparsity),
                (("pools", name, "switch", "sparsity"), pool.switch.sparsity if pool.switch else None),
            ):
                if pattern is None:
                    continue
                profile = profile or find("sparsity", SparsityProfile, path)
                if pattern not in profile.patterns:
                    remedy = did_you_mean(pattern, sorted(profile.patterns))
                    raise MistakeError(system.document.where(path), f"there is no pattern {pattern!r}", remedy)
    return profile


def _switch_links(system: System, find: Callable[..., Any]) -> dict[str, LinkProfile]:
    """Over what each pool that reloads other weights reads them."""
    return {
        name: find(pool.switch.link, LinkProfile, ("pools", name, "switch", "link"))
        for name, pool in system.scenario.pools.items()
        if isinstance(pool, EnginePool) and pool.switch and pool.switch.link
    }


def _step_tables(system: System, find: Callable[..., Any]) -> dict[str, StepTable]:
    """For each engine pool the table that was measured on its chip with its model and precision, if there is one."""
    tables = {}
    for name, pool in system.engine_pools().items():
        engine, chip = system.engines[name], system.tier_of(name).chip
        for number, table_name in enumerate(engine.step_tables):
            path = ("step_tables", number)
            table: StepTable = find(table_name, StepTable, path, system.figures.documents[engine.name])
            measured = (table.chip, table.precision, table.tensor_parallel)
            wanted = (chip.name if chip else "", pool.precision, pool.accelerators)
            plain = not pool.expert_parallel and pool.kv_precision is None and pool.power_cap_w is None
            plain = plain and pool.governor is None and pool.sparsity is None
            plain = plain and not pool.on_cores
            if measured == wanted and plain and table.model.same_work_as(system.model_of(name)):
                tables[name] = table
    return tables


def _ends(name: str, scenario: Scenario, document: Document) -> frozenset[str]:
    """The two pools that a link's name, `one-other`, joins."""
    pools = list(scenario.pools)
    for a in pools:
        for b in pools:
            if a != b and name == f"{a}-{b}":
                return frozenset((a, b))
    remedy = did_you_mean(name, [f"{a}-{b}" for a in pools for b in pools if a != b])
    raise MistakeError(document.where(("links", name)), f"{name!r} does not name two pools", remedy)


def _check_tools(system: System) -> None:
    classes, where = system.scenario.workload.classes, system.document.where
    stages = system.scenario.stages
    cores = system.core_pools()
    for name, kind in classes.items():
        for pool in stages.pools("understand") if kind.understand else ():
            if pool in cores:
                _check_understanding(system, name, pool)
        for tool in kind.tools:
            at = where(("workload", "classes", name, "tools", tool))
            if tool not in system.tools:
                raise MistakeError(at, f"there is no tool {tool!r}", did_you_mean(tool, sorted(system.tools)))
            for pool in stages.pools("tool"):
                _check_operation(system, system.tools[tool].operation, pool, at)


def _check_understanding(system: System, class_name: str, pool: str) -> None:
    understand = system.scenario.workload.classes[class_name].understand
    at = system.document.where(("workload", "classes", class_name, "understand", "op"))
    assert understand
    if understand.op is None:
        cpu = system.tier_of(pool).cpu
        remedy = f"name an operation of {cpu.name}: {', '.join(sorted(cpu.operations))}"
        raise DescriptionError(at, f"is missing, and pool {pool!r} understands on cores", remedy)
    _check_operation(system, understand.op, pool, at)


def _check_models(system: System) -> None:
    """Encoders understand, and do nothing else; prompts go on in the model that prefilled them."""
    stages, where = system.scenario.stages, system.document.where
    for stage in ("prefill", "generate"):
        for name in system.scenario.serving(stage):
            if system.model_of(name).is_encoder:
                what = f"{system.model_of(name).name} is an encoder, and cannot {stage}"
                raise DescriptionError(where(("pools", name, "model")), what, "give the pool a decoder")
    if stages.prefill and not system.model_of(stages.prefill).same_work_as(system.model_of(stages.generate)):
        at = where(("pools", stages.prefill, "model"))
        raise DescriptionError(at, "is not the generate pool's", "prompts are prefilled by the model that goes on")


def _check_operation(system: System, operation: str, pool: str, where: str) -> None:
    cpu = system.tier_of(pool).cpu
    if operation not in cpu.operations:
        remedy = did_you_mean(operation, sorted(cpu.operations))
        raise DescriptionError(where, f"the profile {cpu.name!r} has no operation {operation!r}", remedy)


def _check_fit_on_servers(system: System) -> None:
    for name, pool in system.engine_pools().items():
        tier, at = system.tier_of(name), system.document.where(("pools", name, "tensor_parallel"))
        model = system.model_of(name)
        if pool.on_cores:
            continue
        if tier.chip is None:
            at = system.document.where(("pools", name, "runs_on"))
            what = f"the server {tier.server.name!r} has no accelerator"
            raise DescriptionError(at, what, "run it on a tier that has")
        if pool.accelerators > tier.accelerators_per_server:
            what = f"{pool.accelerators} accelerators do not fit in one {tier.server.name} with {tier.accelerators_per_server}"
            raise DescriptionError(at, what, f"use at most {tier.accelerators_per_server}")
        _check_phases(system, name, tier.chip)
        if model.kv_heads % pool.tensor_parallel and pool.tensor_parallel % model.kv_heads:
            what = f"{pool.tensor_parallel} does not divide the model's {model.kv_heads} KV heads"
            raise DescriptionError(at, what, "use 1, 2, 4 or 8")
        _check_shared_out(system, name, pool)
    system.placements()


def _check_phases(system: System, name: str, chip: AcceleratorProfile) -> None:
    """A chip that is made for prompts, or for decoding, serves nothing else."""
    stages, reads = system.scenario.stages, system.model_of(name).is_encoder
    needed: list[Phase] = []
    if name == stages.prefill or (name == stages.generate and not stages.prefill) or name in stages.pools("understand"):
        needed.append("prefill")
    if name == stages.generate or (name in stages.pools("understand") and not reads):
        needed.append("decode")
    for phase in needed:
        if phase not in chip.phases:
            remedy = (
                "let another pool prefill: stages.prefill" if phase == "prefill" else "let it be stages.prefill alone"
            )
            what = f"{chip.name} is made for {' and '.join(chip.phases)}, and pool {name!r} has to {phase}"
            raise DescriptionError(system.document.where(("pools", name, "runs_on")), what, remedy)


def _check_shared_out(system: System, name: str, pool: EnginePool) -> None:
    """Only experts are shared out beside tensor parallelism, and a cap slows what would draw more than it."""
    for key, asked in (("expert_parallel", pool.expert_parallel), ("data_parallel", pool.data_parallel > 1)):
        if asked and not system.model_of(name).experts:
            remedy = "leave it out" if key == "expert_parallel" else f"use replicas: {pool.data_parallel}"
            at = system.document.where(("pools", name, key))
            raise DescriptionError(at, f"{system.model_of(name).name} has no experts to share out", remedy)
    chip = system.tier_of(name).chip
    cap_w, key = (pool.governor.caps_w[-1], "governor") if pool.governor else (pool.power_cap_w, "power_cap_w")
    if cap_w is None or chip is None:
        return
    at = system.document.where(("pools", name, key))
    own_w = system.figures.if_known(chip, "power.cap_w")
    if cap_w > own_w:
        raise DescriptionError(at, f"{cap_w:g} W is more than {chip.name} ever draws, {own_w:g} W", "leave it out")


def _check_links(system: System) -> None:
    stages, where = system.scenario.stages, system.document.where
    for name, way in system.scenario.links.items():
        for network in () if isinstance(way, str) else way:
            if network not in system.scenario.networks:
                remedy = did_you_mean(network, list(system.scenario.networks))
                raise MistakeError(where(("links", name)), f"there is no network {network!r}", remedy)
    used = list(dict.fromkeys(p for s in STAGES for p in system.scenario.serving(s)))
    for a in used:
        for b in used:
            apart = system.tier_of(a).name != system.tier_of(b).name
            moves_kv = {a, b} == {stages.prefill, stages.generate}
            if site_of_pool(system.scenario, a) != site_of_pool(system.scenario, b):
                continue  # see check_sites
            if a != b and (apart or moves_kv) and frozenset((a, b)) not in system.paths:
                what = "stand on different servers" if apart else "hand over KV cache"
                profile = "ethernet-100g" if apart else "nvlink4"
                raise DescriptionError(
                    where(("links",)),
                    f"pools {a!r} and {b!r} {what}, and no link joins them",
                    f"add {a}-{b}: {profile}",
                )
