"""The weight-free engine on rendered clips with exact truth, and its parts on images whose motion is
known."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import scipy.ndimage

from worldline.annotate.camera import Intrinsics, invert, rotation_angle, umeyama
from worldline.annotate.degeneracy import DegeneracyConfig, is_static
from worldline.annotate.geometry import Geometry, GeometryConfig, estimate_geometry
from worldline.annotate.mapper import Mapper, MappingConfig
from worldline.annotate.mapping import map_keyframes
from worldline.annotate.refine import RefineConfig, find_again, refine_observations
from worldline.annotate.tracks import TrackConfig, track_points
from worldline.annotate.triangulate import meet_rays
from worldline.datasets.schema import ClipRejected
from worldline.datasets.synthetic import SyntheticConfig, Truth, render_clip, truth_of

pytest.importorskip("moderngl")


def _frames(images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), image) for image in images]


def _rendered(config: SyntheticConfig) -> tuple[list[tuple[np.ndarray, np.ndarray]], Truth]:
    return _frames([image for image, _, _ in render_clip(config)]), truth_of(config)


def _solve(
    config: SyntheticConfig, *, known: Intrinsics | None = None, cover: slice | None = None
) -> tuple[Geometry, Truth]:
    frames, truth = _rendered(config)
    if cover is not None:
        frames[cover] = [(np.zeros_like(grey), np.zeros_like(rgb)) for grey, rgb in frames[cover]]
    return estimate_geometry(frames, list(truth.timestamps_s), GeometryConfig(), known=known), truth


def _texture(height: int = 240, width: int = 320, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0, 255, (height, width))
    return sum(scipy.ndimage.gaussian_filter(noise, s, mode="wrap") * s for s in (1.5, 4.0))


def _shifted(texture: np.ndarray, x: float, y: float) -> np.ndarray:
    """A periodic texture moved by (x, y) pixels, exactly: a phase ramp in its Fourier transform."""
    moved = np.fft.ifft2(scipy.ndimage.fourier_shift(np.fft.fft2(texture), (y, x))).real
    low, high = texture.min(), texture.max()
    return np.clip((moved - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)


SMALL = SyntheticConfig(width=480, height=270, num_frames=60, seed=3)


def test_tracks_follow_a_known_shift_to_a_twentieth_of_a_pixel() -> None:
    texture = _texture()
    shifts = np.array([[1.3 * t, -0.7 * t] for t in range(12)])
    frames = _frames([np.repeat(_shifted(texture, x, y)[:, :, None], 3, axis=2) for x, y in shifts])
    tracks = track_points(frames, TrackConfig(num_points=150))
    lasting = np.bincount(tracks.track_idx) >= 10
    assert lasting.sum() > 60
    rows = lasting[tracks.track_idx] & (tracks.frame_idx == 9)
    first = {
        int(t): xy
        for t, f, xy in zip(tracks.track_idx, tracks.frame_idx, tracks.xy_px, strict=True)
        if f == 0
    }
    error = [
        np.linalg.norm(xy - first[int(t)] - shifts[9])
        for t, xy in zip(tracks.track_idx[rows], tracks.xy_px[rows], strict=True)
        if int(t) in first
    ]
    assert np.median(error) < 0.05


def test_a_pixel_of_a_track_is_counted_from_the_corner_of_the_image() -> None:
    """A white square's corner lies between pixels, where the corner-origin coordinate is a whole number."""
    image = np.zeros((120, 160, 3), dtype=np.uint8)
    image[40:80, 60:100] = 255
    tracks = track_points(_frames([image, image]), TrackConfig(num_points=50))
    corners = np.array([[60, 40], [100, 40], [60, 80], [100, 80]])
    distance = np.linalg.norm(tracks.xy_px[:, None] - corners, axis=2).min(axis=1)
    offset = np.mean(
        [xy - corners[np.argmin(np.linalg.norm(corners - xy, axis=1))] for xy in tracks.xy_px], axis=0
    )
    assert distance.max() < 3
    assert np.abs(offset).max() < 0.3  # half a pixel off without the shift


def test_rays_meet_where_they_were_aimed() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (20, 3)) + np.array([0, 0, 5])
    origins = np.array([[0, 0, 0], [1, 0, 0], [0.5, 0.4, 0.1]])
    group = np.repeat(np.arange(20), 3)
    origin = np.tile(origins, (20, 1))
    direction = points[group] - origin
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    met, angle = meet_rays(direction, origin, group, 20)
    assert np.allclose(met, points)
    assert (np.degrees(angle) > 5).all()
    behind, _ = meet_rays(-direction, origin, group, 20)
    assert np.isnan(behind).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (SMALL, 0.005),
        (replace(SMALL, scene="street", path="driving"), 0.005),
        (replace(SMALL, path="walking", noise=4.0, motion_blur=0.5), 0.01),
        (
            replace(
                SMALL,
                scene="street",
                path="walking",
                fov_x_deg=105,
                camera_model="fisheye",
                distortion=(-0.02, 0.002),
            ),
            0.01,
        ),
    ],
    ids=["handheld", "driving", "noisy-walk", "fisheye"],
)
def test_paths_lens_and_focal_length_are_recovered(config: SyntheticConfig, limit: float) -> None:
    geometry, truth = _solve(config)
    assert geometry.degeneracy == "ok"
    reconstruction = geometry.reconstruction
    assert reconstruction is not None
    assert geometry.sigma is not None
    assert reconstruction.is_registered.all()
    assert np.allclose(reconstruction.cam_from_world[0], np.eye(3, 4))
    found, true = invert(reconstruction.cam_from_world), truth.world_from_cam
    aligned = umeyama(true[:, :, 3], found[:, :, 3])
    error = np.linalg.norm(aligned.points(found[:, :, 3]) - true[:, :, 3], axis=1)
    length = np.linalg.norm(np.diff(true[:, :, 3], axis=0), axis=1).sum()
    assert np.sqrt(np.mean(error**2)) < limit * length
    relative = invert(true[:1])[:, :, :3] @ true[:, :, :3]
    assert np.degrees(rotation_angle(found[:, :, :3].mT @ relative)).max() < 0.5
    # Driving straight ahead hardly shows the focal length: it must then say so, and be right within its error.
    focal, true_focal = reconstruction.intrinsics.fxfycxcy_px[0, 0], truth.intrinsics.fxfycxcy_px[0, 0]
    assert abs(focal - true_focal) < max(0.01 * true_focal, 2 * geometry.sigma.focal_px)
    assert geometry.sigma.focal_px < 0.15 * true_focal
    assert (geometry.sigma.translation[1:] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "label"),
    [
        (replace(SMALL, path="static", noise=3.0), "static"),
        (replace(SMALL, path="static", num_moving=2, moving_share=0.1), "static"),
        (replace(SMALL, path="pure_rotation"), "pure_rotation"),
        (replace(SMALL, path="zooming"), "zoom"),
        (replace(SMALL, num_frames=5), "too_short"),
    ],
    ids=["static", "static-people", "rotation", "zoom", "short"],
)
def test_clips_without_a_path_are_labelled_and_none_is_invented(config: SyntheticConfig, label: str) -> None:
    geometry, truth = _solve(config)
    assert geometry.degeneracy == label
    if label == "too_short":
        assert geometry.reconstruction is None
        return
    reconstruction = geometry.reconstruction
    assert reconstruction is not None
    registered = reconstruction.is_registered
    assert registered.mean() > 0.95
    assert np.abs(reconstruction.cam_from_world[registered][:, :, 3]).max() == 0
    relative = invert(truth.world_from_cam[:1])[:, :, :3] @ truth.world_from_cam[:, :, :3]
    error = invert(reconstruction.cam_from_world[registered])[:, :, :3].mT @ relative[registered]
    assert np.degrees(rotation_angle(error)).max() < 1.0


@pytest.mark.slow
def test_known_intrinsics_are_held() -> None:
    truth = truth_of(SMALL)
    known = Intrinsics(fxfycxcy_px=truth.intrinsics.fxfycxcy_px[0], width=480, height=270)
    geometry, _ = _solve(SMALL, known=known)
    assert geometry.reconstruction is not None
    assert np.allclose(geometry.reconstruction.intrinsics.fxfycxcy_px, known.fxfycxcy_px)
    assert geometry.sigma is not None
    assert geometry.sigma.focal_px == 0


@pytest.mark.slow
def test_covered_frames_are_flagged_not_interpolated() -> None:
    geometry, _ = _solve(SMALL, cover=slice(50, 60))
    assert geometry.reconstruction is not None
    registered = geometry.reconstruction.is_registered
    assert registered[:45].all()
    assert not registered[51:].any()


def test_black_and_featureless_clips_are_refused_with_a_reason() -> None:
    black = [np.zeros((120, 160, 3), dtype=np.uint8)] * 20
    with pytest.raises(ClipRejected, match="no_start"):
        estimate_geometry(_frames(black), [t / 30 for t in range(20)], GeometryConfig())
    assert not is_static(track_points(_frames(black), TrackConfig()), DegeneracyConfig())
    with pytest.raises(ValueError, match="no frames"):
        track_points([], TrackConfig())


@pytest.mark.slow
def test_alignment_to_one_patch_undoes_disturbed_observations_and_finds_lost_ones() -> None:
    frames, _ = _rendered(replace(SMALL, scene="desk", path="orbiting"))
    tracks = track_points(frames, TrackConfig())
    mapper = Mapper.of(map_keyframes(tracks, MappingConfig()), MappingConfig(), tracks, known_focal=False)
    greys = [keyframe.grey for keyframe in tracks.keyframes]
    once = refine_observations(greys, mapper.map, RefineConfig())
    rng = np.random.default_rng(0)
    shaken = replace(once, xy_px=once.xy_px + 0.6 * rng.standard_normal(once.xy_px.shape))
    # The reference of a track stays where it is, so compare its other observations with it.
    again = refine_observations(
        greys,
        replace(once, xy_px=np.where(_is_reference(once)[:, None], once.xy_px, shaken.xy_px)),
        RefineConfig(),
    )
    before, after = np.abs(shaken.xy_px - once.xy_px), np.abs(again.xy_px - once.xy_px)
    used = once.is_inlier & ~_is_reference(once)
    assert np.median(before[used]) > 0.3
    assert np.median(after[used]) < 0.03
    # A third of the observations is forgotten; the search brings most of those in later keyframes back in
    # place.
    length = np.bincount(once.track_idx[used], minlength=len(once.points))
    was_aligned = np.any(once.xy_px != mapper.map.xy_px, axis=1)
    late = was_aligned & (once.kf_idx >= np.max(once.kf_idx) - 1) & used & (length[once.track_idx] >= 3)
    assert late.sum() > 20
    kept = ~late
    cut = replace(
        once,
        kf_idx=once.kf_idx[kept],
        track_idx=once.track_idx[kept],
        xy_px=once.xy_px[kept],
        is_inlier=once.is_inlier[kept],
    )
    found = find_again(greys, cut, RefineConfig(num_reference_gap=0, max_new=1000))
    place = {
        (int(k), int(t)): xy
        for k, t, xy in zip(once.kf_idx[late], once.track_idx[late], once.xy_px[late], strict=True)
    }
    fresh = range(len(cut.xy_px), len(found.xy_px))
    errors = [
        np.linalg.norm(found.xy_px[i] - place[key])
        for i in fresh
        if (key := (int(found.kf_idx[i]), int(found.track_idx[i]))) in place
    ]
    assert len(errors) > 0.5 * late.sum()
    assert np.median(errors) < 0.15


def _is_reference(keyframe_map) -> np.ndarray:  # type: ignore[no-untyped-def]
    from worldline.annotate.refine import _references

    row = _references(keyframe_map, RefineConfig()).row
    result = np.zeros(len(keyframe_map.xy_px), dtype=bool)
    result[row[row >= 0]] = True
    return result
