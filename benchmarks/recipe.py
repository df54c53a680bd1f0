"""The whole recipe timed: raw videos to an evaluated world model, with the memory of all its processes.

    python -m benchmarks.recipe                              the rendered room alone, some 20 minutes on 2 cores
    python -m benchmarks.recipe --videos ../shared/data      with real videos beside it

Writes docs/results/recipe.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tyro

from benchmarks.report import RESULTS_DIR, write_report

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What to run."""

    videos: tuple[str, ...] = ()
    """Given to the recipe beside the rendered room."""
    steps: int = 2000
    """Of training."""
    keep: Path | None = None
    """Folder for the recipe's output; None: a temporary one."""
    out: Path = RESULTS_DIR
    """Folder of the report."""


def main(job: Job) -> int:
    """Exit status of the recipe."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = job.keep or Path(temporary) / "recipe"
        command = [
            sys.executable,
            "-m",
            "worldline.cli",
            "recipe",
            "--out",
            str(folder),
            "--steps",
            str(job.steps),
        ]
        command += ["--videos", *job.videos] if job.videos else []
        started_s = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT)
        peaks: list[float] = []
        watcher = threading.Thread(target=_watch, args=(process, peaks))
        watcher.start()
        status = process.wait()
        wall_s = time.monotonic() - started_s
        watcher.join()
        if status:
            return status
        results = json.loads((folder / "evaluation" / "results.json").read_text())
        stages = json.loads((folder / "evaluation" / "stages.json").read_text())
    whole: list[dict[str, Any]] = [
        {"what": "whole command [min]", "value": wall_s / 60},
        {"what": "peak memory of all its processes together [GiB]", "value": max(peaks) / 2**30},
    ]
    tables = {"Whole": whole, "Stages": stages["costs"], "Clips": stages["ledger"], **results["tables"]}
    options = f" --videos {' '.join(job.videos)}" if job.videos else ""
    write_report(
        "recipe",
        "worldline recipe: from raw videos to a model that follows the camera",
        f"python -m benchmarks.recipe{options}",
        tables,
        notes=(
            "Five frames of 64 x 48 pixels, half a second apart, are made from the first of them and a camera path."
            " Poses of training are the annotator's, metres those of the depth maps beside the films. Two held-out"
            " walks begin at each start, so each has another path to be mistaken for; 0.5 is chance. Intervals are"
            " bootstrapped over starts. Memory is summed over processes, so pages that they share count more than"
            " once. No trajectory was recovered from the videos: whether such frames allow it was not measured."
        ),
        results_dir=job.out,
    )
    return 0


def _watch(process: subprocess.Popen[bytes], peaks: list[float]) -> None:
    """Appends the resident memory of the process and its descendants twice a second."""
    while process.poll() is None:
        total = 0
        try:
            root = psutil.Process(process.pid)
            for one in (root, *root.children(recursive=True)):
                try:
                    total += one.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
        except psutil.NoSuchProcess:
            return
        peaks.append(total)
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Job)))
