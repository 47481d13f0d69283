"""Loaded by the process that workers are forked from: hsim, and what its first simulation builds, such as validators."""

from __future__ import annotations

import contextlib

from hsim.dashboard.limits import admitted
from hsim.dashboard.state import Question
from hsim.dashboard.work import with_tasks
from hsim.errors import HsimError
from hsim.runs import path_of

FEW_TASKS = 10  # they build all that a thousand do, and whoever comes first waits for them

with contextlib.suppress(HsimError):  # whoever asks for it is told
    path_of(with_tasks(admitted(Question()), FEW_TASKS))
