"""The shard job on a real local Ray: killed drivers, clips that kill their worker, equal bytes, exit statuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from worldline.datasets.commit_log import broken_units, commits
from worldline.datasets.shard_format import ShardDir
from worldline.datasets.shard_plan import PlanConfig, extend_plan
from worldline.datasets.verify import verify
from worldline.ray_jobs.shard import EncodeConfig, ShardConfig, ShardTally, WriteShard, main

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
SMALL = EncodeConfig(width=160, height=96)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, media: Any, posed: Any) -> Path:
    """Four videos of two scenes; one of them is gone when the shards are cut."""
    place = tmp_path_factory.mktemp("videos")
    dataset = posed.numbered_dataset(place, media, 4)
    (place / "v3.mp4").unlink()
    return dataset


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_job_goes_on_and_the_bytes_are_the_same(folder: Path, tmp_path: Path, posed: Any) -> None:
    out = tmp_path / "out"
    flags = [
        "--encode.width",
        "160",
        "--encode.height",
        "96",
        "--plan.frames-per-shard",
        "60",
        "--workers",
        "1",
    ]
    command = [sys.executable, "-m", "worldline.cli", "shard", str(folder), "--out", str(out), *flags]
    driver = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, start_new_session=True)
    deadline_s = time.monotonic() + 240
    while not list(out.glob("parts/*/[0-9]*.parquet")):
        assert driver.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok 6, rejected 2, failed 0" in done.stdout.replace("\n", " ")
    assert verify(out) == []
    calm = posed.make_shards(folder, tmp_path / "calm")
    for path in (calm / "shards").iterdir():
        assert (out / "shards" / path.name).read_bytes() == path.read_bytes()
    # Rejected rows name the folder in their replay command; all else is equal.
    found, expected = (
        [row | {"replay": None} for row in pq.read_table(place / "index").to_pylist()]
        for place in (out, calm)
    )
    assert found == expected


def test_rows_in_are_rows_out(folder: Path, tmp_path: Path, posed: Any) -> None:
    """The worker of the job, called without Ray: every planned clip has one row, and the journal vouches for it."""
    shards = ShardDir(tmp_path)
    config = ShardConfig(dataset=folder, out=tmp_path, encode=SMALL, plan=PlanConfig(frames_per_shard=60))
    shards.describe({})
    assert extend_plan(folder, shards, config.plan, 16) == 8
    worker = WriteShard(config, "run1")
    tally = ShardTally(num_shards=4, num_clips=8)
    for number in range(4):
        tally.add(worker({"shard": number}))
    assert tally.stopped is None
    assert tally.missing() is None
    assert tally.clips == {"ok": 6, "rejected": 2, "failed": 0}
    gone = [
        row
        for part in shards.parts()
        for row in pq.read_table(part).to_pylist()
        if row["status"] == "rejected"
    ]
    assert {row["reason"] for row in gone} == {gone[0]["reason"]}
    assert "not_found" in gone[0]["reason"]
    assert f"clip_id = '{gone[0]['clip_id']}'" in gone[0]["replay"]
    assert broken_units(tmp_path) == []
    assert sum(line["ok"] for line in commits(tmp_path)) == 6
    again = WriteShard(config, "run2")({"shard": 0})
    assert not again["is_new"]


def test_a_clip_that_kills_its_worker_fails_alone(folder: Path, tmp_path: Path) -> None:
    shards = ShardDir(tmp_path)
    config = ShardConfig(dataset=folder, out=tmp_path, encode=SMALL, max_deaths=2)
    extend_plan(folder, shards, config.plan, 16)
    rows = pq.read_table(folder / "trajectories").to_pylist()
    killer, sleeper = (row["clip_id"] for row in rows if row["path"].endswith("v0.mp4"))
    marks = tmp_path / "stages" / "attempts"
    marks.mkdir(parents=True)
    for number in range(2):
        (marks / f"shard.{killer}.run1.{number:03d}.mark").write_text(
            "Fatal Python error: Segmentation fault"
        )
    (marks / f"shard.{sleeper}.run1.000.mark").write_text("Timeout (0:30:00)!")
    done = WriteShard(config, "run1")({"shard": 0})
    assert (done["ok"], done["rejected"], done["failed"]) == (4, 2, 2)
    found = {row["clip_id"]: row for row in pq.read_table(shards.part(0)).to_pylist()}
    assert found[killer]["reason"] == "worker: process died (2 times)"
    assert "Segmentation" in found[killer]["error"]
    assert found[sleeper]["reason"].startswith("worker: time-out")


def test_the_machine_s_trouble_stops_the_job(folder: Path, tmp_path: Path) -> None:
    config = ShardConfig(dataset=tmp_path / "moved", out=tmp_path / "out", encode=SMALL)
    extend_plan(folder, ShardDir(config.out), config.plan, 16)
    row = WriteShard(config, "run1")({"shard": 0})
    assert row["stopped"]
    tally = ShardTally()
    tally.add(row)
    assert tally.stopped == row["stopped"]


def test_exit_statuses_without_work(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = PlanConfig(where="FALSE")
    assert main(ShardConfig(dataset=folder, out=tmp_path / "a", encode=SMALL, plan=nothing)) == 2
    assert main(ShardConfig(dataset=folder, out=tmp_path / "a", plan=nothing)) == 1
    assert "encode" in capsys.readouterr().err
    assert main(ShardConfig(dataset=tmp_path / "none", out=tmp_path / "b")) == 1
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "letter.txt").write_text("mine")
    assert main(ShardConfig(dataset=folder, out=tmp_path / "c")) == 1
    assert json.loads((tmp_path / "a" / "shards.json").read_text())["encode"]["width"] == 160
    for wrong in ({"workers": 0}, {"max_deaths": 0}):
        with pytest.raises(ValueError, match="must be"):
            ShardConfig(dataset=folder, out=tmp_path, **wrong)
