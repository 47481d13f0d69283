"""Request traces: readers of the formats in which their owners publish them, a summary, and hsim's own CSV."""

from hsim.workload.traces.read import read_trace
from hsim.workload.traces.trace import Sessions, Trace

__all__ = ["Sessions", "Trace", "read_trace"]
