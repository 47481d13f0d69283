"""The errors that hsim raises on purpose, as a tree.

HsimError
    DescriptionError   a scenario, profile, model or trace that cannot be used; raised before time zero
        MistakeError   one that is wrong in itself, whatever else of it is chosen
    BackendError       live work that failed, or that cannot be done on this machine
    CalibrationError   a calibration that cannot begin, go on or be written
    ResultError        results that cannot be written or read
    WorkersError       processes or a cluster that cannot be had, or were lost with the work that they did
"""

from __future__ import annotations


class HsimError(Exception):
    """Base of every error that is the user's to mend; the command line prints it and exits with code 2."""


class ExplainedError(HsimError):
    """Reads `where: what is wrong; what would be right`."""

    def __init__(self, where: str, problem: str, remedy: str = "") -> None:
        self.where, self.problem, self.remedy = where, problem, remedy
        super().__init__(f"{where}: {problem}" + (f"; {remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[type[ExplainedError], tuple[str, str, str]]:
        # Exceptions are pickled as their class and message; this one is made of three parts. It travels between processes.
        return type(self), (self.where, self.problem, self.remedy)


class DescriptionError(ExplainedError):
    """What is asked for cannot be run; `where` is `file:line: path.to.key`."""


class MistakeError(DescriptionError):
    """Wrong whatever else is chosen: a name that stands for nothing, a file that is not right. No plan goes on without it.

    Other errors of a description may be those of one combination, such as a model that a server cannot hold.
    """


class BackendError(ExplainedError):
    """Live work that failed or cannot be done here; `where` is the worker, the device, the operation or the meter."""


class CalibrationError(ExplainedError):
    """A calibration that cannot begin, go on or be written; `where` is the device, the file or the option."""


class ResultError(HsimError):
    """Results that cannot be written or read back."""


class WorkersError(HsimError):
    """Those who were to run jobs cannot be had, or were lost; what they had finished was kept."""
