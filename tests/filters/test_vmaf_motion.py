"""VMAF motion against FFmpeg's own filter."""

from __future__ import annotations

import av
import av.filter
import cv2
import numpy as np
import pytest

from worldline.filters.vmaf_motion import VmafMotionConfig, VmafMotionScores

needs_filter = pytest.mark.skipif(
    "vmafmotion" not in av.filter.filters_available, reason="this FFmpeg has no vmafmotion"
)


def _ffmpeg_scores(lumas):
    """Score of each frame, as coded luma, by the filter."""
    graph = av.filter.Graph()
    height, width = lumas[0].shape
    source = graph.add_buffer(width=width, height=height, format="yuv420p", time_base="1/25")
    node, sink = graph.add("vmafmotion"), graph.add("buffersink")
    source.link_to(node)
    node.link_to(sink)
    graph.configure()
    found = []
    for k, luma in enumerate(lumas):
        planes = np.full((height * 3 // 2, width), 128, np.uint8)
        planes[:height] = luma
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.pts = k
        graph.push(frame)
        found.append(float(graph.pull().metadata["lavfi.vmafmotion.score"]))
    return found


def _frames(count, size, seed=0):
    rng = np.random.default_rng(seed)
    world = cv2.GaussianBlur(rng.uniform(0, 255, (size[0], size[1] + 8 * count)), (0, 0), 1.5)
    world = cv2.normalize(world, None, 16, 235, cv2.NORM_MINMAX).astype(np.uint8)
    return [np.ascontiguousarray(world[:, 7 * k : 7 * k + size[1]]) for k in range(count)]


@needs_filter
@pytest.mark.parametrize("size", [(120, 160), (98, 134)])
def test_every_frame_has_the_score_of_ffmpegs_filter(size):
    coded = _frames(6, size)
    expected = _ffmpeg_scores(coded)
    assert expected[0] == 0
    assert max(expected) > 5
    scores = VmafMotionScores()
    for luma in coded:
        scores.add(luma)
    # FFmpeg was given coded luma; ours stretches full range to it, so 255 / 219 undoes what it takes off.
    ours = np.array(scores.levels) * 255 / 219
    # It states two digits, and its integers drop half a level in a thousand.
    assert ours == pytest.approx(expected[1:], rel=1e-3, abs=0.006)
    assert scores.result()["vmaf_motion"] * 255 / 219 == pytest.approx(np.mean(expected), rel=1e-3, abs=0.006)


def test_repeated_frames_are_frozen_and_noise_is_not():
    moving, rng = _frames(4, (60, 80)), np.random.default_rng(1)
    scores = VmafMotionScores()
    for luma in [*moving, *[moving[-1]] * 3]:
        scores.add(luma)
    assert scores.result()["frozen_share"] == pytest.approx(3 / 6)
    noisy = VmafMotionScores()
    for _ in range(5):
        noisy.add(np.clip(moving[0] + rng.normal(0, 1, (60, 80)), 0, 255).astype(np.uint8))
    assert noisy.result()["frozen_share"] == 0


def test_one_frame_says_nothing():
    scores = VmafMotionScores()
    scores.add(_frames(1, (60, 80))[0])
    assert set(scores.result().values()) == {None}


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match="frozen_levels"):
        VmafMotionConfig(frozen_levels=-1.0)
