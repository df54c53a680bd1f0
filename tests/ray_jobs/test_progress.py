"""Counts, sums and exit statuses."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from worldline.datasets.commit_log import CommitLog
from worldline.ray_jobs.progress import JournalFollower, Progress, Tally, final_table


def _video(status: str = "ok", num_scenes: int = 0) -> dict[str, Any]:
    return {"scene_idx": -1, "video_status": status, "num_scenes": num_scenes, "buckets": "ab"}


def _scene(idx: int, of: int, status: str = "ok") -> dict[str, Any]:
    row = {
        "scene_idx": idx,
        "video_status": "ok",
        "num_scenes": of,
        "buckets": "ab,cd",
        "clip_status": status,
    }
    return row | {"is_new": True, "num_frames": 10}


def _tally(*rows: dict[str, Any], num_inputs: int = 1) -> Tally:
    tally = Tally(num_inputs)
    for row in rows:
        tally.add(row)
    return tally


@pytest.mark.parametrize(
    ("rows", "num_inputs", "status"),
    [
        ([_scene(1, 2), _scene(0, 2)], 1, 0),
        ([_scene(0, 1), _video("rejected")], 2, 0),
        ([_scene(0, 1, "rejected"), _video("rejected")], 2, 2),
        ([], 0, 2),
        ([_scene(0, 1, "failed")], 1, 3),
        ([*[_scene(k, 9) for k in range(8)], _scene(8, 9, "failed")], 1, 0),
        ([*[_scene(k, 9) for k in range(7)], _scene(7, 9, "failed"), _scene(8, 9, "failed")], 1, 3),
    ],
)
def test_exit_status(rows: list[dict[str, Any]], num_inputs: int, status: int) -> None:
    tally = _tally(*rows, num_inputs=num_inputs)
    assert tally.missing() is None
    assert tally.exit_status(0.1) == status


def test_lost_rows_are_noticed() -> None:
    assert _tally(_scene(0, 2)).missing() == "2 scenes, but 1 accounted for"
    assert _tally(_scene(0, 1), num_inputs=2).missing() == "2 inputs, but 1 accounted for"


def test_a_running_job_is_judged_only_after_some_units() -> None:
    few = _tally(*[_scene(k, 100, "failed") for k in range(10)])
    many = _tally(*[_scene(k, 100, "failed") for k in range(30)])
    assert not few.has_too_many_failures(0.5, is_final=False)
    assert many.has_too_many_failures(0.5, is_final=False)


def test_a_stop_is_kept_and_its_exit_status_is_1() -> None:
    tally = _tally(_scene(0, 1), _video("stopped") | {"stopped": "disk full"}, num_inputs=2)
    assert tally.stopped == "disk full"
    assert tally.exit_status(0.1) == 1
    assert tally.buckets == {"ab", "cd"}


def test_the_journal_is_followed_line_by_line(tmp_path: Path) -> None:
    log, other = CommitLog(tmp_path, "run1"), CommitLog(tmp_path, "run0")
    follower = JournalFollower(tmp_path, "run1")
    for _ in range(2):
        log.commit(tmp_path / "a", b"", stage="clip", status="ok", num_frames=5)
        other.commit(tmp_path / "a", b"", stage="clip", status="ok", num_frames=100)
        follower.update()
    (journal,) = (tmp_path / "commits").glob("run1*")
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole[:20])
    follower.update()
    assert (follower.num_units["clip"], follower.num_frames["clip"]) == (2, 10)
    journal.write_bytes(whole + whole.splitlines(keepends=True)[0])
    follower.update()
    assert follower.num_frames["clip"] == 15


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_shows_both_stages(
    tmp_path: Path, is_terminal: bool, caplog: pytest.LogCaptureFixture
) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=100)
    CommitLog(tmp_path, "run1").commit(tmp_path / "a", b"", stage="scan", status="ok", num_frames=50)
    caplog.set_level("INFO", logger="worldline.ray_jobs.progress")
    progress = Progress(_tally(_scene(0, 3)), JournalFollower(tmp_path, "run1"), console, log_every_s=0.05)
    with progress:
        assert progress._is_over.wait(0.8) is False
    shown = screen.getvalue() if is_terminal else caplog.text
    assert "videos" in shown
    assert "1/3" in shown


def test_the_account_states_both_sums() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(final_table(_tally(_scene(0, 2), _scene(1, 2, "rejected")), 4.0))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1/1" in text
    assert "2/2" in text
    assert "20 frames in 0:04: 5.0 frames/s" in text
