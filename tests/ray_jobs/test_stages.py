"""The adapters as plain callables: every outcome becomes a row, finished units are not done again, nothing
is lost."""

from __future__ import annotations

import dataclasses
import errno
import functools
import http.server
import os
import shlex
import threading
import urllib.parse
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest

from worldline.annotate.clip import ClipConfig
from worldline.annotate.scenes import SceneConfig
from worldline.datasets.commit_log import CommitLog, broken_units, commits
from worldline.datasets.dataset_dir import DatasetDir
from worldline.datasets.schema import MissingBackend
from worldline.datasets.table import assemble_bucket
from worldline.ray_jobs.inputs import list_inputs
from worldline.ray_jobs.progress import Tally
from worldline.ray_jobs.stages import AnnotateClip, Limits, ScanVideo, Work


@pytest.fixture
def work(tmp_path: Path, fake: Any) -> Work:
    return Work(
        out=str(tmp_path / "out"),
        run_id="run1",
        scenes=SceneConfig(),
        engine=ClipConfig(),
        limits=Limits(clip_timeout_s=30.0),
        licence="CC0",
        probe_and_cut=fake.probe_and_cut,
        annotate_clip=fake.annotate_clip,
    )


def _run(work: Work, *specs: str | Path) -> Tally:
    """What the pipeline does, without Ray: every input through both adapters, then the tables."""
    inputs = list(list_inputs(str(spec) for spec in specs))
    tally = Tally(len(inputs))
    scan, annotate = ScanVideo(work), AnnotateClip(work)
    for k, item in enumerate(inputs):
        for row in scan({"input_idx": k, "path": item.path, "rejection": item.rejection}):
            tally.add(annotate(row))
    dataset = DatasetDir.open(Path(work.out))
    for bucket in tally.buckets:
        assemble_bucket(dataset, bucket, "0")
    return tally


def _table(work: Work, name: str = "trajectories") -> list[dict[str, Any]]:
    return pq.read_table(Path(work.out) / name).to_pylist()


def _next_run(work: Work, **changes: Any) -> Work:
    return dataclasses.replace(work, run_id="run2", **changes)


def _write(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return path


def test_every_outcome_is_a_row(work: Work, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    good = _write(videos, "a film.mp4", "ok", "reject", "raise")
    _write(videos, "empty.mp4")
    tally = _run(work, videos, videos / "missing.mp4")
    assert tally.missing() is None
    assert dict(tally.videos) == {"ok": 1, "rejected": 2}
    assert dict(tally.clips) == {"ok": 1, "rejected": 1, "failed": 1}
    ok, rejected, failed = _table(work)
    assert (ok["status"], ok["path"], ok["licence"]) == ("ok", str(good), "CC0")
    assert ok["reason"] is ok["error"] is ok["replay"] is None
    assert len(ok["world_from_cam"]) == 120
    assert (Path(work.out) / ok["sidecar_path"]).read_bytes() == b"points" * 10
    assert (rejected["status"], rejected["reason"]) == ("rejected", "geometry: too dark (luma 3)")
    assert failed["reason"].startswith("clip: ZeroDivisionError (division by zero")
    assert "fake_annotator.py" in failed["error"]
    assert shlex.split(failed["replay"])[:3] == ["worldline", "annotate", str(good)]
    assert failed["clip_id"] in failed["replay"]
    reasons = {Path(row["path"]).name: row["reason"] for row in _table(work, "videos")}
    expected = {"empty.mp4": "probe: empty_file", "missing.mp4": "input: no such file", "a film.mp4": None}
    assert reasons == expected


def test_a_second_run_writes_nothing(work: Work, tmp_path: Path) -> None:
    _write(tmp_path / "v", "a.mp4", "ok", "raise", "reject")
    _run(work, tmp_path / "v")
    files = {
        p: p.stat().st_mtime_ns for p in Path(work.out).rglob("*") if p.is_file() and "claim" not in p.name
    }
    tally = _run(_next_run(work), tmp_path / "v")
    assert tally.num_new == 0
    assert dict(tally.clips) == {"ok": 1, "rejected": 1, "failed": 1}
    again = {
        p: p.stat().st_mtime_ns for p in Path(work.out).rglob("*") if p.is_file() and "claim" not in p.name
    }
    assert again == files


def test_a_changed_config_redoes_only_its_stage(work: Work, tmp_path: Path) -> None:
    _write(tmp_path / "v", "a.mp4", "ok", "ok")
    _run(work, tmp_path / "v")
    _run(_next_run(work, engine=ClipConfig(max_pixels=1000)), tmp_path / "v")
    stages = [line["stage"] for line in commits(Path(work.out), "run2")]
    assert stages == ["clip", "clip"]
    assert [row["width"] for row in _table(work)] == [1000, 1000]


def test_only_failed_units_are_retried(work: Work, tmp_path: Path) -> None:
    _write(tmp_path / "v", "a.mp4", "ok", "raise", "reject")
    _run(work, tmp_path / "v")
    fixed = dataclasses.replace(_next_run(work), retry_failed=True, annotate_clip=_always_ok)
    tally = _run(fixed, tmp_path / "v")
    assert tally.num_new == 1
    assert dict(tally.clips) == {"ok": 2, "rejected": 1}
    assert broken_units(Path(work.out)) == []


def _always_ok(info: Any, scene: Any, config: Any, *, sidecar_path: Path | None = None) -> dict[str, Any]:
    return {"num_frames": 10}


def test_equal_content_is_annotated_once(work: Work, tmp_path: Path) -> None:
    for name in ("b.mp4", "a.mp4", "sub/c.mov"):
        _write(tmp_path / "v", name, "ok", "ok")
    tally = _run(work, tmp_path / "v", tmp_path / "v" / "b.mp4")
    assert dict(tally.videos) == {"ok": 1, "copy": 3}
    assert tally.missing() is None
    (video,) = _table(work, "videos")
    assert Path(video["path"]).name == "a.mp4"
    assert [Path(p).name for p in video["other_paths"]] == ["b.mp4", "c.mov"]
    assert len(_table(work)) == 2


def test_a_replaced_file_replaces_its_rows(work: Work, tmp_path: Path) -> None:
    path = _write(tmp_path / "v", "a.mp4")
    _run(work, path)
    assert [row["status"] for row in _table(work, "videos")] == ["rejected"]
    _write(tmp_path / "v", "a.mp4", "ok")
    os.utime(path, ns=(1, 1))
    _run(_next_run(work), path)
    assert [row["status"] for row in _table(work, "videos")] == ["ok"]
    assert [row["status"] for row in _table(work)] == ["ok"]


def test_a_sidecar_sets_licence_and_geometry_of_its_video_alone(work: Work, tmp_path: Path) -> None:
    videos = tmp_path / "v"
    _write(videos, "a.mp4", "ok")
    _write(videos, "b.mp4", "ok", "ok")
    _write(videos, "a.json", '{"licence": "MIT", "source": "me", "max_pixels": 77}')
    _write(videos, "c.mp4", "ok", "ok", "ok")
    _write(videos, "c.mp4.json", '{"licence": "MIT", "focal": 5}')
    tally = _run(work, videos)
    assert dict(tally.videos) == {"ok": 2, "rejected": 1}
    rows = {Path(row["path"]).name: row for row in _table(work)}
    assert (rows["a.mp4"]["licence"], rows["a.mp4"]["source"], rows["a.mp4"]["width"]) == ("MIT", "me", 77)
    assert (rows["b.mp4"]["licence"], rows["b.mp4"]["width"]) == ("CC0", ClipConfig().max_pixels)
    wrong = next(row for row in _table(work, "videos") if row["status"] == "rejected")
    assert "c.mp4.json: unknown keys ['focal']" in wrong["reason"]
    _write(videos, "c.mp4.json", '{"licence": "MIT"}')
    assert dict(_run(_next_run(work), videos).videos) == {"ok": 3}


def test_a_damaged_unit_is_done_again(work: Work, tmp_path: Path) -> None:
    _write(tmp_path / "v", "a.mp4", "ok", "ok")
    _run(work, tmp_path / "v")
    before = _table(work)
    unit = next(Path(work.out).rglob("clip.*.parquet"))
    unit.write_bytes(unit.read_bytes()[:-40])
    assert len(broken_units(Path(work.out))) == 1
    assert _run(_next_run(work), tmp_path / "v").num_new == 1
    assert _table(work) == before
    assert broken_units(Path(work.out)) == []


def test_a_full_disk_stops_the_job_and_says_what_to_do(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "v", "a.mp4", "ok")
    _run(work, tmp_path / "v")

    def full(self: CommitLog, path: Path, data: bytes, **facts: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(CommitLog, "commit", full)
    tally = _run(_next_run(work, engine=ClipConfig(max_pixels=9)), tmp_path / "v")
    assert tally.stopped is not None
    assert "No space left on device" in tally.stopped
    assert "free space" in tally.stopped
    assert tally.exit_status(0.1) == 1
    assert [row["width"] for row in _table(work)] == [ClipConfig().max_pixels]


def test_a_missing_package_stops_the_job(work: Work, tmp_path: Path) -> None:
    def absent(*_: Any, **__: Any) -> dict[str, Any]:
        raise MissingBackend("install 'worldline[transnet]'")

    _write(tmp_path / "v", "a.mp4", "ok")
    tally = _run(dataclasses.replace(work, annotate_clip=absent), tmp_path / "v")
    assert tally.stopped == "install 'worldline[transnet]'"
    assert list(commits(Path(work.out)))[-1]["stage"] == "scan"


def test_columns_outside_the_schema_fail_the_clip_not_the_job(work: Work, tmp_path: Path) -> None:
    def wrong(*_: Any, **__: Any) -> dict[str, Any]:
        return {"colour_of_the_sky": "blue"}

    _write(tmp_path / "v", "a.mp4", "ok")
    tally = _run(dataclasses.replace(work, annotate_clip=wrong), tmp_path / "v")
    assert dict(tally.clips) == {"failed": 1}
    assert "colour_of_the_sky" in _table(work)[0]["error"]


@pytest.mark.parametrize("scheme", ["memory", "http"])
def test_remote_files_give_the_rows_of_local_ones(
    scheme: str, work: Work, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    local = _write(tmp_path / "videos", "a film.mp4", "ok", "reject", "ok")
    remote = _publish(scheme, local, request)
    _run(work, local)
    expected = _table(work)
    away = dataclasses.replace(work, out=str(tmp_path / "away"))
    tally = _run(away, remote)
    assert tally.missing() is None
    assert dict(tally.clips) == {"ok": 2, "rejected": 1}
    names_of_place = {"path": remote, "replay": None}
    assert [row | names_of_place for row in _table(away)] == [row | names_of_place for row in expected]
    assert {row["path"] for row in _table(away)} == {remote}
    # Again: nothing is new, and nothing that was written changes.
    before = {path: path.read_bytes() for path in Path(away.out).rglob("*.parquet")}
    assert _run(_next_run(away), remote).num_new == 0
    assert {path: path.read_bytes() for path in Path(away.out).rglob("*.parquet")} == before


def _publish(scheme: str, local: Path, request: pytest.FixtureRequest) -> str:
    """Puts a file where fsspec finds it under `scheme`; its address."""
    if scheme == "memory":
        fsspec.filesystem("memory").pipe(f"/stages-test/{local.name}", local.read_bytes())
        return f"memory:///stages-test/{local.name}"
    pytest.importorskip("aiohttp")
    handler = functools.partial(_QuietHandler, directory=str(local.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    request.addfinalizer(server.server_close)
    request.addfinalizer(server.shutdown)
    return f"http://127.0.0.1:{server.server_address[1]}/{urllib.parse.quote(local.name)}"


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass
