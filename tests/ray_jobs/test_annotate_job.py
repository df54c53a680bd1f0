"""The whole job on a real local Ray: dying workers and drivers, full disks, clusters; a fake annotator."""

from __future__ import annotations

import collections
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from rich.console import Console

from worldline.datasets.commit_log import broken_units, commits
from worldline.ray_jobs.annotate import JobConfig, RunConfig, make_work, new_run_id, run_job
from worldline.ray_jobs.progress import Tally
from worldline.ray_jobs.stages import Limits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("fake_annotator.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
ENVIRONMENT |= {"RAY_AUTH_MODE": "disabled"}


def _load_fake() -> Any:
    spec = importlib.util.spec_from_file_location("fake_annotator", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_annotator"] = module
    spec.loader.exec_module(module)
    # Workers cannot import a test module.
    ray.cloudpickle.register_pickle_by_value(module)
    return module


FAKE = _load_fake()


def _job(inputs: Path, out: Path, limits: Limits | None = None, **run: Any) -> Tally:
    limits = limits or Limits(clip_timeout_s=60.0)
    config = JobConfig(
        inputs=(str(inputs),), out=out, run=RunConfig(limits=limits, max_failed_share=1.0, **run)
    )
    work = FAKE.with_fakes(make_work(config, new_run_id()))
    return run_job(config, Console(quiet=True), work)


def _write(folder: Path, **videos: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, orders in videos.items():
        (folder / f"{name}.mp4").write_text(orders.replace(", ", "\n"))
    return folder


def _rows(out: Path) -> dict[tuple[str, float], dict[str, Any]]:
    rows = pq.read_table(out / "trajectories").to_pylist()
    found = {(Path(row["path"]).stem, row["start_s"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def _bytes(out: Path) -> dict[str, str]:
    files = [*out.glob("trajectories/*"), *out.glob("videos/*")]
    assert files
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_dying_and_hanging_workers_cost_only_their_own_scene(tmp_path: Path, local_ray: None) -> None:
    videos = _write(
        tmp_path / "v",
        a="ok, kill-once, ok, reject",
        b="ok, kill, ok",
        c="hang, ok",
        d="ok, raise",
        e="die at probe",
        f="",
    )
    out = tmp_path / "out"
    tally = _job(videos, out, Limits(clip_timeout_s=4.0, max_deaths=2))
    assert tally.missing() is None
    assert dict(tally.videos) == {"ok": 4, "rejected": 1, "failed": 1}
    assert dict(tally.clips) == {"ok": 7, "rejected": 1, "failed": 3}
    rows = _rows(out)
    assert rows["a", 1.0]["status"] == "ok"
    assert rows["b", 1.0]["reason"] == "worker: process died (2 times)"
    assert rows["c", 0.0]["reason"] == "worker: time-out (4 s)"
    assert "time.sleep" in rows["c", 0.0]["error"] or "annotate_clip" in rows["c", 0.0]["error"]
    assert rows["b", 1.0]["replay"].endswith(f"--clip {rows['b', 1.0]['clip_id']}")
    # The healthy rows equal those of a run without a death.
    calm = _write(tmp_path / "v", a="ok, kill-once, ok, reject", b="ok, ok, ok", c="ok, ok", d="ok, raise")
    assert broken_units(out) == []
    before = _bytes(out)
    tally = _job(videos, out)
    assert tally.num_new == 5  # b and c have new content; a and d have not
    assert _bytes(out) != before
    undisturbed = tmp_path / "undisturbed"
    _job(calm, undisturbed)
    assert {key: row | {"replay": None, "error": None} for key, row in _rows(out).items()} == {
        key: row | {"replay": None, "error": None} for key, row in _rows(undisturbed).items()
    }


def test_scenes_of_one_long_video_keep_both_workers_busy(tmp_path: Path, local_ray: None) -> None:
    videos = _write(tmp_path / "v", long=", ".join(["sleep 0.4"] * 24))
    out = tmp_path / "out"
    tally = _job(videos, out, assemble_every_s=1.0)
    assert dict(tally.clips) == {"ok": 24}
    clips_of = collections.Counter()
    for path in (out / "commits").iterdir():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        clips_of[path.name] = sum(line["stage"] == "clip" for line in lines)
    assert sorted(count for count in clips_of.values() if count)[0] >= 4
    assert sum(count > 0 for count in clips_of.values()) == 2
    before = _bytes(out)
    again = _job(videos, out)
    assert again.num_new == 0
    assert _bytes(out) == before


def test_a_worker_that_grew_is_replaced(tmp_path: Path, local_ray: None) -> None:
    videos = _write(tmp_path / "v", a="ok, ok, ok, ok")
    out = tmp_path / "out"
    tally = _job(videos, out, Limits(max_worker_mib=1.0), workers=1)
    assert dict(tally.clips) == {"ok": 4}
    writers = [p for p in (out / "commits").iterdir() if '"stage": "clip"' in p.read_text()]
    assert len(writers) == 4


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_loses_nothing(tmp_path: Path, local_ray: None) -> None:
    out = tmp_path / "out"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(out)], check=False)
    if mounted.returncode:
        pytest.skip("no right to mount here")
    try:
        videos = _write(tmp_path / "v", a=", ".join(["big 100000"] * 12))
        try:
            message = _job(videos, out).stopped or ""
        except OSError as error:
            message = str(error)
        assert "No space left on device" in message
        assert str(out) in message
        done = {line["unit"] for line in commits(out) if (out / line["unit"]).exists()}
        assert len(done) > 2
        assert broken_units(out) == []
        subprocess.run(["mount", "-o", "remount,size=20m", str(out)], check=True)
        tally = _job(videos, out)
        assert tally.missing() is None
        assert tally.num_new == 12 - (len(done) - 1)  # one of them is the scan
        _job(videos, tmp_path / "calm")
        assert _bytes(out) == _bytes(tmp_path / "calm")
    finally:
        subprocess.run(["umount", str(out)], check=True)


def _start_driver(videos: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(videos), "--out", str(out), "--run.assemble-every-s", "0.5"],
        env=ENVIRONMENT,
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


def test_a_killed_driver_is_taken_up_where_it_died(tmp_path: Path, local_ray: None) -> None:
    """SIGKILL while scanning, while annotating, while assembling; Ctrl-C; then a run to the end."""
    videos = _write(
        tmp_path / "v",
        a=", ".join(["sleep 0.3"] * 10),
        b=", ".join(["sleep 0.4, reject"] * 5),
        c=", ".join(["sleep 0.5"] * 10),
    )
    out = tmp_path / "out"
    stages = [
        ("stages/videos/*/*/scan.*", 1, signal.SIGKILL),
        ("stages/videos/*/*/clip.*", 5, signal.SIGKILL),
        ("trajectories/*.parquet", 1, signal.SIGKILL),
        ("stages/videos/*/*/clip.*", 1, signal.SIGINT),
    ]
    for pattern, num_new, number in stages:
        if pattern.startswith("trajectories"):
            shutil.rmtree(out / "trajectories", ignore_errors=True)  # the next assembly has all to write
        num_runs = len(list(out.glob("runs/*/config.json")))
        driver = _start_driver(videos, out)
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
    driver = _start_driver(videos, out)
    text, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, text
    assert "rows in = rows out" in text
    assert "30/30" in text
    _job(videos, tmp_path / "calm")
    assert {k: r | {"replay": None} for k, r in _rows(out).items()} == {
        k: r | {"replay": None} for k, r in _rows(tmp_path / "calm").items()
    }
    # No finished unit was done twice: units with two lines are those whose worker died between line and rename.
    lines = collections.Counter(line["unit"] for line in commits(out))
    assert sum(count - 1 for count in lines.values()) <= 3 * len(stages)
    assert len(lines) == 33


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node started as a user would, with its job server; its dashboard address and environment."""
    port, dashboard, client = _free_port(), _free_port(), 9000 + os.getpid() % 900
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", f"--port={port}", "--disable-usage-stats"]
    command += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    # A Ray that runs already holds the default port; then no agent of ours would take a job.
    command += [f"--dashboard-agent-listen-port={_free_port()}"]
    command[0] = str(Path(sys.executable).with_name("ray"))
    with (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    deadline_s = time.monotonic() + 120
    while not _answers(f"{address}/api/jobs/"):
        assert head.poll() is None, (tmp_path / "head.log").read_text()
        assert time.monotonic() < deadline_s, (tmp_path / "head.log").read_text()
        time.sleep(0.5)
    yield address, ENVIRONMENT
    # By its process group, never `ray stop`, which would stop every Ray of this machine.
    os.killpg(head.pid, signal.SIGTERM)
    try:
        head.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)


def test_ray_job_submit(tmp_path: Path, cluster: tuple[str, dict[str, str]]) -> None:
    """As the README says; the working directory is all that the cluster gets."""
    address, environment = cluster
    videos = _write(tmp_path / "v", empty="")
    (videos / "text.mp4").write_text("no video at all, but long enough to be looked at")
    out = tmp_path / "out"
    ray_command = str(Path(sys.executable).with_name("ray"))
    submit = [ray_command, "job", "submit", "--address", address, "--working-dir", str(ROOT)]
    command = [*submit, "--", sys.executable, "-m", "worldline.ray_jobs.annotate", str(videos)]
    environment = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    deadline_s = time.monotonic() + 120
    while True:
        done = subprocess.run(
            [*command, "--out", str(out)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        # The job server answers before the agent that would run a job has registered.
        if "No available agent" not in done.stderr or time.monotonic() > deadline_s:
            break
        time.sleep(2)
    assert (out / "videos").is_dir(), done.stdout + done.stderr
    videos_table = pq.read_table(out / "videos").to_pylist()
    assert {row["status"] for row in videos_table} == {"rejected"}
    assert len(videos_table) == 2
    assert "exit code 2" in done.stdout + done.stderr


def test_two_nodes(tmp_path: Path) -> None:
    """Scenes are annotated on both nodes of a cluster, and the table is that of one."""
    script = tmp_path / "two_nodes.py"
    script.write_text(_TWO_NODES)
    videos = _write(tmp_path / "v", a=", ".join(["sleep 0.3"] * 8), b="ok, reject")
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, str(script), str(SCRIPT), str(videos), str(out)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nodes used: 2" in done.stdout
    assert collections.Counter(row["status"] for row in _rows(out).values()) == {"ok": 9, "rejected": 1}


_TWO_NODES = """
import runpy, sys, ray
from ray.cluster_utils import Cluster
if __name__ == "__main__":
    fake, videos, out = sys.argv[1:]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000})
    cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    ray.init(cluster.address, log_to_driver=False)
    globals().update(runpy.run_path(fake, run_name="__main__not"))
    from rich.console import Console
    from worldline.ray_jobs import annotate, stages
    for value in (probe, detect_scenes, annotate_clip):
        value.__module__ = "__main__"
    config = annotate.JobConfig(inputs=(videos,), out=__import__("pathlib").Path(out))
    tally = annotate.run_job(config, Console(quiet=True), with_fakes(annotate.make_work(config, "run1")))
    assert tally.missing() is None
    used = {a.node_id for a in ray.util.state.list_actors(limit=1000) if "AnnotateClip" in a.class_name}
    print("nodes used:", len(used))
    ray.shutdown()
    cluster.shutdown()
"""
