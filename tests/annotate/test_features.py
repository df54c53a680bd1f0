"""Matchers against true geometry: a warped image, a rendered pair, bridges over a rendered clip's dark middle."""

from __future__ import annotations

import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from worldline.annotate.camera import compose, invert, project, transform, umeyama, unproject
from worldline.annotate.features import BACKENDS, FeaturesConfig, Matches, View, load_matcher
from worldline.annotate.geometry import GeometryConfig, estimate_geometry
from worldline.annotate.relocalise import carry
from worldline.datasets.schema import MissingBackend
from worldline.datasets.synthetic import SyntheticConfig, render_clip, truth_of

LEARNED = ("xfeat", "aliked_lightglue")
MEDIAN_PX = {"xfeat": 1.0, "aliked_lightglue": 0.6}
"""XFeat's points sit on whole pixels."""


def _view(grey: np.ndarray) -> View:
    none = np.zeros((0, 2))
    return View(grey=grey, xy_px=none, descriptors=np.zeros((0, 32), np.uint8))


def _matched(backend: str, grey_a: np.ndarray, grey_b: np.ndarray) -> Matches:
    matcher = load_matcher(FeaturesConfig(backend=backend))
    return matcher.match(matcher.describe(_view(grey_a)), matcher.describe(_view(grey_b)))


def _needs_packages() -> None:
    pytest.importorskip("kornia", reason="pip install 'worldline[features]'")


@pytest.mark.slow
@pytest.mark.parametrize("backend", LEARNED)
def test_matches_are_where_the_scene_point_is(backend: str) -> None:
    """Frames of a rendered walk a second apart; depth and poses say where each pixel goes. An odd width, since XFeat
    resizes to multiples of 32."""
    _needs_packages()
    config = SyntheticConfig(
        scene="room", path="walking", seed=12, width=438, height=330, fps=5, num_frames=6
    )
    frames = list(render_clip(config))
    truth = truth_of(config)
    greys = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image, _, _ in (frames[0], frames[5])]
    camera = replace(truth.intrinsics, fxfycxcy_px=truth.intrinsics.fxfycxcy_px[0])
    matches = _matched(backend, *greys)
    assert len(matches.a_idx) > 100
    assert np.all((matches.confidence > 0) & (matches.confidence <= 1))
    column, row = matches.xy_a_px.astype(int).T
    z = frames[0][1][row, column]
    rays = unproject(matches.xy_a_px, camera)
    points = rays / rays[:, 2:] * z[:, None]
    b_from_a = compose(invert(truth.world_from_cam[5:6]), truth.world_from_cam[:1])
    true_xy = project(transform(b_from_a, points[None]), camera)[0]
    error = np.linalg.norm(true_xy - matches.xy_b_px, axis=1)
    assert np.median(error) < MEDIAN_PX[backend]
    assert np.mean(error < 3) > 0.85


@pytest.mark.parametrize("backend", LEARNED)
def test_nothing_is_matched_in_a_black_frame(backend: str) -> None:
    _needs_packages()
    noise = np.random.default_rng(0).integers(0, 255, (96, 128)).astype(np.uint8)
    assert len(_matched(backend, np.zeros((96, 128), np.uint8), noise).a_idx) < 20


def test_carried_points_follow_a_shift_exactly() -> None:
    rng = np.random.default_rng(1)
    xy_b = rng.uniform(0, 300, (400, 2))
    shift = np.array([30.0, -12.0])
    number = np.arange(400)
    matches = Matches(a_idx=number, b_idx=number, xy_a_px=xy_b + shift, xy_b_px=xy_b, confidence=np.ones(400))
    asked = np.concatenate([rng.uniform(50, 250, (40, 2)), [[900.0, 900.0]]])
    kept, xy = carry(matches, asked, 30.0)
    np.testing.assert_array_equal(kept, np.arange(40))
    np.testing.assert_allclose(xy, asked[kept] + shift, atol=1e-9)


def test_an_unknown_matcher_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=", ".join(BACKENDS)):
        FeaturesConfig(backend="sift")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "worldline.annotate.backends.xfeat_features", raising=False)
    monkeypatch.delitem(sys.modules, "worldline.annotate.backends.lightglue_matcher", raising=False)
    monkeypatch.setitem(sys.modules, "kornia.feature", None)
    with pytest.raises(MissingBackend, match=r"worldline\[features\]"):
        load_matcher(FeaturesConfig(backend="xfeat"))


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "num_posed"), [("orb", 35), ("xfeat", 55)])
def test_a_turned_view_beyond_the_dark_is_posed_by_learned_matches_alone(
    backend: str, num_posed: int
) -> None:
    """25 of 80 frames black, the camera turned by 45 degrees and 1.2 m on after them."""
    if backend != "orb":
        _needs_packages()
    config = SyntheticConfig(
        scene="room", path="walking", seed=12, width=480, height=360, fps=15, num_frames=80
    )
    frames, truth = [np.asarray(image) for image, _, _ in render_clip(config)], truth_of(config)
    for dark in frames[20:45]:
        dark[:] = 0
    grey = ((cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), image) for image in frames)
    geometry = GeometryConfig(features=FeaturesConfig(backend=backend))
    found = estimate_geometry(grey, list(truth.timestamps_s), geometry).reconstruction
    assert found is not None
    is_posed = np.isfinite(found.cam_from_world[:, 0, 0])
    centres = invert(found.cam_from_world[is_posed])[:, :, 3]
    true_centres = truth.world_from_cam[is_posed][:, :, 3]
    error_m = np.linalg.norm(umeyama(true_centres, centres).points(centres) - true_centres, axis=1)
    assert is_posed.sum() == num_posed
    assert error_m.max() < 0.005
