"""The whole job on a real local Ray while workers die or hang and drivers are killed; with a fake annotator."""

from __future__ import annotations

import collections
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from worldline.datasets.commit_log import broken_units, commits
from worldline.ray_jobs.stages import Limits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_dying_and_hanging_workers_cost_only_their_own_scene(
    tmp_path: Path, jobs: Any, local_ray: None
) -> None:
    videos = jobs.write(
        tmp_path / "v",
        a="ok, kill-once, ok, reject",
        b="ok, kill, ok",
        c="hang, ok",
        d="ok, raise",
        e="die at probe",
        f="",
    )
    out = tmp_path / "out"
    tally = jobs.run(videos, out, Limits(clip_timeout_s=4.0, max_deaths=2))
    assert tally.missing() is None
    assert dict(tally.videos) == {"ok": 4, "rejected": 1, "failed": 1}
    assert dict(tally.clips) == {"ok": 7, "rejected": 1, "failed": 3}
    rows = jobs.rows(out)
    assert rows["a", 1.0]["status"] == "ok"
    assert rows["b", 1.0]["reason"] == "worker: process died (2 times)"
    assert rows["c", 0.0]["reason"] == "worker: time-out (4 s)"
    assert "time.sleep" in rows["c", 0.0]["error"] or "annotate_clip" in rows["c", 0.0]["error"]
    assert rows["b", 1.0]["replay"].endswith(f"--clip {rows['b', 1.0]['clip_id']}")
    # The healthy rows equal those of a run without a death.
    calm = jobs.write(
        tmp_path / "v", a="ok, kill-once, ok, reject", b="ok, ok, ok", c="ok, ok", d="ok, raise"
    )
    assert broken_units(out) == []
    before = jobs.hashes(out)
    tally = jobs.run(videos, out)
    assert tally.num_new == 5  # b and c have new content; a and d have not
    assert jobs.hashes(out) != before
    undisturbed = tmp_path / "undisturbed"
    jobs.run(calm, undisturbed)
    assert {key: row | {"replay": None, "error": None} for key, row in jobs.rows(out).items()} == {
        key: row | {"replay": None, "error": None} for key, row in jobs.rows(undisturbed).items()
    }


def _start_driver(jobs: Any, videos: Path, out: Path, address: str | None = None) -> subprocess.Popen[str]:
    """With a Ray of its own, or on the cluster at `address`."""
    command = [sys.executable, str(jobs.SCRIPT), str(videos), "--out", str(out)]
    cluster = [] if address is None else ["--run.address", address]
    return subprocess.Popen(
        [*command, "--run.assemble-every-s", "0.5", *cluster],
        env=jobs.ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _wait_for(driver: subprocess.Popen[str], out: Path, pattern: str, count: int) -> None:
    """Until the dataset folder holds `count` files of a pattern."""
    deadline_s = time.monotonic() + 240
    while len(list(out.glob(pattern))) < count:
        assert driver.poll() is None, driver.stdout and driver.stdout.read()
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_a_killed_driver_is_taken_up_where_it_died(tmp_path: Path, jobs: Any, local_ray: None) -> None:
    """SIGKILL while scanning, while annotating, while assembling; Ctrl-C; then a run to the end.

    The first driver has a Ray of its own, the others join the cluster, which outlives them.
    """
    videos = jobs.write(
        tmp_path / "v",
        a=", ".join(["sleep 0.3"] * 10),
        b=", ".join(["sleep 0.4, reject"] * 5),
        c=", ".join(["sleep 0.5"] * 10),
    )
    out = tmp_path / "out"
    cluster = ray.get_runtime_context().gcs_address
    stages = [
        ("stages/videos/*/*/scan.*", 1, signal.SIGKILL, None),
        ("stages/videos/*/*/clip.*", 5, signal.SIGKILL, cluster),
        ("trajectories/*.parquet", 1, signal.SIGKILL, cluster),
        ("stages/videos/*/*/clip.*", 1, signal.SIGINT, cluster),
    ]
    for pattern, num_new, number, address in stages:
        if pattern.startswith("trajectories"):
            shutil.rmtree(out / "trajectories", ignore_errors=True)  # the next assembly has all to write
        num_runs = len(list(out.glob("runs/*/config.json")))
        driver = _start_driver(jobs, videos, out, address)
        # Workers of the driver before may outlive it for a moment: count from when the new one is at work.
        _wait_for(driver, out, "runs/*/config.json", num_runs + 1)
        _wait_for(driver, out, pattern, len(list(out.glob(pattern))) + num_new)
        if number == signal.SIGINT:
            os.killpg(driver.pid, number)
            text, _ = driver.communicate(timeout=240)
            assert driver.returncode == 130, text
            assert "the same command goes on from there" in text
        else:
            os.kill(driver.pid, number)
            driver.wait()
        assert broken_units(out) == []
    driver = _start_driver(jobs, videos, out, cluster)
    text, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, text
    assert "rows in = rows out" in text
    assert "30/30" in text
    jobs.run(videos, tmp_path / "calm")
    assert {k: r | {"replay": None} for k, r in jobs.rows(out).items()} == {
        k: r | {"replay": None} for k, r in jobs.rows(tmp_path / "calm").items()
    }
    # No finished unit was done twice: units with two lines are those whose worker died between line and rename.
    lines = collections.Counter(line["unit"] for line in commits(out))
    assert sum(count - 1 for count in lines.values()) <= 3 * len(stages)
    assert len(lines) == 33
