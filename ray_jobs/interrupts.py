"""Ctrl-C that nothing can swallow."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """While this context lasts, Ctrl-C raises KeyboardInterrupt at once, and again at every `check`.

    An interrupt that arrives inside a callback of Ray's compiled code is reported there and forgotten, and the job
    would run on. Outside the main thread signals are left as they are.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._previous: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raises KeyboardInterrupt where one has arrived before."""
        if self.is_set:
            raise KeyboardInterrupt
