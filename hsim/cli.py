"""The command line: the only file that prints."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsim.errors import HsimError

if TYPE_CHECKING:
    from rich.console import RenderableType

MIN_WIDTH = 110

# Torch's threads spin while they wait, which on busy cores makes small operations a hundred times slower. It reads
# this when it is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

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


@app.command()
def simulate(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of a shipped scenario.")],
    settings: Settings = [],  # noqa: B006  # typer reads it, nobody changes it
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write result.json into this folder.")] = None,
    explain: Annotated[bool, typer.Option(help="Show every assumption with its reason.")] = False,
    stepwise: Annotated[
        bool, typer.Option(help="Take every engine step as an event of its own: the slow reference.")
    ] = False,
) -> None:
    """Predict latency, throughput, joules per task (TST), tokens per watt (TPW), cost and CO2 of a scenario."""
    from hsim.report import result_tables
    from hsim.runs import result_json, write_atomically
    from hsim.runs import simulate as run

    result = run(scenario, settings, stepwise)
    if out:
        write_atomically(out / "result.json", result_json(result))
    if json:
        print(result_json(result), end="")
    else:
        _print(result_tables(result, explain))


@app.command()
def scenarios() -> None:
    """List the shipped scenarios and the question that each answers."""
    from hsim.description.catalogue import shipped

    for file in sorted(shipped("scenarios").glob("*.yaml")):
        question = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        print(f"{file.stem:<24} {question}")


def _print(tables: RenderableType) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, MIN_WIDTH)  # a pipe has no width, and rich would take 80
    console.print(tables)


def main() -> None:
    """Run the command line; what is the user's to mend ends with one clear line and exit code 2."""
    try:
        app()
    except HsimError as error:
        print(f"hsim: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("hsim: interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
