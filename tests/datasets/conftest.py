"""Fixtures of shard tests: a dataset folder with exact poses, and its shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def posed_folder(tmp_path_factory: pytest.TempPathFactory, media: Any, posed: Any) -> Path:
    """Three videos at 30 fps of 100 numbered frames, two scenes each."""
    folder = tmp_path_factory.mktemp("posed")
    rows = []
    for number in range(3):
        video = media.numbered(folder / f"v{number}.mp4", count=100, fps=30, seed=number)
        rows += posed.rows_of_video(video, [(0, 40), (40, 100)], number)
    return posed.write_table(folder / "dataset", rows)


@pytest.fixture(scope="session")
def shards_made(tmp_path_factory: pytest.TempPathFactory, posed_folder: Path, posed: Any) -> Path:
    """The shards of `posed_folder`; copy before changing them."""
    return posed.make_shards(posed_folder, tmp_path_factory.mktemp("shards") / "out")
