"""Zooms of travelling cameras, wide lenses and lenses that are not the clip's, on rendered truth."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from worldline.annotate.bundle_problem import Bundle, project_all, scatter
from worldline.annotate.camera import Intrinsics, invert, umeyama
from worldline.annotate.distorted import pattern
from worldline.annotate.geometry import Geometry, GeometryConfig, estimate_geometry
from worldline.annotate.tracks import TrackConfig, Tracks, track_points
from worldline.annotate.zoom import as_seen, camera_of_frames, without_zoom
from worldline.datasets.synthetic import SyntheticConfig, Truth, render_clip, truth_of

pytest.importorskip("moderngl")

WALK = SyntheticConfig(
    scene="street", path="walking", width=480, height=270, num_frames=72, fps=24, noise=2.0, seed=21
)


def _frames(config: SyntheticConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), image) for image, _, _ in render_clip(config)]


def _solve(config: SyntheticConfig, known: Intrinsics | None = None) -> tuple[Geometry, Truth]:
    truth = truth_of(config)
    found = estimate_geometry(_frames(config), list(truth.timestamps_s), GeometryConfig(), known=known)
    return found, truth


def _error_share(geometry: Geometry, truth: Truth) -> float:
    """Rms position error after Sim(3) over the path's largest distance from its start."""
    assert geometry.reconstruction is not None
    assert geometry.reconstruction.is_registered.all()
    centres = invert(geometry.reconstruction.cam_from_world)[:, :, 3]
    true = truth.world_from_cam[:, :, 3]
    aligned = umeyama(true, centres).points(centres)
    extent = np.linalg.norm(true - true[0], axis=1).max()
    return float(np.sqrt(np.mean(np.sum((aligned - true) ** 2, axis=1))) / extent)


def _still_tracks() -> Tracks:
    texture = np.random.default_rng(0).integers(0, 255, (120, 160)).astype(np.uint8)
    grey = cv2.GaussianBlur(texture, (0, 0), 2)
    return track_points([(grey, np.repeat(grey[:, :, None], 3, axis=2))] * 6, TrackConfig(num_points=80))


def test_a_zoom_taken_out_is_put_back_and_magnifies_about_the_centre() -> None:
    tracks = _still_tracks()
    zoom = np.linspace(1.0, 1.5, tracks.num_frames)
    fixed = without_zoom(without_zoom(tracks, zoom), zoom)  # two rounds add up
    np.testing.assert_allclose(as_seen(fixed.xy_px, fixed.frame_idx, fixed), tracks.xy_px, atol=1e-4)
    last = tracks.frame_idx == tracks.num_frames - 1
    centre = np.array([80.0, 60.0])
    expected = centre + (tracks.xy_px[last] - centre) / 1.5**2
    np.testing.assert_allclose(fixed.xy_px[last], expected, atol=1e-4)
    camera = camera_of_frames(np.full(tracks.num_frames, 100.0), np.array([81.0, 60.0]), fixed)
    np.testing.assert_allclose(camera[-1], [225.0, 225.0, 80 + 2.25, 60.0])


def test_keyframe_images_shrink_with_their_pixels() -> None:
    tracks = _still_tracks()
    fixed = without_zoom(tracks, np.full(tracks.num_frames, 1.25))
    grey, shrunk = tracks.keyframes[0].grey.astype(float), fixed.keyframes[0].grey.astype(float)
    at = tracks.keyframes[0].track_idx
    old = tracks.xy_px[tracks.frame_idx == 0][np.argsort(tracks.track_idx[tracks.frame_idx == 0])][at]
    new = fixed.xy_px[fixed.frame_idx == 0][np.argsort(fixed.track_idx[fixed.frame_idx == 0])][at]
    seen = cv2.remap(grey.astype(np.float32), *np.float32(old - 0.5).T[:, None], cv2.INTER_LINEAR)
    moved = cv2.remap(shrunk.astype(np.float32), *np.float32(new - 0.5).T[:, None], cv2.INTER_LINEAR)
    assert np.abs(seen - moved).mean() < 4


@pytest.mark.slow
@pytest.mark.parametrize("zoom", [1.6, 0.75], ids=["in", "out"])
def test_a_walk_that_zooms_keeps_its_path_and_tells_its_focal_lengths(zoom: float) -> None:
    geometry, truth = _solve(replace(WALK, zoom=zoom))
    assert geometry.degeneracy == "ok"
    assert geometry.reconstruction is not None
    assert _error_share(geometry, truth) < 0.004  # a fixed lens: 0.03
    focal = geometry.reconstruction.intrinsics.fxfycxcy_px[:, 0]
    ratio = focal / truth.intrinsics.fxfycxcy_px[:, 0]
    assert np.abs(np.log(ratio)).max() < 0.03
    assert geometry.sigma is not None
    assert np.isfinite(geometry.sigma.translation).all()
    assert geometry.sigma.focal_px > 0


@pytest.mark.slow
def test_a_lens_that_does_not_zoom_keeps_one_focal_length() -> None:
    geometry, _ = _solve(WALK)
    assert geometry.reconstruction is not None
    assert np.ptp(geometry.reconstruction.intrinsics.fxfycxcy_px[:, 0]) == 0


@pytest.mark.slow
def test_a_wide_lens_that_no_pinhole_leads_to_is_found() -> None:
    config = replace(
        WALK,
        scene="room",
        fov_x_deg=110,
        camera_model="fisheye",
        distortion=(0.0, 0.0),
        seed=43,
        num_frames=60,
    )
    geometry, truth = _solve(config)
    assert geometry.reconstruction is not None
    assert geometry.reconstruction.intrinsics.model == "fisheye"
    assert geometry.degeneracy == "ok"
    assert _error_share(geometry, truth) < 0.004
    ratio = geometry.reconstruction.intrinsics.fxfycxcy_px[0, 0] / truth.intrinsics.fxfycxcy_px[0, 0]
    assert abs(np.log(ratio)) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize(
    ("distortion", "label"), [((-0.25, 0.05), "distorted"), ((0.0, 0.0), "ok")], ids=["bent", "straight"]
)
def test_a_pinhole_given_for_a_bent_lens_is_labelled(distortion: tuple[float, float], label: str) -> None:
    config = replace(
        WALK, scene="desk", path="orbiting", camera_model="radial", distortion=distortion, num_frames=60
    )
    truth = truth_of(config)
    given = Intrinsics(fxfycxcy_px=truth.intrinsics.fxfycxcy_px[0], width=480, height=270)
    geometry, _ = _solve(config, given)
    assert geometry.degeneracy == label


def test_residuals_that_stand_in_the_image_are_told_from_noise() -> None:
    """Exact projections plus noise, and plus a displacement that depends on the place alone: the pattern is the
    displacement's rms over the noise."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(-1, 1, (300, 2)) * [1.2, 0.8], rng.uniform(3, 4, (300, 1))], axis=1)
    cams = np.repeat(np.eye(3, 4)[None], 20, axis=0)
    cams[:, 0, 3] = np.linspace(-0.3, 0.3, 20)
    cam_idx, point_idx = (x.ravel() for x in np.meshgrid(np.arange(20), np.arange(300), indexing="ij"))
    bundle = Bundle(
        cam_from_world=cams,
        points_in_world=points,
        cam_idx=cam_idx,
        point_idx=point_idx,
        xy_px=np.zeros((6000, 2)),
        focal_px=np.full(20, 700.0),
        centre_px=np.array([320.0, 180.0]),
    )
    exact = project_all(bundle)[0]
    noise = 0.3 * rng.standard_normal(exact.shape)
    wave = 0.4 * np.sin(1.3 * (exact // [80, 60])[:, ::-1])  # one displacement for each eighth and sixth
    size = (640, 360)
    assert pattern(replace(bundle, xy_px=exact + noise), size) < 0.15
    found = pattern(replace(bundle, xy_px=exact + noise + wave), size)
    expected = np.sqrt(np.mean(np.sum(wave**2, axis=1))) / scatter(
        replace(bundle, xy_px=exact + noise + wave)
    )
    assert found == pytest.approx(expected, rel=0.15)
