"""Turning told from travelling, and moving things from the background, on geometry made for it."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from worldline.annotate.camera import Intrinsics, project, rotation_from_rotvec, transform
from worldline.annotate.degeneracy import DegeneracyConfig, fit_rotation, is_explained, is_zooming
from worldline.annotate.mapper import Mapper, MappingConfig
from worldline.annotate.mapping import map_keyframes
from worldline.annotate.moving import MovingConfig, find_moving
from worldline.annotate.refine import RefineConfig
from worldline.annotate.tracks import Keyframe, TrackConfig, Tracks, track_points, without
from worldline.annotate.turning import explained_share, may_only_turn, only_turns, travels_when_sharp
from worldline.datasets.schema import ClipRejected
from worldline.datasets.synthetic import ClipRenderer
from worldline.datasets.synthetic_config import SyntheticConfig

SIZE = np.array([640, 360])
CAMERA = Intrinsics(fxfycxcy_px=np.array([500.0, 500.0, 320.0, 180.0]), width=640, height=360)
NUM_KF = 10


def _tracks(centres: np.ndarray, rotvecs: np.ndarray, points: np.ndarray, *, noise_px: float = 0.1) -> Tracks:
    """Every frame a keyframe; points [N, 3], or [T, N, 3] where they move. Points out of sight are not seen."""
    rotation = rotation_from_rotvec(rotvecs)
    cam_from_world = np.concatenate([rotation, -rotation @ centres[:, :, None]], axis=2)
    pixels = project(transform(cam_from_world, np.broadcast_to(points, (NUM_KF, *points.shape[-2:]))), CAMERA)
    pixels += noise_px * np.random.default_rng(1).standard_normal(pixels.shape)
    seen = np.all((pixels > 0) & (pixels < SIZE), axis=2)
    frame_idx, track_idx = np.nonzero(seen)
    keyframes = tuple(
        Keyframe(
            frame_idx=k,
            track_idx=np.flatnonzero(seen[k]),
            descriptors=np.zeros((seen[k].sum(), 32), np.uint8),
            rgb=np.zeros((seen[k].sum(), 3), np.uint8),
            grey=np.zeros((360, 640), np.uint8),
        )
        for k in range(NUM_KF)
    )
    return Tracks(
        num_frames=NUM_KF,
        width=640,
        height=360,
        num_tracks=points.shape[-2],
        frame_idx=frame_idx.astype(np.int32),
        track_idx=track_idx.astype(np.int32),
        xy_px=pixels[seen].astype(np.float32),
        keyframes=keyframes,
        motion_px=np.zeros(NUM_KF),
        is_lost=np.zeros(NUM_KF, dtype=bool),
    )


def _cloud(num: int, near_m: float, far_m: float, *, reach: float = 0.9, seed: int = 0) -> np.ndarray:
    """Points all over the view, `reach` of half the image at their depth."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(near_m, far_m, num)
    across = rng.uniform(-reach, reach, (num, 2)) * [0.64, 0.36]
    return np.concatenate([across * depth[:, None], depth[:, None]], axis=1)


def _mover(num: int = 120) -> np.ndarray:
    """[T, num, 3] a rigid thing, a fifth of the image, that moves by itself, and not along epipolar lines."""
    shape = np.random.default_rng(5).uniform(-0.35, 0.35, (num, 3)) + [-0.6, 0.1, 3.0]
    return shape[None] + np.linspace(0, 1, NUM_KF)[:, None, None] * np.array([0.5, 0.8, 0.3])


REST = np.zeros((NUM_KF, 3))
SWEEP = np.linspace(0, 1, NUM_KF)[:, None] * np.array([0.03, 0.25, 0.0])
WALK = np.linspace(0, 1, NUM_KF)[:, None] * np.array([1.5, 0.1, 0.4])


def _verdict(tracks: Tracks) -> bool:
    config, longest = DegeneracyConfig(), 640
    fit = fit_rotation(tracks, [share * longest for share in MappingConfig().focal_guesses])
    assert fit is not None
    if not may_only_turn(fit, tracks, config):
        return False
    try:
        keyframe_map = map_keyframes(tracks, MappingConfig())
    except ClipRejected:  # No path either.
        return True
    return only_turns(fit, keyframe_map, tracks, config)


def test_a_turning_camera_with_somebody_walking_by_only_turns() -> None:
    still = np.broadcast_to(_cloud(300, 6, 20), (NUM_KF, 300, 3))
    assert _verdict(_tracks(REST, SWEEP, np.concatenate([still, _mover()], axis=1)))


@pytest.mark.parametrize("thickness_m", [0.0, 6.0])
def test_a_travelling_camera_does_not_only_turn(thickness_m: float) -> None:
    """A wall too: plane-induced motion is not that of turning and zooming."""
    assert not _verdict(_tracks(WALK, SWEEP * 0.3, _cloud(400, 6, 6 + thickness_m, reach=1.4)))


def test_the_walker_is_found_and_the_background_kept() -> None:
    still = np.broadcast_to(_cloud(300, 4, 12, reach=1.1), (NUM_KF, 300, 3))
    tracks = _tracks(WALK, SWEEP * 0.3, np.concatenate([still, _mover()], axis=1))
    is_moving = find_moving(tracks, MovingConfig())
    seen = np.isin(np.arange(420), tracks.track_idx)
    assert is_moving[300:][seen[300:]].mean() > 0.6
    assert is_moving[:300][seen[:300]].mean() < 0.05
    rest = without(tracks, is_moving)
    assert not is_moving[rest.track_idx].any()
    assert len(rest.track_idx) == np.count_nonzero(~is_moving[tracks.track_idx])


def test_nothing_moves_in_a_still_world() -> None:
    tracks = _tracks(WALK, SWEEP * 0.3, _cloud(400, 4, 12, reach=1.1))
    assert not find_moving(tracks, MovingConfig()).any()


def test_share_of_all_tracks_that_turning_explains() -> None:
    far, near = _cloud(150, 400.0, 500.0), _cloud(100, 2.0, 4.0, seed=3)
    points = np.concatenate([far, near])
    config = DegeneracyConfig()
    for centres, expected in ((REST, 1.0), (WALK, 0.6)):
        tracks = _tracks(centres, SWEEP, points)
        fit = fit_rotation(tracks, [500.0])
        assert fit is not None
        # Some near points stay in sight for a keyframe or two only and then agree with anything.
        assert explained_share(fit, tracks, config) == pytest.approx(expected, abs=0.05)


def test_a_known_focal_length_does_not_zoom() -> None:
    far = _cloud(250, 400.0, 500.0)
    fit = fit_rotation(_tracks(REST, SWEEP, far), [500.0], known_focal=True)
    assert fit is not None
    assert is_explained(fit, _tracks(REST, SWEEP, far), DegeneracyConfig())
    assert (fit.focal_px == 500.0).all()
    # Steps ahead look like a zoom to a lens that may zoom, and like nothing to one that may not.
    ahead = _tracks(WALK[:, [1, 2, 0]], SWEEP * 0.0, _cloud(250, 8.0, 9.0))
    for known in (True, False):
        fit = fit_rotation(ahead, [500.0], known_focal=known)
        assert fit is not None
        assert is_explained(fit, ahead, DegeneracyConfig()) != known
        assert is_zooming(fit, DegeneracyConfig()) != known


@pytest.mark.slow
def test_steps_through_a_room_are_no_zoom() -> None:
    """The longest tracks of this clip lie on the far wall, where turning and zooming explain steps to within 0.3 px."""
    pytest.importorskip("moderngl")
    film = SyntheticConfig(
        path="excursions",
        seed=103,
        place_seed=1,
        width=320,
        height=240,
        fps=16,
        num_frames=200,
        fov_x_deg=71.0,
    )
    with ClipRenderer(film) as renderer:
        images = [renderer.image(k) for k in range(film.num_frames)]
    config = DegeneracyConfig()
    frames = ((cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), image) for image in images)
    tracks = track_points(frames, TrackConfig())
    tracks = without(tracks, find_moving(tracks, MovingConfig()))
    fit = fit_rotation(tracks, [share * 320 for share in MappingConfig().focal_guesses])
    assert fit is not None
    assert is_zooming(fit, config)
    keyframe_map = map_keyframes(tracks, MappingConfig())
    assert not only_turns(fit, keyframe_map, tracks, config)
    generous = dataclasses.replace(config, zoom_background_share=0.0)
    assert only_turns(fit, keyframe_map, tracks, generous)
    mapper = Mapper.of(keyframe_map, MappingConfig(), tracks, known_focal=False)
    points, xy_px = keyframe_map.points.copy(), keyframe_map.xy_px.copy()
    assert travels_when_sharp(fit, mapper, tracks, RefineConfig(), config)
    assert np.array_equal(mapper.map.points, points, equal_nan=True)
    assert np.array_equal(mapper.map.xy_px, xy_px)


def test_a_zoom_stays_a_zoom_when_sharp() -> None:
    pytest.importorskip("moderngl")
    film = SyntheticConfig(
        path="zooming", scene="outdoor", seed=4, width=384, height=216, num_frames=45, fps=15
    )
    with ClipRenderer(film) as renderer:
        images = [renderer.image(k) for k in range(film.num_frames)]
    frames = ((cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), image) for image in images)
    tracks = track_points(frames, TrackConfig())
    fit = fit_rotation(tracks, [share * 384 for share in MappingConfig().focal_guesses])
    assert fit is not None
    # Any map there is of it: its cameras travel, its points have depth.
    keyframe_map = map_keyframes(tracks, MappingConfig())
    assert np.isfinite(keyframe_map.points[:, 0]).sum() > 100
    mapper = Mapper.of(keyframe_map, MappingConfig(), tracks, known_focal=False)
    assert not travels_when_sharp(fit, mapper, tracks, RefineConfig(), DegeneracyConfig())
