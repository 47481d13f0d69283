"""Prediction against measurement: the same tasks simulated and run live, side by side, and what is to blame."""

from hsim.validate.loads import LoadsValidation, validate_loads
from hsim.validate.run import LiveResult, Options, Validation, live, validate

__all__ = ["LiveResult", "LoadsValidation", "Options", "Validation", "live", "validate", "validate_loads"]
