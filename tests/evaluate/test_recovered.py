"""Paths told from frames by both engines, against the rendered path; what cannot be told is said."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.annotate.camera import Intrinsics
from worldline.datasets.schema import MissingBackend
from worldline.datasets.synthetic_places import RenderedPlace
from worldline.evaluate.benchmark_paths import make_path, splits
from worldline.evaluate.recovered import ENGINES, RecoveredPath, disagreement, recover_path, score_path


@pytest.fixture(scope="module")
def video() -> tuple[np.ndarray, np.ndarray, Intrinsics]:
    """Three seconds of a rendered room, its path in metres, its lens."""
    try:
        place = RenderedPlace(1, width=320, height=240)
    except MissingBackend as missing:
        pytest.skip(str(missing))
    with place:
        template = next(t for t in splits("simple") if t.name == "s_curve")
        path = make_path(
            template, median_depth_m=place.median_depth_m(), obstacles=place.obstacles(), num_frames=97
        ).first_from_cam[::4]
        return place.frames(path), path, place.camera


@pytest.mark.parametrize("engine", ENGINES)
def test_the_path_of_a_true_render_is_told(video, engine: str) -> None:
    frames, path, lens = video
    found = recover_path(frames, lens, fps=4.0, engine=engine)
    assert found.outcome == "ok"
    score = score_path(found, path)
    assert score is not None
    reach_m = np.ptp(path[:, :, 3], axis=0).max()
    # A nearly straight path leaves the aligning rotation open; relative to the first frame nothing is.
    assert score.unaligned.rotation_deg < 0.5
    assert score.aligned.translation < 0.03 * reach_m
    # A third of the path's poses missing: too few to score.
    poses = np.array(found.world_from_cam)
    poses[: len(poses) // 3] = np.nan
    assert score_path(RecoveredPath("ok", poses), path) is None
    assert disagreement(RecoveredPath("ok", poses), found) is None
    same = disagreement(found, found)
    assert same is not None
    assert same.aligned.rotation_deg < 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_what_shows_no_path_has_an_outcome(video, engine: str) -> None:
    frames, path, lens = video
    noise = np.random.default_rng(0).integers(0, 255, frames[:12].shape, dtype=np.uint8)
    found = recover_path(noise, lens, fps=4.0, engine=engine)
    assert found.outcome != "ok"
    assert score_path(found, path[:12]) is None


def test_a_standing_picture_rests(video) -> None:
    frames, _, lens = video
    found = recover_path(np.repeat(frames[:1], 20, axis=0), lens, fps=4.0, engine="worldline")
    assert found.outcome == "static"
    with pytest.raises(ValueError, match="known are worldline, pycolmap"):
        recover_path(frames, lens, fps=4.0, engine="droid")
