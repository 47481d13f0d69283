"""The command line: the only file that prints."""

from __future__ import annotations

import gc
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from hsim.errors import DescriptionError, HsimError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hsim.drivers.endpoint import RemoteSpec
    from hsim.plan.placement import Placed
    from hsim.plan.result import Step
    from hsim.runs import Options
    from hsim.sweeps import Standing

MIN_WIDTH = 124

# Torch's threads spin while they wait, which on busy cores makes small operations a hundred times slower. It reads
# this when it is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# NumPy's library starts threads for products of large matrices, of which hsim has none: 0.15 s and more of every start.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Python's collector of cycles would walk over modules while they are imported, again and again: 0.03 s of every start.
gc.set_threshold(100_000)

app = typer.Typer(
    help="Simulate and plan language-model inference divided between CPUs and GPUs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change the scenario, such as pools.decode.tensor_parallel=8. May be repeated.",
    ),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        from hsim.metrics.summarise import hsim_version

        print(f"hsim {hsim_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before a command."""


class Format(StrEnum):
    """What simulate prints."""

    TABLE = "table"
    JSON = "json"
    VLLM_BENCH = "vllm-bench"


Replications = Annotated[
    int, typer.Option(min=1, help="Independent runs of which intervals are made; 1 shows one path as it is.")
]
Processes = Annotated[
    int | None, typer.Option(min=1, help="Processes at a time; as many as there are cores when left out.")
]
Worlds = Annotated[
    int, typer.Option(min=0, help="Simulate so many worlds in which roughly known figures take other values.")
]
Out = Annotated[
    Path | None, typer.Option(help="Write result.json into this folder, and keep runs there to go on with.")
]


AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code", help="Execute stages (hsim/stages.py) and policies of your own: only code that you trust."
    ),
]


@app.command()
def simulate(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of a shipped scenario.")],
    settings: Settings = [],  # noqa: B006  # typer reads it, nobody changes it
    replications: Replications = 10,
    processes: Processes = None,
    worlds: Worlds = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    format: Annotated[
        Format, typer.Option(help="vllm-bench: one path as the JSON that vllm bench serve --save-detailed writes.")
    ] = Format.TABLE,
    out: Out = None,
    explain: Annotated[bool, typer.Option(help="Show every assumption with its reason.")] = False,
    stepwise: Annotated[
        bool, typer.Option(help="Take every engine step as an event of its own: the slow reference.")
    ] = False,
    allow_code: AllowCode = False,
) -> None:
    """Predict latency, throughput, joules per task (TST), tokens per watt (TPW), cost and CO2 of a scenario."""
    from json import dumps

    from hsim import runs
    from hsim.report.tables import result_tables, study_tables

    system = runs.system_of(scenario, settings, allow_code)
    json = json or format is Format.JSON
    if format is Format.VLLM_BENCH:
        bench = dumps(runs.vllm_bench_of(system, stepwise), allow_nan=False) + "\n"
        runs.write_atomically(out / "vllm-bench.json", bench) if out else print(bench, end="")
        return
    if replications == 1 or runs.is_one_path(system):
        result = runs.path_of(system, stepwise)
        if out:
            runs.write_atomically(out / "result.json", runs.as_json(result))
        print(runs.as_json(result), end="") if json else _print(result_tables(result, explain))
        return
    study = runs.study(system, runs.Options(replications, processes, worlds, out, stepwise))
    print(runs.as_json(study), end="") if json else _print(study_tables(study, explain))
    if not study.complete:
        kept = (
            f"; what was finished is kept in {out}, and the same command goes on with it" if out else "; --out keeps it"
        )
        print(f"hsim: interrupted after {study.replications} of {study.wanted} replications{kept}", file=sys.stderr)
        raise typer.Exit(130)


@app.command()
def compare(
    scenarios: Annotated[
        list[str],
        typer.Argument(help="Scenario files, or names of shipped scenarios; two or more."),
    ],
    settings: Settings = [],  # noqa: B006
    replications: Replications = 10,
    processes: Processes = None,
    fair: Annotated[
        bool,
        typer.Option(help="Give each the best fleet of those that its lists allow, as hsim plan certifies it."),
    ] = False,
    worlds: Worlds = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
    out: Out = None,
    architectures: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Compare architectures of one scenario: as they stand, or see --rates."),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH",
            help="Architectures each at its own cheapest fleet: tasks/s, doubled from low to high, or a list.",
        ),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="With --rates: write a page with the figures over load, such as rates.html.")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Send the same tasks through several scenarios, and show the differences with their intervals."""
    if rates is not None:
        options = _options(replications, processes, worlds, out)
        placed = _placed(scenarios, (architectures or "").split(","), rates, settings, allow_code)
        _compare_architectures(placed, options, json, page)
        return
    if page is not None:
        raise typer.BadParameter("is of --architectures with --rates", param_hint="--page")
    from hsim import runs
    from hsim.comparison import compare as compare_systems
    from hsim.plan.fair import compare_fairly
    from hsim.report.tables import comparison_tables

    variants = [(name, settings) for name in scenarios]
    if architectures is not None:
        if fair or len(scenarios) != 1:
            raise typer.BadParameter("are of one scenario, as they stand or with --rates", param_hint="--architectures")
        variants = [(scenarios[0], [*settings, f"architecture={name}"]) for name in architectures.split(",")]
    if len(variants) < 2:
        raise typer.BadParameter("name two scenarios or more", param_hint="SCENARIOS")
    options = runs.Options(replications, processes, worlds, out)
    if fair:
        with _Steps() as steps:
            comparison = compare_fairly(scenarios, settings, options, steps, allow_code)
    else:
        comparison = compare_systems([runs.system_of(name, its, allow_code) for name, its in variants], options)
    print(runs.as_json(comparison), end="") if json else _print(comparison_tables(comparison))


def _options(replications: int, processes: int | None, worlds: int, out: Path | None) -> Options:
    from hsim.runs import Options

    return Options(replications, processes, worlds, out)


def _placed(
    scenarios: list[str], architectures: list[str], rates: str, settings: list[str], allow_code: bool
) -> Placed:
    from hsim.plan.placement import Placed, rates_of

    if len(scenarios) != 1 or architectures == [""] or not rates:
        raise typer.BadParameter("--rates is of --architectures, and those of one scenario", param_hint="SCENARIOS")
    try:
        rates_per_s = rates_of(rates)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--rates") from None
    return Placed(scenarios[0], tuple(architectures), rates_per_s, tuple(settings), allow_code)


def _compare_architectures(placed: Placed, options: Options, json: bool, page: Path | None) -> None:
    from hsim.plan.placement import place
    from hsim.report.page import placement_page, plotly_script
    from hsim.report.tables import placement_tables
    from hsim.runs import as_json, write_atomically

    if page:
        plotly_script()  # what is missing shall show before anything runs
    with _Steps() as steps:
        placement = place(placed, options, steps)
    if page:
        write_atomically(page, placement_page(placement, shlex.join(["hsim", *sys.argv[1:]])))
        print(f"hsim: wrote {page}", file=sys.stderr)
    print(as_json(placement), end="") if json else _print(placement_tables(placement))


class Exported(StrEnum):
    """What export writes."""

    ALL = "all"
    TABLES = "tables"
    TRACE = "trace"


@app.command()
def export(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of a shipped scenario.")],
    out: Annotated[Path, typer.Option(help="The folder to write into.")],
    settings: Settings = [],  # noqa: B006
    replication: Annotated[int, typer.Option(min=0, help="Whose seed the path has; 0 is the scenario's own.")] = 0,
    only: Annotated[Exported, typer.Option(help="tables: parquet. trace: for ui.perfetto.dev.")] = Exported.ALL,
    gzip: Annotated[bool, typer.Option("--gzip", help="Write the trace as trace.json.gz.")] = False,
    allow_code: AllowCode = False,
) -> None:
    """Write every task, visit, step and transfer of one path: parquet tables, and a trace for Perfetto or Chrome."""
    from hsim.runs import system_of
    from hsim.runs.exports import export_path

    trace = "" if only is Exported.TABLES else "trace.json.gz" if gzip else "trace.json"
    system = system_of(scenario, settings, allow_code)
    for file in export_path(system, out, replication, only is not Exported.TRACE, trace):
        print(f"hsim: wrote {file}", file=sys.stderr)


@app.command()
def report(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of a shipped scenario.")],
    out: Annotated[Path, typer.Option(help="The page to write, such as report.html.")],
    settings: Settings = [],  # noqa: B006
    replications: Replications = 10,
    processes: Processes = None,
    worlds: Worlds = 0,
    runs: Annotated[
        Path | None, typer.Option(help="The --out folder of simulate: go on with the runs that it keeps.")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Write a study as one HTML page that works offline: verdicts, figures, the joule ledger, what it stands on."""
    from hsim.report.page import page, plotly_script
    from hsim.runs import Options, system_of, write_atomically
    from hsim.runs.closeup import close_up

    if runs and not runs.is_dir():
        remedy = "name the folder that simulate --out wrote, make an empty one, or leave --runs out"
        raise DescriptionError(f"--runs {runs}", "there is no such folder", remedy)
    system = system_of(scenario, settings, allow_code)
    plotly_script()  # what is missing shall show before anything runs
    closeup = close_up(system, Options(replications, processes, worlds, runs))
    options = [f"--set={setting}" for setting in settings] + [f"--replications={replications}"]
    options += [f"--worlds={worlds}"] if worlds else []
    write_atomically(out, page(closeup, system, shlex.join(["hsim", "report", scenario, *options, f"--out={out}"])))
    print(f"hsim: wrote {out}", file=sys.stderr)
    if not closeup.study.complete:
        print("hsim: interrupted; the page is of the replications that were finished", file=sys.stderr)
        raise typer.Exit(130)


Have = Annotated[
    str | None,
    typer.Option(metavar="SERVER=COUNT,...", help="Servers that are there, by profile: none of these beyond so many."),
]


KeptIn = Annotated[Path | None, typer.Option(help="Keep replications in this folder to go on with.")]


class Aim(StrEnum):
    """What a plan minimises."""

    COST = "cost"
    TST = "tst"
    CO2 = "co2"


@app.command()
def plan(
    scenario: Annotated[
        str, typer.Argument(help="A scenario whose lists stand for choices, or the name of a shipped one.")
    ],
    settings: Settings = [],  # noqa: B006
    have: Have = None,
    rate: Annotated[float | None, typer.Option(help="Tasks a second, instead of the scenario's.")] = None,
    minimise: Annotated[Aim | None, typer.Option(help="Dollars, joules a task, or CO2.")] = None,
    max_usd_per_h: Annotated[
        float | None,
        typer.Option(help="A budget for servers, USD an hour: rent, or what owned ones cost over their lifetime."),
    ] = None,
    max_w: Annotated[float | None, typer.Option(help="What the fleet may draw at most, at the facility.")] = None,
    neighbours: Annotated[bool, typer.Option(help="Compare with one server more or fewer of each kind.")] = False,
    headroom: Annotated[bool, typer.Option(help="Look for how much the rate may grow.")] = False,
    preview: Annotated[
        bool, typer.Option(help="A queueing approximation at once instead, without a certificate.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Show every fleet that was looked at.")] = False,
    processes: Processes = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write plan.json into this folder, and keep replications there to go on with.")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Find the best fleet of those that a scenario's lists allow, certify it, and say why no other."""
    from hsim.plan import PlanOptions, read_problem
    from hsim.plan import plan as run
    from hsim.plan import preview as previewed
    from hsim.plan.result import Previews
    from hsim.report.plans import plan_tables, preview_tables
    from hsim.runs import as_json

    asked = {"workload.arrivals.rate_per_s": rate, "plan.minimise": minimise and minimise.value}
    asked |= {"plan.max_usd_per_h": max_usd_per_h, "plan.max_w": max_w}
    asked |= _there(have)
    asked_for = [f"{path}={value}" for path, value in asked.items() if value is not None]
    problem = read_problem(scenario, [*settings, *asked_for], allow_code)
    if preview:
        fleets = previewed(problem)
        print(as_json(Previews(scenario, fleets)), end="") if json else _print(preview_tables(fleets, everything))
        return
    with _Steps() as steps:
        found = run(problem, PlanOptions(processes, out, neighbours, headroom), steps)
    print(as_json(found), end="") if json else _print(plan_tables(found, everything))
    if not found.complete:
        kept = (
            f"; what was finished is kept in {out}, and the same command goes on with it" if out else "; --out keeps it"
        )
        print(f"hsim: interrupted after {found.replications} replications{kept}", file=sys.stderr)
        raise typer.Exit(130)


class Lost(StrEnum):
    """What is lost."""

    SERVER = "server"
    DEVICE = "device"


@app.command()
def survive(
    scenario: Annotated[
        str, typer.Argument(help="A scenario with objectives; with lists, its best fleet is planned first.")
    ],
    settings: Settings = [],  # noqa: B006
    loss: Annotated[Lost, typer.Option(help="One server of each tier, or one replica of each pool.")] = Lost.SERVER,
    processes: Processes = None,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    out: KeptIn = None,
    allow_code: AllowCode = False,
) -> None:
    """Take one server, or one device, away from the best fleet, and find the best that loses any and still holds."""
    from hsim.plan import PlanOptions, read_problem
    from hsim.plan.survive import survive as run
    from hsim.report.plans import survival_tables
    from hsim.runs import as_json

    problem = read_problem(scenario, settings, allow_code)
    with _Steps() as steps:
        found = run(problem, loss.value, PlanOptions(processes, out), steps)
    print(as_json(found), end="") if json else _print(survival_tables(found))


@app.command()
def breakeven(
    scenario: Annotated[str, typer.Argument(help="A scenario whose lists stand for choices.")],
    arch: Annotated[
        str, typer.Option(metavar="PATH=A,B", help="What distinguishes architectures, the simple one first.")
    ],
    rates: Annotated[str, typer.Option(metavar="R,R,...", help="Tasks a second to look at.")],
    settings: Settings = [],  # noqa: B006
    certify: Annotated[bool, typer.Option(help="Simulate and certify; else by the preview's formulas.")] = False,
    processes: Processes = None,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    out: KeptIn = None,
    allow_code: AllowCode = False,
) -> None:
    """Compare architectures against load, each at its own best fleet: bands, the first break-even, regret."""
    from hsim.plan import PlanOptions
    from hsim.plan.breakeven import Architectures
    from hsim.plan.breakeven import breakeven as run
    from hsim.report.plans import breakeven_tables
    from hsim.runs import as_json

    path, _, values = arch.partition("=")
    if not values:
        raise typer.BadParameter("write path=value,value", param_hint="--arch")
    try:
        numbers = [float(rate) for rate in rates.split(",")]
    except ValueError:
        raise typer.BadParameter("write numbers, such as 1,2,4", param_hint="--rates") from None
    with _Steps() as steps:
        options = PlanOptions(processes, out) if certify else None
        architectures = Architectures(path, tuple(values.split(",")), allow_code)
        found = run(scenario, settings, architectures, numbers, options, steps)
    print(as_json(found), end="") if json else _print(breakeven_tables(found))


@app.command()
def pareto(
    scenario: Annotated[str, typer.Argument(help="A scenario whose lists stand for choices.")],
    settings: Settings = [],  # noqa: B006
    most: Annotated[int, typer.Option(min=1, help="Simulate so many fleets, those that promise most.")] = 8,
    replications: Replications = 10,
    processes: Processes = None,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write front.csv into this folder, and keep runs there.")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Cost against joules against latency: which fleets are certainly, and which possibly, not to be bettered."""
    from hsim import runs
    from hsim.plan import read_problem
    from hsim.plan.pareto import pareto as run
    from hsim.report.plans import pareto_tables

    with _Steps() as steps:
        problem = read_problem(scenario, settings, allow_code)
        found = run(problem, most, runs.Options(replications, processes, 0, out), steps)
    if out:
        runs.write_atomically(out / "front.csv", found.csv())
    print(runs.as_json(found), end="") if json else _print(pareto_tables(found))


@app.command()
def sensitivity(
    scenario: Annotated[str, typer.Argument(help="A scenario of one fleet.")],
    settings: Settings = [],  # noqa: B006
    around: Annotated[float, typer.Option(min=0.01, max=0.5, help="Move inputs by this part of themselves.")] = 0.2,
    flip: Annotated[bool, typer.Option(help="Look for how far each input is from undoing the verdict.")] = False,
    replications: Replications = 10,
    processes: Processes = None,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    out: KeptIn = None,
    allow_code: AllowCode = False,
) -> None:
    """Which input moves the result most, by paired differences, and which would undo the verdict first."""
    from hsim import runs
    from hsim.plan.sensitivity import Around
    from hsim.plan.sensitivity import sensitivity as run
    from hsim.report.plans import sensitivity_tables

    with _Steps() as steps:
        options = runs.Options(replications, processes, 0, out)
        found = run(scenario, settings, Around(around, flip), options, steps, allow_code)
    print(runs.as_json(found), end="") if json else _print(sensitivity_tables(found))


Vary = Annotated[
    list[str],
    typer.Option(
        metavar="PATH=VALUES",
        help="Values (16,64,256), or a range: low:high:count, with :log and :whole behind it. May be repeated.",
    ),
]


@app.command()
def sweep(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of a shipped scenario.")],
    vary: Vary,
    settings: Settings = [],  # noqa: B006
    samples: Annotated[
        int | None, typer.Option(min=1, help="So many points of a Latin hypercube instead of every combination.")
    ] = None,
    replications: Replications = 10,
    processes: Processes = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="TCP://HOST:PORT", help="Run on the workers of this dask scheduler instead.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write sweep.parquet and sweep.csv into this folder, and keep runs there to go on with."),
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Simulate every combination of values, or a sample of ranges: a row of figures, intervals and verdicts for each."""
    from hsim.report.sweeps import sweep_tables
    from hsim.runs import Options, as_json
    from hsim.sweeps import Asked, axes_of
    from hsim.sweeps import sweep as run

    asked = Asked(scenario, axes_of(vary), settings, samples, allow_code)
    with _Points() as points:
        found = run(asked, Options(replications, processes, 0, out, cluster=cluster), points)
    print(as_json(found), end="") if json else _print(sweep_tables(found))
    if not found.complete:
        kept = (
            f"; what was finished is kept in {out}, and the same command goes on with it" if out else "; --out keeps it"
        )
        print(f"hsim: interrupted after {len(found.rows)} of {found.points} points{kept}", file=sys.stderr)
        raise typer.Exit(130)


def _there(have: str | None) -> dict[str, float | str | None]:
    """`server=count,...` as settings."""
    pairs = [pair.partition("=") for pair in have.split(",")] if have else []
    if any(not name or not count.isdigit() for name, _, count in pairs):
        raise typer.BadParameter("write server=count,..., such as hgx-h100-8=4,epyc-9654-2s=2", param_hint="--have")
    return {f"plan.have.{name}": count for name, _, count in pairs}


Device = Annotated[str, typer.Option(help="Where the decoder runs: cpu or cuda:0.")]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="An OpenAI-compatible server; its key, if it needs one, is read from HSIM_API_KEY."
    ),
]
ServedModel = Annotated[
    str | None, typer.Option(help="The model to ask the server for; needed where it does not list exactly one.")
]
ServedTokenizer = Annotated[
    Path | None, typer.Option(help="The served model's tokenizer.json, or its folder, for prompts of exact length.")
]


@app.command()
def validate(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of a shipped scenario.")],
    settings: Settings = [],  # noqa: B006
    device: Device = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="Run the tasks live so often: the spread is the machine's.")] = 1,
    loads: Annotated[
        str | None,
        typer.Option(help="Per cent of the predicted capacity, such as 30,60,85: agentic, single-shot, and capacity."),
    ] = None,
    allow_code: AllowCode = False,
    base_url: BaseUrl = None,
    model: ServedModel = None,
    tokenizer: ServedTokenizer = None,
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write validation.json and validation.html into this folder.")
    ] = None,
) -> None:
    """Simulate a scenario, run the same tasks live on this machine, and show how far the prediction was off."""
    from hsim.report.live import loads_tables, validation_tables
    from hsim.runs import as_json, check_writable, write_atomically
    from hsim.validate import Options, validate_loads
    from hsim.validate import validate as run
    from hsim.validate.page import page

    device, endpoint = _served(device, base_url, model, tokenizer)
    options = Options(device, repeats, allow_code=allow_code, endpoint=endpoint)
    if out:
        check_writable(out)  # now, and not when all has been measured
    if loads is None:
        with _stopping_is_told():
            single = run(scenario, settings, options)
        text, tables, stopped, shown = as_json(single), validation_tables(single), single.stopped, [("", single)]
    else:
        with _stopping_is_told():
            several = validate_loads(scenario, settings, _fractions(loads), options)
        text, tables, stopped = as_json(several), loads_tables(several), several.stopped
        shown = [(one.name, one.validation) for one in several.runs]
    if out:  # first: whoever reads what is printed may have gone
        write_atomically(out / "validation.json", text)
        write_atomically(out / "validation.html", page(shown))
    print(text, end="") if json else _print(tables)
    if stopped:
        raise typer.Exit(130 if stopped == "Ctrl-C" else 2)


@contextmanager
def _stopping_is_told() -> Iterator[None]:
    """In this block the first Ctrl-C says what comes of it, which takes simulations; the next ends the command."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # it is ignored, or somebody else's
        yield
        return

    def tell(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        told = "live runs that were complete are judged now (Ctrl-C again ends it without them)"
        print(f"hsim: stopping; {told}", file=sys.stderr, flush=True)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _served(
    device: str, base_url: str | None, model: str | None, tokenizer: Path | None
) -> tuple[str, RemoteSpec | None]:
    """What results call the place where the model is, and the endpoint if it is one."""
    if base_url is None:
        return device, None
    from hsim.backends.endpoint import spec_of
    from hsim.drivers.endpoint import RemoteSpec

    spec = spec_of(base_url, model, "--base-url")
    return spec.where, RemoteSpec(spec, tokenizer)


def _fractions(per_cents: str) -> list[float]:
    try:
        found = [float(one) / 100 for one in per_cents.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < one < 1 for one in found):
        raise typer.BadParameter("give per cents between 0 and 100, such as 30,60,85", param_hint="--loads")
    return found


@app.command()
def live(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of a shipped scenario.")],
    settings: Settings = [],  # noqa: B006
    device: Device = "cpu",
    sleep: Annotated[bool, typer.Option(help="Sleep for the modelled times instead of doing the work.")] = False,
    allow_code: AllowCode = False,
    base_url: BaseUrl = None,
    model: ServedModel = None,
    tokenizer: ServedTokenizer = None,
) -> None:
    """Run a scenario's tasks for real on this machine: its own decoder, encoder and tools, on the wall clock."""
    from hsim.report.live import live_tables
    from hsim.validate import live as run

    if base_url and sleep:
        raise typer.BadParameter("an endpoint does its work, and cannot sleep instead", param_hint="--sleep")
    device, endpoint = _served(device, base_url, model, tokenizer)
    result = run(scenario, settings, device, sleep, allow_code, endpoint)
    _print(live_tables(result))
    if result.stopped:
        raise typer.Exit(130 if result.stopped == "Ctrl-C" else 2)


@app.command()
def calibrate(
    device: Annotated[str, typer.Option(help="cpu, cuda:0, or all.")] = "all",
    budget: Annotated[str, typer.Option(help="How long it may take, such as 9m or 90s.")] = "9m",
    out: Annotated[Path, typer.Option(help="Where calibration/ and hardware_profiles/ are written.")] = Path(),
    name: Annotated[str | None, typer.Option(help="What to call it; the machine's name when left out.")] = None,
    model: Annotated[
        str | None, typer.Option(help="The model whose decoder steps are tabled; of an endpoint, the one it serves.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with what an earlier calibration of that name measured.")] = False,
    endpoint: BaseUrl = None,
    architecture: Annotated[
        str | None, typer.Option(help="How an endpoint's model is built: a catalogue entry or a config.json.")
    ] = None,
    tokenizer: ServedTokenizer = None,
    max_concurrency: Annotated[int, typer.Option(min=2, help="The most requests at once at an endpoint.")] = 8,
    max_input_tokens: Annotated[int, typer.Option(min=64, help="The longest prompt sent to an endpoint.")] = 512,
    stages: Annotated[
        Path | None, typer.Option(help="A Python file of stages of your own; needs --allow-code.")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Measure this machine's kernels and tools, or an endpoint from outside; fit cost models, write them as profiles."""
    from hsim.report.live import calibration_tables
    from hsim.units import parse_seconds

    try:
        budget_s = parse_seconds(budget)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--budget") from None
    if endpoint and stages:
        raise typer.BadParameter("are of this machine; calibrate them without --endpoint", param_hint="--stages")
    with _Progress() as progress:
        if endpoint:
            from hsim.backends.endpoint import spec_of
            from hsim.calibrate.endpoint import EndpointOptions, calibrate_endpoint

            spec = spec_of(endpoint, model, "--endpoint")
            asked = EndpointOptions(spec, budget_s, out, name, resume, architecture, tokenizer)
            report = calibrate_endpoint(
                replace(asked, max_concurrency=max_concurrency, max_input_tokens=max_input_tokens), progress
            )
        else:
            from hsim.calibrate.options import CalibrationOptions
            from hsim.calibrate.run import calibrate as run

            options = CalibrationOptions(
                device, budget_s, out, name, resume, model, stages=stages, allow_code=allow_code
            )
            report = run(options, progress)
    _print(calibration_tables(report))


@app.command()
def scenarios() -> None:
    """List the shipped scenarios and the question that each answers."""
    from hsim.description.catalogue import shipped

    for file in sorted(shipped("scenarios").glob("*.yaml")):
        question = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        print(f"{file.stem:<24} {question}")


@app.command()
def dashboard(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens.")] = 8501,
    address: Annotated[
        str, typer.Option(help="Who may connect; 0.0.0.0 is everybody, and there is no password.")
    ] = "127.0.0.1",
) -> None:
    """Open the what-if dashboard in a browser: fleets, load and objectives by slider."""
    from hsim.dashboard.launch import check_installed, launch

    check_installed()
    print(f"hsim: http://{address}:{port} (Ctrl-C stops it)", file=sys.stderr)
    raise typer.Exit(launch(port, address))


@app.command()
def schema() -> None:
    """Print the JSON schema of scenarios, with which editors check and complete them."""
    from hsim.description.schema import scenario_schema

    print(scenario_schema(), end="")


hardware = typer.Typer(
    help="Look at hardware profiles: what they say, on what it stands, how far it is off.", no_args_is_help=True
)
app.add_typer(hardware, name="hardware")


@hardware.command("list")
def hardware_list(
    kind: Annotated[
        str | None, typer.Option(help="Only of one kind: cpu, accelerator, server, link, engine ...")
    ] = None,
) -> None:
    """List the profiles that a scenario in this folder may name: shipped ones, and those of hsim calibrate."""
    from hsim.description.hardware import PROFILE_KINDS
    from hsim.description.inventory import inventory
    from hsim.report.hardware import inventory_table

    if kind is not None and kind not in PROFILE_KINDS:
        raise typer.BadParameter(f"there is no kind {kind!r}; use {', '.join(PROFILE_KINDS)}", param_hint="--kind")
    _print(inventory_table([entry for entry in inventory() if kind in (None, entry.kind)]))


@hardware.command("show")
def hardware_show(name: Annotated[str, typer.Argument(help="A profile's name.")]) -> None:
    """Show every figure of a profile with its bounds, tier and source, and the held-out errors of its calibration."""
    from hsim.description.inventory import entry_of
    from hsim.report.hardware import profile_tables

    _print(profile_tables(entry_of(name)))


@hardware.command("compare")
def hardware_compare(names: Annotated[list[str], typer.Argument(help="Two profiles of a kind, or more.")]) -> None:
    """Put profiles side by side, figure by figure."""
    from hsim.description.inventory import entry_of
    from hsim.report.hardware import comparison_of_profiles

    if len(names) < 2:
        raise typer.BadParameter("name two profiles or more", param_hint="NAMES")
    entries = [entry_of(name) for name in names]
    if len({entry.kind for entry in entries}) > 1:
        kinds = ", ".join(f"{entry.profile.name} is of kind {entry.kind}" for entry in entries)
        raise typer.BadParameter(f"profiles of unlike kinds have no figures in common: {kinds}", param_hint="NAMES")
    _print(comparison_of_profiles(entries))


traces = typer.Typer(help="Look at traces of requests, and convert them.", no_args_is_help=True)
app.add_typer(traces, name="trace")

TraceFile = Annotated[Path, typer.Argument(help="A trace in one of the formats of docs/workloads.md, or .gz of it.")]
Tokenizer = Annotated[
    Path | None, typer.Option(help="A tokenizer.json, or its folder, for a trace that holds text (ShareGPT).")
]


@traces.command("show")
def trace_show(
    file: TraceFile,
    tokenizer: Tokenizer = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write a picture: a page (.html) or a drawing (.svg).")] = None,
) -> None:
    """Rate, burstiness, lengths, rounds and shared prefixes of a trace."""
    from hsim.report.tables import pairs_table
    from hsim.runs import as_json, write_atomically
    from hsim.workload.traces import read_trace
    from hsim.workload.traces.picture import page, picture
    from hsim.workload.traces.summary import described, summary_of

    if out and out.suffix not in (".html", ".svg"):
        raise typer.BadParameter(f"{out} is no .html and no .svg", param_hint="--out")
    trace = read_trace(file, tokenizer)
    summary = summary_of(trace)
    if out:
        write_atomically(out, page(trace, file.name) if out.suffix == ".html" else picture(trace))
    print(as_json(summary), end="") if json else _print(pairs_table(described(summary)))


@traces.command("convert")
def trace_convert(
    file: TraceFile,
    out: Annotated[Path, typer.Argument(help="The CSV to write: .csv, or .csv.gz, which is gzipped.")],
    tokenizer: Tokenizer = None,
) -> None:
    """Write a trace as hsim's own CSV, which reads back as the same trace."""
    from hsim.workload.traces import read_trace
    from hsim.workload.traces.convert import check_target, write_trace

    check_target(file, out)
    trace = read_trace(file, tokenizer)
    write_trace(trace, out)
    notes = "".join(f"; {note}" for note in trace.notes)
    print(f"hsim: {out} has {len(trace.input_tokens):,} requests of {trace.tasks:,} tasks{notes}", file=sys.stderr)


class _Progress:
    """A progress bar on stderr for phases that count down a budget."""

    def __enter__(self) -> _Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TextColumn("{task.fields[left]}  {task.fields[message]}", markup=False),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=1.0, left="", message="")
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, phase: str, done_fraction: float, left_s: float, message: str) -> None:
        left = f"{left_s:4.0f} s left"
        self._bar.update(self._task, description=phase, completed=done_fraction, left=left, message=message)


class _Points:
    """The same for the points of a sweep: what is left is taken to go as fast as what is done."""

    def __enter__(self) -> _Points:
        from time import monotonic

        self._clock, self._began_s = monotonic, monotonic()
        self._bar = _Progress().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.__exit__()

    def __call__(self, standing: Standing) -> None:
        done = standing.done / standing.points
        left_s = (self._clock() - self._began_s) * (1 / done - 1) if done else 0.0
        said = f"{standing.done} of {standing.points} points, {standing.replications} replications run"
        self._bar("sweep", done, left_s, said)


class _Steps:
    """The progress of a search on stderr, on one line that goes when it ends."""

    def __enter__(self) -> _Steps:
        from rich.console import Console

        self._status = Console(stderr=True).status("")
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def __call__(self, step: Step) -> None:
        from rich.text import Text

        where = f"fleet {step.looked_at} of {step.alive}" if step.alive else ""
        told = f"{step.phase:<8} {where}, {step.replications} replications: {step.fleet} {step.message}"
        self._status.update(Text(told))


def _print(tables: RenderableType) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)  # brackets in a name or a reason are brackets
    console.width = max(console.width, MIN_WIDTH)  # a pipe has no width, and rich would take 80
    console.print(tables)


# With which option a command keeps what it has finished, to go on with.
STUDIES = ("simulate", "compare", "plan", "survive", "breakeven", "pareto", "sensitivity", "sweep")
KEEPS = dict.fromkeys(STUDIES, "--out") | {"report": "--runs"}


def _what_is_kept(arguments: list[str]) -> str:
    """What became of finished work where Ctrl-C ended a command of these arguments before it could say so itself."""
    command = arguments[0] if arguments else ""
    if command == "calibrate":
        return "what was measured is kept, and the same command with --resume goes on with it"
    option = KEEPS.get(command)
    if option is None:
        return "nothing was kept"
    if any(argument.partition("=")[0] == option for argument in arguments):
        return f"what was finished is kept where {option} says, and the same command goes on with it"
    return f"nothing was kept; with {option} FOLDER what is finished would be"


def main() -> None:
    """Run the command line; what is the user's to mend ends with one clear line and exit code 2."""
    try:
        app()
    except HsimError as error:
        print(f"hsim: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):  # typer ends it without a word
            print(f"hsim: interrupted; {_what_is_kept(sys.argv[1:])}", file=sys.stderr)
        raise
    except KeyboardInterrupt:  # before typer began
        print("hsim: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        gc.freeze()  # else Python walks over all modules and tasks at its end, looking for cycles, before it lets go of them
