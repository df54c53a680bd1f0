"""Content scores and cuts against PySceneDetect's own detectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from worldline.annotate.content_cuts import ContentCuts
from worldline.annotate.video import probe, read_frames


def _reference(images: np.ndarray, ratio: float, min_content: float) -> tuple[list[float], list[int]]:
    detector = AdaptiveDetector(adaptive_threshold=ratio, min_content_val=min_content, min_scene_len=0)
    scores, cuts = [], []
    for k, image in enumerate(images):
        found = detector.process_frame(FrameTimecode(k, fps=25.0), np.ascontiguousarray(image[..., ::-1]))
        scores.append(float(detector._frame_score))
        cuts += [cut.frame_num for cut in found]
    return scores, cuts


def _ours(
    images: np.ndarray, ratio: float, min_content: float, threshold: float = math.inf
) -> tuple[list[float], list[int]]:
    finder = ContentCuts(adaptive_ratio=ratio, adaptive_min_content=min_content, content_threshold=threshold)
    pushed = [finder.push(image) for image in images]
    return [score for score, _ in pushed], [cut for _, cuts in pushed for cut in cuts]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 255)), max_size=40),
    st.sampled_from([1.2, 1.5, 3.0, 300.0]),
    st.sampled_from([0.0, 15.0]),
)
def test_scores_and_adaptive_cuts_are_pyscenedetects(runs, ratio, min_content) -> None:
    """Runs of still, of noisy and of black pictures of an odd size."""
    rng = np.random.default_rng(len(runs))
    images = []
    for length, level in runs:
        images += [np.full((31, 47, 3), level, np.uint8)] * length
        images.append(rng.integers(0, level + 1, (31, 47, 3), dtype=np.uint8))
    assert _ours(np.array(images), ratio, min_content) == _reference(np.array(images), ratio, min_content)


@pytest.mark.parametrize("ratio", [1.5, 3.0])
def test_real_video_is_scored_as_by_pyscenedetect(ratio, bikes_path) -> None:
    images = np.stack([f.image for f in read_frames(probe(str(bikes_path)), max_pixels=160 * 90)])
    scores, cuts = _reference(images, ratio, 15.0)
    assert _ours(images, ratio, 15.0) == (scores, cuts)
    assert len(cuts) >= 5
    by_content = [k for k, score in enumerate(scores) if score >= 27.0]
    assert _ours(images, math.inf, 15.0, 27.0)[1] == by_content
