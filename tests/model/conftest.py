"""Triton's kernels without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def interpreted() -> Callable[[str, Any], Any]:
    """Runs a script in a process of its own, whose Triton interprets kernels on the CPU: that is decided when Triton is
    imported. The script has its argument as JSON in `sys.argv[1]`; what it prints last, as JSON, is the result."""

    def run(script: str, argument: Any) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", script, json.dumps(argument)],
            env=os.environ | {"TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run
