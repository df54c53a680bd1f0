"""The trainer on Ray while its processes die: does the run end where an undisturbed one ends?

    python -m benchmarks.soak --recipe recipe_output --minutes 10

Trains the recipe's model with two processes under Ray Train and kills one of them every minute, then trains without a death,
on one process, for as many steps. Compares weights, the loader's position and the lines of metrics.jsonl (one a step: no
batch lost or doubled). Writes docs/results/soak.md.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
import tyro

from benchmarks.report import write_report
from worldline.ray_jobs.recipe import WHERE
from worldline.train.checkpoint import load_state, plain, steps_of
from worldline.train.config import TrainConfig
from worldline.train.presets import walk_model
from worldline.train.trainer import train

SCRIPT = """
import json, sys
from pathlib import Path
from worldline.ray_jobs.train import RayTrainConfig, main
from worldline.train.checkpoint import built
from worldline.train.config import TrainConfig
settings = json.loads(Path(sys.argv[1]).read_text())
sys.exit(main(RayTrainConfig(train=built(TrainConfig, settings), ranks=2, max_failures=1000)))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SoakConfig:
    """How long, and how often a process dies."""

    recipe: Path
    """Folder of a finished `worldline recipe`."""
    out: Path = Path("soak")
    """Where the runs go; must not exist."""
    minutes: float = 10.0
    """Processes die until then; the run then goes on to its end."""
    every_s: float = 60.0
    """Between two deaths."""
    steps: int = 1000
    checkpoint_every: int = 50


def stage(config: SoakConfig, out: Path) -> TrainConfig:
    """The recipe's stage of training, in steps that are all logged."""
    decided = config.recipe / "dataset" / "decisions" / "permissive.parquet"
    made = walk_model(
        str((config.recipe / "latents").absolute()),
        out.absolute(),
        (config.recipe / "runs" / "patches").absolute(),
        decisions=decided.absolute(),
        steps=config.steps,
    )
    return replace(
        made,
        where=WHERE,
        cached_latents=True,
        log_every=1,
        checkpoint_every=config.checkpoint_every,
        device="cpu",
    )


def soak(config: SoakConfig, out: Path) -> dict[str, Any]:
    """The disturbed run; what happened to it."""
    out.mkdir(parents=True)
    (out / "settings.json").write_text(json.dumps(plain(stage(config, out / "run"))))
    (out / "run.py").write_text(SCRIPT)
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    started_s, deaths = time.monotonic(), 0
    with (out / "log.txt").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, str(out / "run.py"), str(out / "settings.json")],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        next_s = started_s + config.every_s
        while driver.poll() is None:
            time.sleep(0.5)
            now_s = time.monotonic()
            if next_s < now_s < started_s + 60 * config.minutes:
                workers = [
                    process
                    for process in psutil.Process(driver.pid).children(recursive=True)
                    if "TrainWorker" in " ".join(process.cmdline() or [process.name()])
                ]
                if workers:
                    os.kill(workers[deaths % len(workers)].pid, signal.SIGKILL)
                    deaths += 1
                    next_s = now_s + config.every_s
    return {"exit status": driver.returncode, "deaths": deaths, "seconds": time.monotonic() - started_s}


def main(config: SoakConfig) -> int:
    """1 where the disturbed run is not the undisturbed one."""
    facts = soak(config, config.out / "disturbed")
    disturbed, calm = config.out / "disturbed" / "run", config.out / "calm"
    train(stage(config, calm))
    finished = steps_of(disturbed)[-1:] == [config.steps]
    row: dict[str, Any] = facts | {"steps": config.steps, "finished": finished}
    if finished:
        states = [load_state(path)[1] for path in (disturbed, calm)]
        rows = [json.loads(line) for line in (disturbed / "metrics.jsonl").read_text().splitlines()]
        others = [json.loads(line) for line in (calm / "metrics.jsonl").read_text().splitlines()]
        row |= {
            "each step has one line": [line["step"] for line in rows] == list(range(1, config.steps + 1)),
            "loader at the same place": states[0]["loader"] == states[1]["loader"],
            "loss of the first step apart": abs(rows[0]["loss"] - others[0]["loss"]),
            "loss of the last 100 steps, disturbed": sum(line["loss"] for line in rows[-100:]) / 100,
            "undisturbed": sum(line["loss"] for line in others[-100:]) / 100,
            "weights apart, share of their norm": _apart(states[0]["model"], states[1]["model"]),
        }
    write_report(
        "soak",
        "Training while processes die",
        shlex.join(["python", "-m", "benchmarks.soak", *sys.argv[1:]]),
        {"Two processes under Ray Train, one of them killed again and again": [row]},
        "Undisturbed: one process. Two processes sum gradients in another order than one, so that the weights agree to"
        " rounding, which training amplifies; the batches are the same.",
        packages=("ray",),
    )
    return 0 if finished and row["each step has one line"] and row["loader at the same place"] else 1


def _apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    difference = sum(float((one[name].double() - other[name].double()).square().sum()) for name in other)
    return (difference / sum(float(value.double().square().sum()) for value in other.values())) ** 0.5


if __name__ == "__main__":
    sys.exit(main(tyro.cli(SoakConfig, description=__doc__)))
