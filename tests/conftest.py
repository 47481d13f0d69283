"""What every test stands on: quiet threads, and hypothesis profiles.

`dev` (the default) looks for new faults each time; `ci` repeats the same examples; `mutants` repeats them and does
not shrink, since a seeded fault need only be caught.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is first imported: its threads spin otherwise

from hypothesis import HealthCheck, Phase, settings

_COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("dev", **_COMMON)
settings.register_profile("ci", derandomize=True, **_COMMON)
settings.register_profile("mutants", derandomize=True, phases=[Phase.explicit, Phase.generate], **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


def pytest_sessionstart() -> None:
    """A seeded fault is tested in its own copy of hsim: make sure that it is that copy."""
    import hsim

    folder = os.environ.get("HSIM_TESTED_IN")
    assert folder is None or hsim.__file__.startswith(folder), f"{hsim.__file__} is tested, not {folder}"
