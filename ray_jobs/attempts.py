"""A unit of work that may kill its process: every try leaves a mark first, so that the next try knows.

A native crash, an out-of-memory kill or a hang ends the worker process; Ray starts another and hands it the
same unit, without end. The mark, a file per try into which the interpreter's fault handler writes where the
process died, ends that: after a few deaths the unit is given up with the last words of its worker as the
error.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil


class Attempts:
    """The tries of one unit in one run. Marks of other runs do not count: Ctrl-C kills workers too."""

    def __init__(self, folder: Path, unit: str, run_id: str) -> None:
        self._folder, self._unit, self._run_id = folder, unit, run_id

    def deaths(self) -> list[str]:
        """Last words of the workers that died on this unit, oldest first; empty text: killed from outside."""
        marks = sorted(self._folder.glob(f"{self._unit}.{self._run_id}.*.mark"))
        return [mark.read_text(errors="replace") for mark in marks]

    @contextlib.contextmanager
    def watch(self, timeout_s: float) -> Iterator[None]:
        """Marks the try, runs the block, takes the mark away.

        After `timeout_s` a watchdog thread that needs no interpreter lock writes the stack into the mark
        and ends the process: native code cannot be stopped any other way.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        mark = self._folder / f"{self._unit}.{self._run_id}.{len(self.deaths()):03d}.mark"
        with mark.open("w") as words:
            faulthandler.enable(words)
            faulthandler.dump_traceback_later(timeout_s, exit=True, file=words)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                faulthandler.disable()
                if sys.__stderr__ is not None:
                    faulthandler.enable(sys.__stderr__)
                for old in self._folder.glob(f"{self._unit}.*.mark"):
                    old.unlink(missing_ok=True)


def timed_out(last_words: str) -> bool:
    """Whether the watchdog ended the worker."""
    return last_words.startswith("Timeout (")


def memory_mib() -> float:
    """Resident memory of this process."""
    return psutil.Process(os.getpid()).memory_info().rss / 2**20
