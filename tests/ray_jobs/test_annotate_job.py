"""The whole job on a real local Ray: full disks, growing workers, clusters; with a fake annotator."""

from __future__ import annotations

import collections
import json
import os
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

from worldline.datasets.commit_log import broken_units, commits
from worldline.ray_jobs.stages import Limits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_scenes_of_one_long_video_keep_both_workers_busy(tmp_path: Path, jobs: Any, local_ray: None) -> None:
    videos = jobs.write(tmp_path / "v", long=", ".join(["sleep 0.4"] * 24))
    out = tmp_path / "out"
    tally = jobs.run(videos, out, assemble_every_s=1.0)
    assert dict(tally.clips) == {"ok": 24}
    clips_of = collections.Counter()
    for path in (out / "commits").iterdir():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        clips_of[path.name] = sum(line["stage"] == "clip" for line in lines)
    assert sorted(count for count in clips_of.values() if count)[0] >= 4
    assert sum(count > 0 for count in clips_of.values()) == 2
    before = jobs.hashes(out)
    again = jobs.run(videos, out)
    assert again.num_new == 0
    assert jobs.hashes(out) == before


def test_a_worker_that_grew_is_replaced(tmp_path: Path, jobs: Any, local_ray: None) -> None:
    videos = jobs.write(tmp_path / "v", a="ok, ok, ok, ok")
    out = tmp_path / "out"
    tally = jobs.run(videos, out, Limits(max_worker_mib=1.0), workers=1)
    assert dict(tally.clips) == {"ok": 4}
    writers = [p for p in (out / "commits").iterdir() if '"stage": "clip"' in p.read_text()]
    assert len(writers) == 4


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_loses_nothing(tmp_path: Path, jobs: Any, local_ray: None) -> None:
    out = tmp_path / "out"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(out)], check=False)
    if mounted.returncode:
        pytest.skip("no right to mount here")
    try:
        videos = jobs.write(tmp_path / "v", a=", ".join(["big 100000"] * 12))
        try:
            message = jobs.run(videos, out).stopped or ""
        except OSError as error:
            message = str(error)
        assert "No space left on device" in message
        assert str(out) in message
        done = {line["unit"] for line in commits(out) if (out / line["unit"]).exists()}
        assert len(done) > 2
        assert broken_units(out) == []
        subprocess.run(["mount", "-o", "remount,size=20m", str(out)], check=True)
        tally = jobs.run(videos, out)
        assert tally.missing() is None
        assert tally.num_new == 12 - (len(done) - 1)  # one of them is the scan
        jobs.run(videos, tmp_path / "calm")
        assert jobs.hashes(out) == jobs.hashes(tmp_path / "calm")
    finally:
        subprocess.run(["umount", str(out)], check=True)


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
def cluster(tmp_path: Path, jobs: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node started as a user would, with its job server; its dashboard address and environment."""
    port, dashboard, client = _free_port(), _free_port(), 9000 + os.getpid() % 900
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", f"--port={port}", "--disable-usage-stats"]
    command += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    # A Ray that runs already holds the default port; then no agent of ours would take a job.
    command += [f"--dashboard-agent-listen-port={_free_port()}"]
    command[0] = str(Path(sys.executable).with_name("ray"))
    with (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=jobs.ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    deadline_s = time.monotonic() + 120
    while not _answers(f"{address}/api/jobs/"):
        assert head.poll() is None, (tmp_path / "head.log").read_text()
        assert time.monotonic() < deadline_s, (tmp_path / "head.log").read_text()
        time.sleep(0.5)
    yield address, jobs.ENVIRONMENT
    # By its process group, never `ray stop`, which would stop every Ray of this machine.
    os.killpg(head.pid, signal.SIGTERM)
    try:
        head.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)


def test_ray_job_submit(tmp_path: Path, jobs: Any, cluster: tuple[str, dict[str, str]]) -> None:
    """As the README says; the working directory is all that the cluster gets."""
    address, environment = cluster
    videos = jobs.write(tmp_path / "v", empty="")
    (videos / "text.mp4").write_text("no video at all, but long enough to be looked at")
    out = tmp_path / "out"
    ray_command = str(Path(sys.executable).with_name("ray"))
    submit = [ray_command, "job", "submit", "--address", address, "--working-dir", str(jobs.ROOT)]
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


def test_two_nodes(tmp_path: Path, jobs: Any) -> None:
    """Scenes are annotated on both nodes of a cluster, and the table is that of one."""
    script = tmp_path / "two_nodes.py"
    script.write_text(_TWO_NODES)
    videos = jobs.write(tmp_path / "v", a=", ".join(["sleep 0.3"] * 8), b="ok, reject")
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, str(script), str(jobs.SCRIPT), str(videos), str(out)],
        env=jobs.ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nodes used: 2" in done.stdout
    assert collections.Counter(row["status"] for row in jobs.rows(out).values()) == {"ok": 9, "rejected": 1}


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
    for value in (probe, detect_scenes, probe_and_cut, annotate_clip):
        value.__module__ = "__main__"
    config = annotate.JobConfig(inputs=(videos,), out=__import__("pathlib").Path(out))
    tally = annotate.run_job(config, Console(quiet=True), with_fakes(annotate.make_work(config, "run1")))
    assert tally.missing() is None
    used = {a.node_id for a in ray.util.state.list_actors(limit=1000) if "AnnotateClip" in a.class_name}
    print("nodes used:", len(used))
    ray.shutdown()
    cluster.shutdown()
"""
