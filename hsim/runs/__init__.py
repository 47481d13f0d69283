"""Runs from start to result: one path, studies of several replications in parallel processes, the store of both."""

from hsim.runs.paths import path_of, simulate, system_of, vllm_bench_of
from hsim.runs.store import as_json, check_writable, write_atomically
from hsim.runs.studies import Options, is_one_path, study

__all__ = [
    "Options",
    "as_json",
    "check_writable",
    "is_one_path",
    "path_of",
    "simulate",
    "study",
    "system_of",
    "vllm_bench_of",
    "write_atomically",
]
