"""Fixtures of shard tests: a dataset folder with exact poses, and its shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def posed_folder(tmp_path_factory: pytest.TempPathFactory, media: Any, posed: Any) -> Path:
    """Three videos at 30 fps of 100 numbered frames, two scenes each."""
    return posed.numbered_dataset(tmp_path_factory.mktemp("posed"), media, 3)


@pytest.fixture(scope="session")
def shards_made(tmp_path_factory: pytest.TempPathFactory, posed_folder: Path, posed: Any) -> Path:
    """The shards of `posed_folder`; copy before changing them."""
    return posed.make_shards(posed_folder, tmp_path_factory.mktemp("shards") / "out")
