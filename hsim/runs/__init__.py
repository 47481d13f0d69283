"""Runs from start to result: one path, studies of several replications in parallel processes, the store of both."""

from hsim.runs.paths import simulate
from hsim.runs.store import as_json, write_atomically
from hsim.runs.studies import Options, study

__all__ = ["Options", "as_json", "simulate", "study", "write_atomically"]
