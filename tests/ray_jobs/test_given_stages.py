"""Given data in the job: part of a unit's key, an outcome where absent, and files that come with their row."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from worldline.annotate.clip import ClipConfig
from worldline.annotate.given import Given, GivenConfig
from worldline.annotate.scenes import SceneConfig
from worldline.ray_jobs.stages import AnnotateClip, Limits, ScanVideo, Work


def _annotate_clip(
    info: Any, scene: Any, config: Any, *, sidecar_path: Path, given: Given | None = None
) -> dict[str, Any]:
    sidecar_path.write_bytes(b"points")
    if config.keep_depth:
        sidecar_path.with_suffix(".depth.zip").write_bytes(b"depth")
    poses = None if given is None or given.poses is None else given.poses.world_from_cam
    return {
        "num_frames": 10,
        "given_id": None if given is None else given.given_id,
        "world_from_cam": None if poses is None else poses.ravel().tolist(),
    }


@pytest.fixture
def work(tmp_path: Path, fake: Any) -> Work:
    return Work(
        out=str(tmp_path / "out"),
        run_id="run1",
        scenes=SceneConfig(),
        engine=ClipConfig(mode="gt_pose"),
        limits=Limits(clip_timeout_s=30.0),
        probe_and_cut=fake.probe_and_cut,
        annotate_clip=_annotate_clip,
    )


def _run(work: Work, path: Path) -> list[dict[str, Any]]:
    """The clips' rows, each with whether it was made anew."""
    from worldline.datasets.commit_log import read_unit
    from worldline.datasets.dataset_dir import DatasetDir

    dataset = DatasetDir.open(Path(work.out))
    done = []
    for row in ScanVideo(work)({"input_idx": 0, "path": str(path), "rejection": None}):
        outcome = AnnotateClip(work)(row)
        unit = read_unit(dataset.clip_unit(row["video_id"], row["clip_id"], row["clip_hash"]))
        assert unit is not None
        done.append(unit.to_pylist()[0] | {"is_new": outcome["is_new"]})
    return done


def test_given_poses_that_appear_or_change_redo_their_clips_alone(work: Work, tmp_path: Path) -> None:
    video = tmp_path / "a film.mp4"
    video.write_text("ok")
    (missing,) = _run(work, video)
    assert missing["status"] == "rejected"
    assert missing["reason"] == f"gt_pose: no given poses ({tmp_path}/a film.tum is not there)"
    truth = tmp_path / "a film.tum"
    truth.write_text("0.0 1 2 3 0 0 0 1\n0.1 1 2 4 0 0 0 1\n")
    (found,) = _run(work, video)
    assert (found["status"], found["is_new"]) == ("ok", True)
    assert found["world_from_cam"][3::4] == [1, 2, 3, 1, 2, 4]
    assert _run(work, video)[0]["is_new"] is False
    truth.write_text("0.0 1 2 3 0 0 0 1\n0.1 1 2 5 0 0 0 1\n")
    (changed,) = _run(work, video)
    assert (changed["is_new"], changed["world_from_cam"][-1]) == (True, 5)
    assert changed["given_id"] != found["given_id"]
    truth.write_text("0.0 1 2 3 0 0 0 9\n")
    assert "gt_pose: given poses cannot be read" in _run(work, video)[0]["reason"]


def test_an_unknown_format_of_poses_is_said(work: Work, tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.write_text("ok")
    engine = ClipConfig(
        mode="gt_pose", given=GivenConfig(poses_path=str(tmp_path / "t"), poses_format="nonsense")
    )
    (row,) = _run(dataclasses.replace(work, engine=engine), video)
    assert row["status"] == "failed"
    assert "unknown format 'nonsense'" in row["reason"]


def test_kept_depth_appears_with_its_row_and_leaves_nothing_behind(work: Work, tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.write_text("ok")
    (row,) = _run(dataclasses.replace(work, engine=ClipConfig(keep_depth=True)), video)
    out = Path(work.out)
    assert (out / row["depth_path"]).read_bytes() == b"depth"
    assert row["depth_path"] == row["sidecar_path"].replace(".npz", ".depth.zip")
    assert row["shot_idx"] == 0

    def fails(*arguments: Any, **named: Any) -> dict[str, Any]:
        _annotate_clip(*arguments, **named)
        raise ZeroDivisionError

    engine = ClipConfig(keep_depth=True, max_pixels=99)
    (row,) = _run(dataclasses.replace(work, engine=engine, annotate_clip=fails), video)
    assert (row["status"], row["depth_path"]) == ("failed", None)
    assert len(list((out / "sidecars").rglob("*.*"))) == 2
