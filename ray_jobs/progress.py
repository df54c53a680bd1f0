"""Rows streaming past and journal lines in, a live table, the final account and the exit status out.

Only counters are kept, never rows, so that a job of any length fits the driver.
"""

from __future__ import annotations

import collections
import json
import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from worldline.datasets.schema import FAILED, OK, REJECTED
from worldline.ray_jobs.stages import STOPPED

logger = logging.getLogger(__name__)

ALL_ACCOUNTED, NOTHING_USABLE, TOO_MANY_FAILED, INTERRUPTED = 0, 2, 3, 130
STOPPED_EARLY = 1
_MIN_UNITS_TO_JUDGE = 20
"""Units that must be through before a high failed share stops a running job."""


@dataclass(slots=True)
class Tally:
    """What became of every input and every scene of a run."""

    num_inputs: int
    videos: collections.Counter[str] = field(default_factory=collections.Counter)
    """Inputs by what became of them: ok, rejected, failed, or copy (content that another input has too)."""
    clips: collections.Counter[str] = field(default_factory=collections.Counter)
    """Scenes by status."""
    num_scenes: int = 0
    """Scenes that the videos said they have."""
    num_new: int = 0
    """Scenes annotated by this run; the others were finished before."""
    num_new_frames: int = 0
    stopped: str | None = None
    """Why the job had to stop; None: it did not."""
    buckets: set[str] = field(default_factory=set)
    """Buckets whose tables this run may have to bring up to date."""

    def add(self, row: dict[str, Any]) -> None:
        """Counts one row of the pipeline's end."""
        self.stopped = self.stopped or row.get("stopped")
        self.buckets.update(bucket for bucket in row["buckets"].split(",") if bucket)
        if row["scene_idx"] <= 0:
            self.videos[row["video_status"]] += 1
            self.num_scenes += row["num_scenes"]
        if row["scene_idx"] >= 0:
            self.clips[row["clip_status"]] += 1
            if row.get("is_new"):
                self.num_new += 1
                self.num_new_frames += row["num_frames"]

    @property
    def num_videos_done(self) -> int:
        return sum(count for status, count in self.videos.items() if status != STOPPED)

    @property
    def num_clips_done(self) -> int:
        return sum(count for status, count in self.clips.items() if status != STOPPED)

    def missing(self) -> str | None:
        """Which rows in have no row out; None when the sums agree."""
        if self.num_videos_done != self.num_inputs:
            return f"{self.num_inputs} inputs, but {self.num_videos_done} accounted for"
        if self.num_clips_done != self.num_scenes:
            return f"{self.num_scenes} scenes, but {self.num_clips_done} accounted for"
        return None

    def has_too_many_failures(self, max_failed_share: float, *, is_final: bool) -> bool:
        units = self.num_videos_done - self.videos["copy"] + self.num_clips_done
        failed = self.videos[FAILED] + self.clips[FAILED]
        return (is_final or units >= _MIN_UNITS_TO_JUDGE) and failed > max_failed_share * units

    def exit_status(self, max_failed_share: float) -> int:
        """0 all accounted for, 1 stopped early, 2 no usable trajectory, 3 failed share over the limit."""
        if self.has_too_many_failures(max_failed_share, is_final=self.stopped is None):
            return TOO_MANY_FAILED
        if self.stopped is not None:
            return STOPPED_EARLY
        return ALL_ACCOUNTED if self.clips[OK] else NOTHING_USABLE


class JournalFollower:
    """Counts of a run's journal lines: what the workers finished, before its row reaches the driver."""

    def __init__(self, out_dir: Path, run_id: str) -> None:
        self._folder, self._run_id = out_dir / "commits", run_id
        self._offsets: dict[Path, int] = {}
        self.num_units: collections.Counter[str] = collections.Counter()
        """By stage."""
        self.num_frames: collections.Counter[str] = collections.Counter()
        """By stage."""

    def update(self) -> None:
        for path in self._folder.glob(f"{self._run_id}-*.jsonl"):
            with path.open("rb") as lines:
                lines.seek(self._offsets.get(path, 0))
                for line in lines:
                    if not line.endswith(b"\n"):
                        break
                    self._offsets[path] = self._offsets.get(path, 0) + len(line)
                    unit = json.loads(line)
                    self.num_units[unit["stage"]] += 1
                    self.num_frames[unit["stage"]] += unit["num_frames"]


class Progress:
    """A live table on a terminal, a log line now and then elsewhere."""

    def __init__(
        self, tally: Tally, journal: JournalFollower, console: Console, log_every_s: float = 15.0
    ) -> None:
        self._tally, self._journal, self._console = tally, journal, console
        self._started_s = time.monotonic()
        self._interval_s = 0.5 if console.is_terminal else log_every_s
        self._is_over = threading.Event()
        # A thread, because the driver waits inside Ray between rows.
        self._thread = threading.Thread(target=self._show_until_over, daemon=True)
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def _show_until_over(self) -> None:
        while not self._is_over.wait(self._interval_s):
            self._journal.update()
            if self._live is not None:
                self._live.update(self._table(), refresh=True)
            else:
                logger.info("%s", self._line())

    def _stages(self) -> list[list[str]]:
        tally, journal = self._tally, self._journal
        scanned = max(tally.num_videos_done, journal.num_units["scan"])
        elapsed_s = max(time.monotonic() - self._started_s, 1e-6)
        rows = []
        for stage, label, done, counts in (
            ("scan", "videos", f"{scanned}/{tally.num_inputs}", tally.videos),
            ("clip", "scenes", f"{tally.num_clips_done}/{tally.num_scenes}+", tally.clips),
        ):
            rate = journal.num_frames[stage] / elapsed_s
            outcome = [str(counts[status]) for status in (OK, REJECTED, FAILED)]
            rows.append([label, done, f"{rate:.0f}", *outcome, self._time_left(stage, elapsed_s, scanned)])
        return rows

    def _time_left(self, stage: str, elapsed_s: float, scanned: int) -> str:
        """From the frames still to do: known ones of scanned videos, the mean of those for the others."""
        journal, num_scans = self._journal, self._journal.num_units["scan"]
        done = journal.num_frames[stage]
        if not done or not num_scans:
            return "-"
        unseen = max(self._tally.num_inputs - scanned, 0) * journal.num_frames["scan"] / num_scans
        left = unseen if stage == "scan" else unseen + max(journal.num_frames["scan"] - done, 0)
        return _duration(left / (done / elapsed_s))

    def _table(self) -> Table:
        table = Table(*("stage", "done", "frames/s", OK, REJECTED, FAILED, "time left"))
        for row in self._stages():
            table.add_row(*row)
        return table

    def _line(self) -> str:
        parts = [
            f"{label} {done} ({rate} frames/s, ok {ok}, rejected {rejected}, failed {failed}, left {left})"
            for label, done, rate, ok, rejected, failed, left in self._stages()
        ]
        return "; ".join(parts)


def final_table(tally: Tally, elapsed_s: float) -> Table:
    """The account of a run."""
    table = Table(*("", OK, REJECTED, FAILED, "copies", "sum", "new"), title="rows in = rows out")
    videos, clips = tally.videos, tally.clips
    row = [str(videos[status]) for status in (OK, REJECTED, FAILED, "copy")]
    table.add_row("inputs", *row, f"{tally.num_videos_done}/{tally.num_inputs}", "")
    row = [str(clips[status]) for status in (OK, REJECTED, FAILED)]
    table.add_row("scenes", *row, "", f"{tally.num_clips_done}/{tally.num_scenes}", str(tally.num_new))
    rate = tally.num_new_frames / elapsed_s
    table.caption = f"{tally.num_new_frames} frames in {_duration(elapsed_s)}: {rate:.1f} frames/s"
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
