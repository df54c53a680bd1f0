"""Whole jobs with the annotator of fake_annotator.py, and what they leave behind."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import fake_annotator
import pyarrow.parquet as pq
import ray
from rich.console import Console

from worldline.ray_jobs.annotate import JobConfig, RunConfig, make_work, new_run_id, run_job
from worldline.ray_jobs.progress import Tally
from worldline.ray_jobs.stages import Limits

# Workers cannot import a test module.
ray.cloudpickle.register_pickle_by_value(fake_annotator)

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("fake_annotator.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
ENVIRONMENT |= {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}


def run(inputs: Path, out: Path, limits: Limits | None = None, **options: Any) -> Tally:
    """The job in this process."""
    limits = limits or Limits(clip_timeout_s=60.0)
    config = JobConfig(
        inputs=(str(inputs),), out=out, run=RunConfig(limits=limits, max_failed_share=1.0, **options)
    )
    work = fake_annotator.with_fakes(make_work(config, new_run_id()))
    return run_job(config, Console(quiet=True), work)


def write(folder: Path, **videos: str) -> Path:
    """A folder of videos; each is its scenes' orders with commas between."""
    folder.mkdir(exist_ok=True)
    for name, orders in videos.items():
        (folder / f"{name}.mp4").write_text(orders.replace(", ", "\n"))
    return folder


def rows(out: Path) -> dict[tuple[str, float], dict[str, Any]]:
    """The table's rows by video and time."""
    rows = pq.read_table(out / "trajectories").to_pylist()
    found = {(Path(row["path"]).stem, row["start_s"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def hashes(out: Path) -> dict[str, str]:
    """Of each file of the tables."""
    files = [*out.glob("trajectories/*"), *out.glob("videos/*")]
    assert files
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
