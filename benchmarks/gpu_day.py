"""Everything worth doing while a GPU is at hand, in order of worth, within some minutes a call, resumable.

    python benchmarks/gpu_day.py --out OUT [--earlier gpu_day.tgz] [--minutes 9] [--device cuda:0]

1. Calibrates the GPU, with energy, and the operations of the machine's CPU.
2. Validates: the scenario that calibration wrote, simulated and run live, at three loads of its capacity and in a closed
   loop, with agentic and with single-shot tasks.
3. Repeats: goes on calibrating, so that what differs between rounds is known, energy too.

OUT receives gpu_day.tgz, all that was measured and written (a few hundred kilobytes), and summary.txt, after each step
anew. A later call that is given the archive as --earlier goes on where it ended; on another machine calibrate refuses to,
so let calls follow each other. A first call of nine minutes calibrates, the second validates. Needs torch, numpy, PyYAML
and hsim's own dependencies; without an installation run it from the repository's root with PYTHONPATH=. and the
dependencies on that path.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

LOADS = (30, 60, 85)  # per cent of the predicted capacity
LOAD_OF_LOCAL = 0.4  # the load that calibrate gave local.yaml: hsim/calibrate/write.py
TASKS = (20, 200)  # at each load: the fewest that say anything, and no more than wanted
SINGLE_SHOT = 0.5  # of the seconds that agentic tasks take, about
BESIDE = 1.1  # times as long as the tasks themselves
PACE_S = 23.0  # a look at the machine's pace: 15 calls of each operation after rests of 0.25 s, and the decoder
START_S = 45.0  # a worker for each core
LAST_WORDS_S = 20.0  # for a command that is interrupted to write what it has
CALIBRATION_SHARE = 0.9  # of a first call: in what is left no validation fits
PACKING_S = 10.0


@dataclass
class Day:
    """A call under way: where it writes, and until when."""

    work: Path
    out: Path
    device: str
    until_s: float
    done: dict[str, Any]

    def left_s(self) -> float:
        """Seconds of this call that are left for work."""
        return self.until_s - PACKING_S - time.monotonic()

    def run(self, step: str, *arguments: str) -> bool:
        """Run hsim with arguments until it ends or the time is up; keeps what it printed. Whether it ended well."""
        command, start_s = [sys.executable, "-m", "hsim", *arguments], time.monotonic()
        print(f"[{self.left_s():.0f} s left] {step}: hsim {' '.join(arguments)}", flush=True)
        log = self.work / f"{step}.txt"
        with log.open("w", encoding="utf-8") as printed:
            process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
            try:
                code: int | str = process.wait(timeout=max(1.0, self.left_s() - LAST_WORDS_S))
            except subprocess.TimeoutExpired:
                code = "the time was up"
                process.send_signal(signal.SIGINT)  # it then writes what it has
                try:
                    process.wait(timeout=LAST_WORDS_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self.done[step] = {"code": code, "seconds": round(time.monotonic() - start_s, 1)}
        (self.work / "done.json").write_text(json.dumps(self.done, indent=2), encoding="utf-8")
        pack(self)  # now: whoever lends the machine may take it back without a word
        print(log.read_text(encoding="utf-8")[-3000:], flush=True)
        return code == 0


def calibrate(day: Day, step: str, budget_s: float) -> bool:
    """Calibrate for so many seconds, going on after what was measured before."""
    arguments = ("--device", day.device, "--budget", f"{budget_s:.0f}s", "--out", str(day.work), "--resume")
    return day.run(step, "calibrate", *arguments)


def validate(day: Day) -> bool:
    """Validate at all loads, with as many tasks as there is time for; not at all where that is too few."""
    scenario = day.work / "local.yaml"
    if not scenario.exists():  # too little was measured yet
        return False
    rate_per_s = yaml.safe_load(scenario.read_text(encoding="utf-8"))["workload"]["arrivals"]["rate_per_s"]
    each_s = LOAD_OF_LOCAL / rate_per_s * (1 + sum(100 / load for load in LOADS)) * (1 + SINGLE_SHOT) * BESIDE
    left_s = day.left_s() - LAST_WORDS_S - START_S - (1 + 2 * (1 + len(LOADS))) * PACE_S
    if left_s < TASKS[0] * each_s:
        return False
    tasks = int(min(left_s / each_s, TASKS[1]))
    loads, out = ",".join(map(str, LOADS)), str(day.work / "validation")
    asked = ("--device", day.device, "--loads", loads, "--set", f"workload.tasks={tasks}", "--out", out)
    return day.run("validation", "validate", str(scenario), *asked)


def spend(day: Day) -> None:
    """Do what there is to do, best first, while time is left."""
    first = day.done.get("calibration", {}).get("code") != 0
    if first and not calibrate(day, "calibration", CALIBRATION_SHARE * day.left_s()):
        return
    if day.done.get("validation", {}).get("code") != 0:
        validate(day)
    while day.left_s() > 60:
        repeats = sum(step.startswith("repeat") for step in day.done)
        if not calibrate(day, f"repeat-{repeats + 1}", day.left_s() - LAST_WORDS_S - 5):
            return


def pack(day: Day) -> None:
    """Everything into one small archive, and a summary beside it."""
    with tarfile.open(day.out / "gpu_day.tgz.part", "w:gz") as archive:
        archive.add(day.work, arcname="gpu_day")
    (day.out / "gpu_day.tgz.part").replace(day.out / "gpu_day.tgz")
    lines = [f"{step}: code {told['code']}, {told['seconds']} s" for step, told in day.done.items()]
    for fit in day.work.glob("calibration/*/fit.json"):
        found = json.loads(fit.read_text(encoding="utf-8"))
        lines += [json.dumps(law) for law in found["laws"]] + [
            f"unavailable {k}: {v}" for k, v in found["unavailable"].items()
        ]
    lines += [file.read_text(encoding="utf-8") for file in sorted(day.work.glob("validation*.txt"))]
    (day.out / "summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Unpack what an earlier call left, spend the time, and pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_day_out")))
    parser.add_argument("--earlier", type=Path, help="the gpu_day.tgz of an earlier call")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--device", default="cuda:0")
    asked = parser.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # in the background of a shell it is ignored, and by children too
    until_s = time.monotonic() + 60 * asked.minutes
    asked.out.mkdir(parents=True, exist_ok=True)
    work = asked.out.parent / f"{asked.out.name}.work" / "gpu_day"
    work.mkdir(parents=True, exist_ok=True)
    if asked.earlier:
        with tarfile.open(asked.earlier) as archive:
            archive.extractall(work.parent, filter="data")
    state = work / "done.json"
    day = Day(
        work, asked.out, asked.device, until_s, json.loads(state.read_text(encoding="utf-8")) if state.exists() else {}
    )
    try:
        spend(day)
    finally:
        pack(day)


if __name__ == "__main__":
    main()
