"""The errors that hsim raises on purpose, as a tree.

HsimError
    DescriptionError   a scenario, profile, model or trace that cannot be used; raised before time zero
    ResultError        results that cannot be written or read
    CalibrationError   a calibration that cannot begin, go on or be written
"""

from __future__ import annotations


class HsimError(Exception):
    """Base of every error that is the user's to mend; the command line prints it and exits with code 2."""


class DescriptionError(HsimError):
    """What is asked for cannot be run.

    Reads `where: what is wrong; what would be right`, where `where` is `file:line: path.to.key`.
    """

    def __init__(self, where: str, problem: str, remedy: str = "") -> None:
        self.where, self.problem, self.remedy = where, problem, remedy
        super().__init__(f"{where}: {problem}" + (f"; {remedy}" if remedy else ""))


class ResultError(HsimError):
    """Results that cannot be written or read back."""


class CalibrationError(HsimError):
    """A calibration cannot begin, go on or be written. Reads `where: what is wrong; what would be right`."""

    def __init__(self, where: str, problem: str, remedy: str = "") -> None:
        super().__init__(f"{where}: {problem}" + (f"; {remedy}" if remedy else ""))
