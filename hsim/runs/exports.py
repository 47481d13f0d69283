"""One path for other programs: parquet tables, and a trace for Chrome and Perfetto, each with all that made it."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import yaml

from hsim.description.system import System
from hsim.errors import HsimError
from hsim.metrics.chrome_trace import chrome_trace
from hsim.metrics.exported import WHAT, Frame, frames_of, unit_of
from hsim.metrics.summarise import hsim_version, scenario_hash
from hsim.metrics.timelines import timelines_of
from hsim.runs.paths import Job, path_log, seeded
from hsim.runs.store import write_atomically

TRACE = "trace.json"


def export_path(system: System, out: Path, replication: int = 0, tables: bool = True, trace: str = TRACE) -> list[Path]:
    """Write one terminating path of a system: its tables as parquet, and its trace (none where `trace` is empty).

    The path is that of the replication's seed, from an empty system to an empty one. A trace whose name ends in .gz
    is gzipped. Raises HsimError where pyarrow is not installed, before anything runs.
    """
    if tables:
        pyarrow_module("write the trace alone with --only trace")
    seeded_system = seeded(system, replication)
    prepared, log = path_log(Job(seeded_system, replication, None))
    about = provenance(seeded_system)
    written = []
    if tables:
        for name, frame in frames_of(log, prepared.drawn.tasks).items():
            written.append(out / f"{name}.parquet")
            write_atomically(written[-1], parquet(frame, {**about, "table": name, "what": WHAT[name]}))
    if trace:
        lines = timelines_of(log, prepared.accounts)
        text = json.dumps(chrome_trace(log, lines, about), separators=(",", ":"), allow_nan=False)
        written.append(out / trace)
        # Without a time stamp, so that the same seed gives the same bytes.
        write_atomically(written[-1], gzip.compress(text.encode(), mtime=0) if trace.endswith(".gz") else text)
    return written


def provenance(system: System) -> dict[str, str]:
    """What a path was made from: the scenario as text that runs again, its hash, the seed, hsim's version."""
    return {
        "scenario": scenario_text(system),
        "scenario_file": system.document.file,
        "scenario_sha256": scenario_hash(system.scenario),
        "seed": str(system.scenario.seed),
        "hsim_version": hsim_version(),
    }


def scenario_text(system: System) -> str:
    """The scenario with all settings applied, as YAML that says the same again."""
    written = ("architecture", "architectures", "counts")  # the chosen architecture's sections stand in place
    data = {key: value for key, value in system.document.data.items() if key not in written}
    data["seed"] = system.scenario.seed
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def parquet(frame: Frame, about: dict[str, str]) -> bytes:
    """A table as a parquet file: `about` in the file's metadata under hsim.*, and in each column's its unit."""
    pa = pyarrow_module()
    from pyarrow.parquet import write_table

    fields = [pa.field(name, _kind(pa, cells), metadata={"unit": unit_of(name)}) for name, cells in frame.items()]
    schema = pa.schema(fields, metadata={f"hsim.{key}": value for key, value in about.items()})
    columns = [pa.array(cells, type=column.type) for cells, column in zip(frame.values(), fields, strict=True)]
    buffer = io.BytesIO()
    write_table(pa.table(columns, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def _kind(pa: Any, cells: Any) -> Any:
    if isinstance(cells, list):
        return pa.dictionary(pa.int32(), pa.string())
    return pa.int64() if cells.dtype.kind == "i" else pa.float64()


def pyarrow_module(instead: str = "") -> Any:
    """The library that writes parquet. Raises HsimError where it is not installed, with what could be done instead."""
    try:
        import pyarrow
    except ModuleNotFoundError:
        remedy = f"pip install pyarrow{', or ' if instead else ''}{instead}"
        raise HsimError(f"pyarrow is not installed; parquet tables need it: {remedy}") from None
    return pyarrow
