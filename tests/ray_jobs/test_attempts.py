"""Workers that die leave their last words, and only tries of this run count."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from worldline.ray_jobs.attempts import Attempts, timed_out

_DIE = """
import ctypes, os, signal, sys, time
from pathlib import Path
from worldline.ray_jobs.attempts import Attempts
with Attempts(Path(sys.argv[1]), "clip.1", "run1").watch(0.5):
    {end}
"""


def _die(folder: Path, end: str) -> int:
    script = _DIE.format(end=end)
    cwd = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.run(command, cwd=cwd, capture_output=True, check=False).returncode


def test_deaths_are_counted_with_their_last_words(tmp_path: Path) -> None:
    assert _die(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)") == -signal.SIGKILL
    assert _die(tmp_path, "ctypes.string_at(0)") == -signal.SIGSEGV
    assert _die(tmp_path, "time.sleep(60)") == 1
    killed, crashed, hung = Attempts(tmp_path, "clip.1", "run1").deaths()
    assert killed == ""
    assert "Segmentation fault" in crashed
    assert "string_at" in crashed
    assert timed_out(hung)
    assert not timed_out(crashed)
    assert 'File "<string>", line 6' in hung
    assert Attempts(tmp_path, "clip.1", "run2").deaths() == []
    assert Attempts(tmp_path, "clip.10", "run1").deaths() == []


@pytest.mark.parametrize("error", [None, ValueError])
def test_a_try_that_ends_takes_its_marks_away(tmp_path: Path, error: type[Exception] | None) -> None:
    _die(tmp_path, "os._exit(3)")
    attempts = Attempts(tmp_path, "clip.1", "run1")
    assert len(attempts.deaths()) == 1
    if error is None:
        with attempts.watch(60.0):
            assert len(attempts.deaths()) == 2
    else:
        with pytest.raises(error), attempts.watch(60.0):
            raise error
    assert attempts.deaths() == []
    assert list(tmp_path.iterdir()) == []
