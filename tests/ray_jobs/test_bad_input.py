"""Bad files through the true annotator: each ends as a row that says why, and the good ones among them
finish."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tyro
from rich.console import Console

from worldline.annotate.clip import ClipConfig
from worldline.datasets.commit_log import commits
from worldline.ray_jobs.annotate import JobConfig, RunConfig, changed_flags, main, make_work, run_job
from worldline.ray_jobs.stages import Limits


def _job(out: Path, *inputs: Path, **more: Any) -> JobConfig:
    """A job; with an empty `clip_id`, which every scene's id starts with, it runs in this process without
    Ray."""
    return JobConfig(
        inputs=tuple(str(path) for path in inputs), out=out, run=RunConfig(max_failed_share=0), **more
    )


@pytest.mark.slow
def test_every_bad_file_is_a_row(tmp_path: Path, bad_inputs: dict[str, tuple[Path, str]], media: Any) -> None:
    folder = next(iter(bad_inputs.values()))[0].parent
    one = media.encode(folder / "one frame.mp4", [media.numbered_frame(0)])
    shutil.copy(folder / "good.mp4", folder / "copy of good.mkv")
    named = [bad_inputs[name][0] for name in ("not there.mp4", "still.mp4", "sound with cover.m4a")]
    config = _job(tmp_path / "out", folder, *named, clip_id="")
    tally = run_job(config, Console(quiet=True))
    assert tally.missing() is None
    assert tally.clips["failed"] == tally.videos["failed"] == 0
    videos = {Path(row["path"]).name: row for row in pq.read_table(tmp_path / "out" / "videos").to_pylist()}
    for name, (path, reason) in bad_inputs.items():
        if path.suffix == ".txt" or path.is_dir():
            continue  # a text file is a list; a folder is searched, whatever its name
        row = videos[name]
        wanted = "input: no such file" if reason == "not_found" else f"probe: {reason}"
        assert row["status"] == "rejected"
        assert row["reason"].startswith(wanted), row["reason"]
        assert row["num_scenes"] == 0
    assert videos["copy of good.mkv"]["other_paths"] == [str(folder / "good.mp4")]
    assert videos["copy of good.mkv"]["num_frames"] > 1
    rows = pq.read_table(tmp_path / "out" / "trajectories").to_pylist()
    by_name = {Path(row["path"]).name: row for row in rows}
    assert set(by_name) == {"copy of good.mkv", one.name}
    assert by_name[one.name]["num_frames"] == 1
    assert by_name[one.name]["status"] != "failed"
    assert by_name[one.name]["world_from_cam"] is None or len(by_name[one.name]["world_from_cam"]) == 12


@pytest.mark.slow
def test_no_permission_is_a_row(tmp_path: Path, media: Any) -> None:
    path = media.numbered(tmp_path / "closed.mp4")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads files without permission")
    run_job(_job(tmp_path / "out", path, clip_id=""), Console(quiet=True))
    (row,) = pq.read_table(tmp_path / "out" / "videos").to_pylist()
    assert row["reason"] == "input: cannot be read (Permission denied)"


def test_nothing_to_do_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.md").touch()
    assert main(_job(tmp_path / "out", tmp_path / "in")) == 2
    assert "nothing to do: no video in" in capsys.readouterr().err


def test_a_foreign_out_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").touch()
    assert main(_job(tmp_path, tmp_path)) == 1
    assert "not a dataset folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_a_replay_command_does_its_scene_alone_and_again(tmp_path: Path, media: Any) -> None:
    """The stored command, parsed as the command line would, makes the same config and one new commit."""
    videos = [
        media.numbered(tmp_path / "a b.mp4"),
        media.encode(tmp_path / "c.mp4", [media.numbered_frame(1)] * 3),
    ]
    config = _job(tmp_path / "my out", *videos, clip_id="", engine=ClipConfig(max_pixels=5000))
    run_job(config, Console(quiet=True))
    before = pq.read_table(config.out / "trajectories")
    rows = before.to_pylist()
    assert len(rows) == 2
    for row in rows:
        replay = make_work(config, "run1").replay(row["path"], row["clip_id"])
        assert row["replay"] in (None, replay)
        words = shlex.split(replay)
        assert words[:2] == ["worldline", "annotate"]
        again = tyro.cli(JobConfig, args=words[2:])
        assert again.inputs == (row["path"],)
        assert (again.engine, again.scenes, again.out) == (config.engine, config.scenes, config.out)
        num_commits = len(list(commits(config.out)))
        run_job(again, Console(quiet=True))
        assert len(list(commits(config.out))) == num_commits + 1
    assert pq.read_table(config.out / "trajectories").equals(before)


def test_flags_are_those_that_differ() -> None:
    known = ClipConfig(max_pixels=5, fxfycxcy_px=(1.0, 2.0, 3.0, 4.0))
    assert changed_flags("engine", known) == " --engine.max-pixels 5 --engine.fxfycxcy-px 1.0 2.0 3.0 4.0"
    assert changed_flags("engine", ClipConfig()) == ""
    assert changed_flags("run", RunConfig(retry_failed=True, verbose=False)) == " --run.retry-failed"
    assert changed_flags("run", RunConfig(limits=Limits(max_deaths=9))) == " --run.limits.max-deaths 9"
