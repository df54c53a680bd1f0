"""An interrupt that is swallowed where it arrives comes back at the next check."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from worldline.ray_jobs.interrupts import Interrupts


def test_a_swallowed_interrupt_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        interrupts.check()
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                interrupts.check()
    assert signal.getsignal(signal.SIGINT) is before
