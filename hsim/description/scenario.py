"""The scenario: what to run. A scenario file is these classes, name for name; there is no other schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from hsim.description.catalogue import scenario_file
from hsim.description.choices import choices_of, first_of, with_chosen
from hsim.description.elastic import Drain, Failures, Governor, Retries, Scaling
from hsim.description.hardware import KvPrecision, Precision, Tool
from hsim.description.keeping import Keep
from hsim.description.quantities import Constant, Distribution
from hsim.description.sites import HERE, Site, SiteLink
from hsim.description.yamlfile import Document, Strict, did_you_mean, read_document, validated, with_settings
from hsim.errors import DescriptionError


class PoissonArrivals(Strict):
    """Independent arrivals at a constant mean rate."""

    kind: Literal["poisson"]
    rate_per_s: PositiveFloat


class UniformArrivals(Strict):
    """Arrivals evenly spaced, without chance."""

    kind: Literal["uniform"]
    rate_per_s: PositiveFloat


class GammaArrivals(Strict):
    """Independent gaps from a gamma distribution of the given mean rate.

    `burstiness` is its shape, as in vLLM's benchmark: 1 is Poisson, less is burstier, more is more regular. The
    gaps' coefficient of variation is burstiness ** -0.5.
    """

    kind: Literal["gamma"]
    rate_per_s: PositiveFloat
    burstiness: PositiveFloat = 1.0


class WeibullArrivals(Strict):
    """Independent gaps from a Weibull distribution of the given mean rate.

    `burstiness` is its shape: 1 is Poisson, less is burstier.
    """

    kind: Literal["weibull"]
    rate_per_s: PositiveFloat
    burstiness: PositiveFloat = 1.0


class OnOffArrivals(Strict):
    """Poisson arrivals whose rate switches between on and off, each for an exponential time of the given mean.

    `rate_per_s` is the mean over all time. `off_rate_fraction` is the rate while off over the rate while on.
    """

    kind: Literal["on-off"]
    rate_per_s: PositiveFloat
    mean_on_s: PositiveFloat
    mean_off_s: PositiveFloat
    off_rate_fraction: float = Field(default=0.0, ge=0, lt=1)


class HourlyArrivals(Strict):
    """Arrivals whose rate follows a profile by the hour.

    `relative_rates` holds 24 or more numbers, one an hour from time 0 on, and repeats after the last: 24 make a day,
    168 a week. `rate_per_s` is the mean over the profile. Within it arrivals are Poisson, or gamma with `burstiness`.
    """

    kind: Literal["hourly"]
    rate_per_s: PositiveFloat
    relative_rates: tuple[NonNegativeFloat, ...] = Field(min_length=24)
    burstiness: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _somebody_comes(self) -> HourlyArrivals:
        if not sum(self.relative_rates):
            raise ValueError("relative_rates are all 0; at least one must be above 0")
        return self


class TraceFile(Strict):
    """A file of requests in one of the formats that docs/workloads.md lists, .gz of each too.

    The path is relative to the scenario, else to the working directory. `tokenizer`, a tokenizer.json or a folder
    that holds one, counts the tokens of a format that has text (ShareGPT). Tasks with a prompt beyond
    `max_input_tokens` are left out, and counted.
    """

    file: str
    tokenizer: str | None = None
    max_input_tokens: PositiveInt | None = None


class TraceArrivals(TraceFile):
    """Arrivals, and lengths where a class declares none, from a trace file.

    `rate_scale` 2 makes the same requests arrive twice as fast. `start_s` and `duration_s` replay a part of the
    trace, in its own seconds from its first arrival. Sessions arrive with their first round.
    """

    kind: Literal["trace"]
    rate_scale: PositiveFloat = 1.0
    start_s: NonNegativeFloat = 0.0
    duration_s: PositiveFloat | None = None


class ClosedArrivals(Strict):
    """So many users, each with one task at a time: think, ask, wait for the answer, think again."""

    kind: Literal["closed"]
    users: PositiveInt
    think_s: Distribution = Field(default={"kind": "constant", "value": 0}, validate_default=True)


OpenArrivals = PoissonArrivals | UniformArrivals | GammaArrivals | WeibullArrivals | OnOffArrivals | HourlyArrivals
WITHOUT_STEADY_STATE = {"trace": "a trace ends", "hourly": "the rate of hourly arrivals changes by the hour"}
Arrivals = Annotated[OpenArrivals | TraceArrivals | ClosedArrivals, Field(discriminator="kind")]


class Understand(Strict):
    """The understanding stage of a class, over the tokens of the request.

    On a pool of cores it is the CPU operation `op`. On an engine pool it is a visit to that pool's model: one pass of an
    encoder; or a prompt of `instruction_tokens`, the same for all tasks of the class, and the request, and an answer of
    `output_tokens`.
    """

    op: str | None = None
    tokens: Distribution
    instruction_tokens: NonNegativeInt = 0
    output_tokens: Distribution = Field(default={"kind": "constant", "value": 1}, validate_default=True)
    max_output_tokens: PositiveInt = 64


class TaskClass(Strict):
    """One class of tasks: perhaps understanding, then rounds of a tool call and a visit to the language model.

    `context: declared`: input_tokens is each round's whole prompt. `context: grows`: a round's prompt is everything
    before it, prompts and answers, and then its own input_tokens. `first_round_tool` false lets the first round go
    straight to the model. `tools` gives relative weights. Lengths left out come from `sampled_from`, a trace whose
    requests (or sessions, with their rounds) are drawn whole and with replacement, its times left aside; else from the
    trace that brings the arrivals. A client gives its task up `timeout_s` after it arrived.
    """

    share: PositiveFloat = 1.0
    understand: Understand | None = None
    rounds: Distribution = Field(default={"kind": "constant", "value": 1}, validate_default=True)
    tools: dict[str, PositiveFloat] = {}
    first_round_tool: bool = True
    context: Literal["declared", "grows"] = "declared"
    sampled_from: TraceFile | None = None
    input_tokens: Distribution | None = None
    output_tokens: Distribution | None = None
    max_output_tokens: PositiveInt = 4096
    timeout_s: PositiveFloat | None = None

    @model_validator(mode="after")
    def _counts_start_at_one(self) -> TaskClass:
        for key in ("rounds", "input_tokens", "output_tokens"):
            count = getattr(self, key)
            if isinstance(count, Constant) and (count.value < 1 or count.value % 1):
                raise ValueError(f"{key} is {count.value:g}; a count is whole and at least 1")
        return self


class Workload(Strict):
    """Who asks for what, when and where. `tasks` limits a trace; left out, the whole trace is replayed.

    `measure: steady` looks for the steady state of arrivals that go on: a warm-up comes before the `tasks` tasks that
    are measured, and others arrive until those have ended. `measure: terminating` measures all of a run of `tasks`
    tasks from an empty system to an empty one. Left out, arrivals at a constant mean rate are steady; traces, hourly
    arrivals and closed loops are terminating, of which only closed loops can be steady. Clients stand at the site
    `arrives_at`: what goes to another, and the answer, crosses the network between the two.
    """

    arrivals: Arrivals
    tasks: PositiveInt | None = None
    arrives_at: str | None = None
    measure: Literal["steady", "terminating"] | None = None
    classes: dict[str, TaskClass] = Field(default={"request": {}}, validate_default=True, min_length=1)

    @field_validator("measure")
    @classmethod
    def _has_a_steady_state(cls, measure: str | None, info: ValidationInfo) -> str | None:
        kind = getattr(info.data.get("arrivals"), "kind", None)  # none where they are refused themselves
        if measure == "steady" and kind in WITHOUT_STEADY_STATE:
            what = f"is steady, and {WITHOUT_STEADY_STATE[kind]}; leave it out, or say measure: terminating"
            raise ValueError(what)
        return measure

    @model_validator(mode="after")
    def _lengths_come_from_somewhere(self) -> Workload:
        if self.arrivals.kind != "trace" and self.tasks is None:
            raise ValueError("tasks is missing; say how many tasks arrive")
        for name, kind in self.classes.items():
            missing = [key for key in ("input_tokens", "output_tokens") if getattr(kind, key) is None]
            if missing and self.arrivals.kind != "trace" and kind.sampled_from is None:
                raise ValueError(
                    f"classes.{name}.{missing[0]} is missing; declare it, or draw it from a trace with sampled_from"
                )
            if not missing and kind.sampled_from:
                raise ValueError(
                    f"classes.{name}.sampled_from has nothing to give; leave out input_tokens or output_tokens"
                )
        return self


class FleetTier(Strict):
    """So many servers of one kind, at the site of that name, or else at the scenario's own.

    One that has done nothing for `sleep_after_s` is switched off until work comes for it; the first `stay_on` never are.
    Or `scaling` says how many serve. They may have `failures`, and planned `drains`, by their number from 0 on.
    """

    server: str
    count: PositiveInt
    site: str | None = None
    sleep_after_s: PositiveFloat | None = None
    stay_on: NonNegativeInt = 0
    scaling: Scaling | None = None
    failures: Failures | None = None
    drains: dict[NonNegativeInt, Drain] = {}

    @property
    def leaves(self) -> bool:
        """Whether its servers go out of service and come back."""
        return bool(self.scaling or self.failures or self.drains)

    @property
    def goes_down(self) -> bool:
        """Whether its servers are ever switched off, for whatever reason."""
        return self.leaves or self.sleep_after_s is not None


class Memory(Strict):
    """Memory that replicas of several servers share: so many bytes of that of a tier's servers, over a link that all share."""

    on: str
    bytes: PositiveFloat
    link: str


class CorePool(Strict):
    """A pool on the cores of a tier's servers. `cores` per server; all that engines leave free when left out.

    With max_batch above 1, jobs of one operation are served together on a core, once there are so many or the first
    has waited batch_window_s.
    """

    runs_on: str
    cores: PositiveInt | None = None
    max_batch: PositiveInt = 1
    batch_window_s: NonNegativeFloat = 0.0
    router: str = "least-outstanding"
    priority: str | None = None


class Switch(Strict):
    """When a pool's replicas go over to another precision, or sparsity, and when back: each by itself, at a step's end.

    `policy` names what is looked at: visits that wait for the replica (waiting), the used part of its KV cache (kv), or the
    carbon intensity in g a kWh (carbon). Above `above` it goes over, and at `below` or less back, but not before it has
    stayed for `stay_s`. With `weights: reload` the other weights are read over `link` at every switch, all accelerators side
    by side; resident ones are both in memory, which KV cache then lacks. A switch takes switch_s beside that.
    """

    policy: str = "waiting"
    precision: Precision | None = None
    sparsity: str | None = None
    above: NonNegativeFloat
    below: NonNegativeFloat
    stay_s: NonNegativeFloat = 10.0
    weights: Literal["reload", "resident"] = "reload"
    link: str | None = None
    switch_s: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _can_be(self) -> Switch:
        if self.precision is None and self.sparsity is None:
            raise ValueError("says neither precision nor sparsity; say what to go over to")
        if self.below > self.above:
            raise ValueError(f"below {self.below:g} is more than above {self.above:g}; it would go to and fro")
        if self.weights == "reload" and self.link is None:
            raise ValueError("link is missing; say over what the other weights are read, or weights: resident")
        return self


class EnginePool(Strict):
    """A pool of model replicas on the accelerators of a tier, or, with `engine` named, on the cores of its servers.

    `model` is the scenario's when left out. `replicas` over the whole tier; left out, as many as fit beside other
    pools', and on cores one a server, of `cores_per_replica` each. Numbers left out are the engine's defaults. A visit
    that finds `max_waiting` others in the replica's queue is shed. A model with experts may be served by `data_parallel`
    groups of `tensor_parallel` accelerators, which share out its experts and are one replica; with `expert_parallel` an
    accelerator holds whole experts instead of a slice of each. `pipeline_parallel` stages of tensor_parallel accelerators
    share out the layers, for chips that hold a small part of a model each. `sparsity` names a pattern of the profile
    sparsity in which weights are pruned; `switch` lets replicas go over to other weights under load. `kv_precision` is
    that of keys and values where it is not the activations'. Under `power_cap_w` each accelerator runs at the highest
    clock whose power fits; under a `governor` that cap follows the load. A
    replica that has done nothing for `unload_after_s` gives its accelerators' memory back, and loads its model again when
    work comes for it; or `scaling` says how many replicas serve, and the others unload. With `failures` replicas break down
    while their servers go on, and load again. `tool_gaps` says what becomes of a context's KV cache while its task waits for
    a tool; to offload it each replica may use `host_kv_bytes` of its server's memory, over `host_link`; or what is free of
    the shared `memory` that is named, over its host_link (if it has one) and that memory's own. Of a replica's weights
    `host_weight_bytes` stay in its server's memory, or in the shared one, and are read from there in every step: one copy
    serves all replicas there.
    """

    runs_on: str
    engine: str = "vllm"
    model: str | None = None
    cores_per_replica: PositiveInt | None = None
    precision: Precision = "bf16"
    tensor_parallel: PositiveInt = 1
    sparsity: str | None = None
    switch: Switch | None = None
    data_parallel: PositiveInt = 1
    pipeline_parallel: PositiveInt = 1
    expert_parallel: bool = False
    kv_precision: KvPrecision | None = None
    power_cap_w: PositiveFloat | None = None
    replicas: PositiveInt | None = None
    max_num_seqs: PositiveInt | None = None
    max_num_batched_tokens: PositiveInt | None = None
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    block_tokens: PositiveInt | None = None
    prefix_caching: bool | None = None
    max_waiting: PositiveInt | None = None
    unload_after_s: PositiveFloat | None = None
    scaling: Scaling | None = None
    failures: Failures | None = None
    governor: Governor | None = None
    tool_gaps: str = "cache"
    host_link: str | None = None
    host_kv_bytes: PositiveFloat | None = None
    host_weight_bytes: PositiveFloat | None = None
    memory: str | None = None
    router: str = "least-outstanding-tokens"
    priority: str | None = None

    @property
    def accelerators(self) -> int:
        """Accelerators of one replica; on cores it has none, and counts as one."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    @property
    def on_cores(self) -> bool:
        """Whether its replicas are cores of the tier's servers."""
        return self.runs_on.endswith(".cpu")

    @property
    def leaves(self) -> bool:
        """Whether its replicas go out of service and come back, beside their servers."""
        return bool(self.scaling or self.failures)

    @property
    def unloads(self) -> bool:
        """Whether its replicas are ever without their model on a server that is on."""
        return self.leaves or self.unload_after_s is not None

    @model_validator(mode="after")
    def _cores_are_for_cpus(self) -> EnginePool:
        if self.governor and self.power_cap_w is not None:
            raise ValueError("power_cap_w is set, and a governor too; leave one of them out")
        if self.governor and self.switch:
            raise ValueError("switch and governor both change what a step costs; leave one of them out")
        if self.governor and self.switch:
            raise ValueError("a governor is set, and a switch of weights too; leave one of them out")
        if not self.on_cores:
            if self.cores_per_replica is not None:
                raise ValueError("cores_per_replica is for engines on a tier's .cpu; remove it")
            return self
        if self.cores_per_replica is None:
            raise ValueError("cores_per_replica is missing; say how many cores each replica on a CPU has")
        only = (
            "tensor_parallel", "data_parallel", "pipeline_parallel", "expert_parallel", "kv_precision", "power_cap_w",
            "unload_after_s", "scaling", "failures", "governor", "sparsity", "switch", "host_weight_bytes", "memory",
        )  # fmt: skip
        for key in only:
            if key in self.model_fields_set:
                raise ValueError(f"{key} is for accelerators, and the pool runs on cores; remove it")
        return self


def _pool_kind(value: Any) -> str:
    keys = value if isinstance(value, dict) else vars(value)
    part = str(keys.get("runs_on", "")).rpartition(".")[2]
    if part not in ("cpu", "gpu"):  # refused later, by its name: no other key shall be blamed before
        return "CorePool" if set(keys) <= set(CorePool.model_fields) else "EnginePool"
    return "EnginePool" if part == "gpu" or "engine" in keys else "CorePool"


Pool = Annotated[
    Annotated[CorePool, Tag("CorePool")] | Annotated[EnginePool, Tag("EnginePool")], Discriminator(_pool_kind)
]


PoolNames = Annotated[str | Annotated[list[str], Field(min_length=1)], Field(union_mode="left_to_right")]


class Stages(Strict):
    """Which pool serves which stage. A stage that no class needs may be left out.

    Understanding and tools may have several pools: see Balance. With `prefill`, prompts are prefilled in that pool and
    their KV cache moves to the generate pool.
    """

    understand: PoolNames | None = None
    tool: PoolNames | None = None
    prefill: str | None = None
    generate: str

    def pools(self, stage: str) -> tuple[str, ...]:
        """The names of the pools that serve a stage, in the order given; none where no pool does."""
        named = getattr(self, stage)
        return () if named is None else (named,) if isinstance(named, str) else tuple(named)


class Slo(Strict):
    """At least the fraction `p` of tasks (or of visits, for ttft and tpot) must take at most max_s."""

    max_s: PositiveFloat
    p: float = Field(gt=0, lt=1)


class Slos(Strict):
    """Service level objectives. ttft and tpot per generate visit; answer_ttft and e2e per task."""

    ttft: Slo | None = None
    tpot: Slo | None = None
    answer_ttft: Slo | None = None
    e2e: Slo | None = None


class Balance(Strict):
    """Between pools that serve the same stage, and who is let in.

    `choose` names the pool that a visit goes to. With `steal`, a pool that could begin a visit at once takes one that waits
    for another. `admission` decides whether a new task is let in, by the wait for the model and the objective for ttft.
    A pool's own `priority` orders its queue; without it, first come first served.
    """

    choose: str = "first-free"
    steal: bool = False
    admission: str = "everybody"


class Payload(Strict):
    """What passes between stages over links: token ids as int32 unless said otherwise.

    `representation` and `compression` name those of the profile wire; writing and reading them takes core-seconds at
    both ends. Messages between two pools that come within `window_s` of the first go together, as one.
    """

    bytes_per_token: PositiveFloat = 4.0
    bytes_per_message: NonNegativeFloat = 512.0
    representation: str | None = None
    compression: str | None = None
    window_s: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _said_once(self) -> Payload:
        if self.representation and "bytes_per_token" in self.model_fields_set:
            raise ValueError("bytes_per_token is said by the representation; leave one of them out")
        return self


class Planning(Strict):
    """What `hsim plan` is to find; other commands leave it aside.

    Wherever fleet and pools hold one value, a list stands for choices; a fleet is bought once for all loads.
    `have` limits servers by the name of their profile. `max_usd_per_h` limits what servers cost: rent, or capex over the
    lifetime, without the electricity of owned ones, which counts in the cost that is minimised. `max_w` limits what the fleet can draw at most, at the
    facility. Objectives must hold under the scenario's own load and under each of `loads`, which change it by
    `path: value`; what is minimised is that of the scenario's own load.
    """

    minimise: Literal["cost", "tst", "co2"] = "cost"
    have: dict[str, NonNegativeInt] = {}
    max_usd_per_h: PositiveFloat | None = None
    max_w: PositiveFloat | None = None
    loads: dict[str, dict[str, Any]] = {}
    confidence: float = Field(default=0.95, ge=0.5, lt=1)


def _flattened(value: Any, prefix: str = "") -> Any:
    if not isinstance(value, dict):
        return value
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            flat |= _flattened(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat


# Figures of profiles that this run takes on the user's word: {profile: {figure: value}}, flattened to dotted names.
Assumptions = Annotated[
    dict[str, float],
    BeforeValidator(_flattened),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": ["number", "object"]}}),
]


class Architecture(Strict):
    """Another way to serve the same workload: these sections stand in place of the scenario's own."""

    fleet: dict[str, FleetTier] | None = None
    pools: dict[str, Pool] | None = None
    stages: Stages | None = None
    links: dict[str, str | list[str]] | None = None
    networks: dict[str, str] | None = None
    memory: dict[str, Memory] | None = None
    payload: Payload | None = None
    balance: Balance | None = None
    keep: Keep | None = None
    site: Site | None = None
    assume: Assumptions | None = None
    sites: dict[str, Site] | None = None
    site_links: dict[str, SiteLink] | None = None


class Scenario(Strict):
    """Everything that one run depends on, the seed included.

    `architecture` is the one of `architectures` that is run. `counts` lists numbers of servers for each tier, whichever
    architectures have it: plans and comparisons of architectures choose from them. `site` is where tiers stand that name none of `sites`; `site_links` join two sites,
    as one-other.
    """

    model: str
    architecture: str | None = None
    architectures: dict[str, Architecture] = {}
    counts: dict[str, Annotated[list[PositiveInt], Field(min_length=1)]] = {}
    workload: Workload
    fleet: dict[str, FleetTier] = Field(min_length=1)
    pools: dict[str, Pool] = Field(min_length=1)
    stages: Stages
    links: dict[str, str | list[str]] = {}
    networks: dict[str, str] = {}
    memory: dict[str, Memory] = {}
    payload: Payload = Payload()
    balance: Balance = Balance()
    retries: Retries = Retries()
    keep: Keep | None = None
    tools: dict[str, Tool] = {}
    slo: Slos = Slos()
    site: Site = Site()
    sites: dict[str, Site] = {}
    site_links: dict[str, SiteLink] = {}
    assume: Assumptions = {}
    seed: int = Field(default=0, ge=0)
    plan: Planning | None = Field(default=None, exclude=True)  # no run depends on it, and no key or hash

    def serving(self, stage: str) -> tuple[str, ...]:
        """The pools that serve a stage: of generate, the one that keeps tasks at the edge too."""
        kept = (self.keep.pool,) if self.keep and stage == "generate" else ()
        return (*self.stages.pools(stage), *kept)

    def site_of(self, tier: str) -> str:
        """The name of the site where a tier stands."""
        return self.fleet[tier].site or HERE

    def sites_in_use(self) -> dict[str, Site]:
        """Sites where servers or clients stand, by name."""
        known = {HERE: self.site, **self.sites}
        named = [self.site_of(tier) for tier in self.fleet]
        return {name: known[name] for name in dict.fromkeys([*named, self.workload.arrives_at or named[0]])}


def load(name_or_path: str | Path, settings: Sequence[str] = ()) -> tuple[Scenario, Document]:
    """A scenario from its file or shipped name, with `path=value` settings applied; of lists of choices, the first.

    Raises DescriptionError for anything that is not right in the file itself.
    """
    document = read_scenario(name_or_path, settings)
    document = with_chosen(document, first_of(choices_of(document)))
    return checked(document), document


def checked(document: Document) -> Scenario:
    """The document as a scenario whose names of tiers and pools refer to something. Raises DescriptionError."""
    scenario = validated(document, Scenario)
    _check_references(scenario, document)
    return scenario


def read_scenario(name_or_path: str | Path, settings: Sequence[str] = ()) -> Document:
    """A scenario's document with settings applied, the sections of its architecture in place of its own."""
    return scenario_document(read_document(scenario_file(str(name_or_path))), settings)


def scenario_document(document: Document, settings: Sequence[str]) -> Document:
    """A scenario's document as it was read, with settings applied and its architecture's sections in place."""
    choice = [setting for setting in settings if setting.startswith("architecture=")]
    return with_settings(_with_architecture(with_settings(document, choice)), settings)


def _with_architecture(document: Document) -> Document:
    data = document.data if isinstance(document.data, dict) else {}
    chosen, known = data.get("architecture"), data.get("architectures")
    if chosen is None:
        return document
    if not isinstance(known, dict) or chosen not in known:
        names = list(known) if isinstance(known, dict) else []
        at = document.where(("architecture",))
        raise DescriptionError(at, f"there is no architecture {chosen!r}", did_you_mean(str(chosen), names))
    sections = known[chosen]
    if not isinstance(sections, dict):
        return document  # refused when it is checked
    moved = ("architectures", chosen)
    places = {path: at for path, at in document.places.items() if path[:1] not in {(s,) for s in sections}}
    places |= {path[2:]: at for path, at in document.places.items() if path[:2] == moved and len(path) > 2}
    return Document(document.file, {**data, **sections}, places)


def check_tiers(runs_on: Mapping[str, str], tiers: Sequence[str], document: Document) -> None:
    """Raises DescriptionError where a pool, by name, is to run on what is no part of any of these tiers."""
    for name, part_of_tier in runs_on.items():
        tier, _, part = part_of_tier.rpartition(".")
        at = document.where(("pools", name, "runs_on"))
        if part not in ("cpu", "gpu"):
            raise DescriptionError(at, f"is {part_of_tier!r}", "write tier.cpu or tier.gpu, such as gpu-tier.gpu")
        if tier not in tiers:
            raise DescriptionError(at, f"the fleet has no tier {tier!r}", did_you_mean(tier, tiers))


def _check_references(scenario: Scenario, document: Document) -> None:
    check_tiers({name: pool.runs_on for name, pool in scenario.pools.items()}, list(scenario.fleet), document)
    _check_memories(scenario, document)
    for stage, kinds in (
        ("understand", (CorePool, EnginePool)),
        ("tool", (CorePool,)),
        ("prefill", (EnginePool,)),
        ("generate", (EnginePool,)),
    ):
        at = document.where(("stages", stage))
        if not scenario.stages.pools(stage):
            _check_not_needed(scenario, stage, at)
        if stage == "generate" and scenario.keep:
            _check_keep(scenario, scenario.keep, document)
        for name in scenario.stages.pools(stage):
            if name not in scenario.pools:
                raise DescriptionError(at, f"there is no pool {name!r}", did_you_mean(name, list(scenario.pools)))
            if not isinstance(scenario.pools[name], kinds):
                part = "cpu, without an engine" if CorePool in kinds else "gpu"
                raise DescriptionError(
                    at,
                    f"pool {name!r} runs on {scenario.pools[name].runs_on}",
                    f"{stage} needs a pool that runs on a tier's .{part}",
                )


def _check_keep(scenario: Scenario, keep: Keep, document: Document) -> None:
    """The edge has a pool of its own, and a policy what it needs."""
    where, classes = document.where, list(scenario.workload.classes)
    if not isinstance(scenario.pools.get(keep.pool), EnginePool) or keep.pool == scenario.stages.generate:
        others = [n for n, p in scenario.pools.items() if isinstance(p, EnginePool) and n != scenario.stages.generate]
        what = f"{keep.pool!r} is no engine pool beside {scenario.stages.generate!r}"
        raise DescriptionError(where(("keep", "pool")), what, did_you_mean(keep.pool, others))
    if scenario.stages.prefill:
        what = "tasks are kept by a pool that does all of generation, and stages.prefill divides it"
        raise DescriptionError(where(("keep",)), what, "leave one of them out")
    for key, policy in (("max_input_tokens", "by-length"), ("classes", "by-class")):
        if keep.policy == policy and not getattr(keep, key):
            raise DescriptionError(
                where(("keep", key)), f"is missing, and the policy is {policy}", "say which are kept"
            )
    fractions = keep.easy_fraction if isinstance(keep.easy_fraction, dict) else dict.fromkeys(classes, 0.0)
    for key, named in (("classes", keep.classes), ("easy_fraction", fractions)):
        for name in named:
            if name not in classes:
                at = where(("keep", key))
                raise DescriptionError(at, f"there is no class {name!r}", did_you_mean(name, classes))
    for name in classes:
        if name not in fractions:
            at = where(("keep", "easy_fraction"))
            raise DescriptionError(at, f"says nothing of class {name!r}", "give each class a fraction, or one to all")


def _check_memories(scenario: Scenario, document: Document) -> None:
    for name, memory in scenario.memory.items():
        if memory.on not in scenario.fleet:
            at = document.where(("memory", name, "on"))
            remedy = did_you_mean(memory.on, list(scenario.fleet))
            raise DescriptionError(at, f"the fleet has no tier {memory.on!r}", remedy)
    for name, pool in scenario.pools.items():
        if isinstance(pool, EnginePool) and pool.memory is not None and pool.memory not in scenario.memory:
            at = document.where(("pools", name, "memory"))
            remedy = did_you_mean(pool.memory, list(scenario.memory))
            raise DescriptionError(at, f"there is no memory {pool.memory!r}", remedy)
        if isinstance(pool, EnginePool) and pool.memory and not pool.host_weight_bytes and pool.tool_gaps == "cache":
            at = document.where(("pools", name, "memory"))
            remedy = "say what goes there: tool_gaps (offload, for instance) or host_weight_bytes; or leave it out"
            raise DescriptionError(at, f"nothing of pool {name!r} goes to the memory {pool.memory!r}", remedy)


def _check_not_needed(scenario: Scenario, stage: str, at: str) -> None:
    if stage == "prefill":
        return
    for name, kind in scenario.workload.classes.items():
        if kind.understand if stage == "understand" else kind.tools:
            raise DescriptionError(
                at, f"class {name!r} needs the stage {stage!r}, which no pool serves", f"add {stage}: <pool>"
            )
