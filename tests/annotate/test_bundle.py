"""Bundle adjustment against finite differences, a general solver, exact truth and the gauge's invariants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize

from worldline.annotate.bundle import adjust
from worldline.annotate.bundle_covariance import cluster_scores, covariance
from worldline.annotate.bundle_problem import (
    Bundle,
    BundleConfig,
    DepthObservations,
    linearise,
    project_all,
    reprojection_errors,
)
from worldline.annotate.bundle_system import Layout, apply_step, normal_equations, reduce
from worldline.annotate.camera import Intrinsics, invert, project, rotation_from_rotvec, transform, umeyama


def _scene(
    *,
    num_cams: int = 7,
    num_points: int = 60,
    model: str = "pinhole",
    noise_px: float = 0.0,
    seed: int = 0,
    spread: float = 1.0,
) -> tuple[Bundle, np.ndarray]:
    """A camera on an arc around a cloud, every point seen by all but a few; and the true centres."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1, 1, (num_points, 3)) * [spread, spread, 1] + [0, 0, 6]
    angle = np.linspace(-0.4, 0.4, num_cams)
    rotvec = np.stack([0.1 * np.sin(3 * angle), -angle, 0.05 * angle], axis=1)
    centre = np.stack([2.5 * np.sin(angle), 0.3 * angle**2, 1 - np.cos(angle)], axis=1)
    rotation = rotation_from_rotvec(rotvec)
    cam_from_world = np.concatenate([rotation, -rotation @ centre[:, :, None]], axis=2)
    distortion = np.zeros(2) if model == "pinhole" else np.array([-0.1, 0.02])
    camera = Intrinsics(
        fxfycxcy_px=np.array([500.0, 500.0, 320.0, 240.0]),
        width=640,
        height=480,
        model=model,
        distortion=() if model == "pinhole" else tuple(distortion),
    )
    cam_idx, point_idx = np.nonzero(rng.random((num_cams, num_points)) < 0.9)
    pixels = project(transform(cam_from_world, points[None]), camera)[cam_idx, point_idx]
    bundle = Bundle(
        cam_from_world=cam_from_world,
        points_in_world=points,
        cam_idx=cam_idx,
        point_idx=point_idx,
        xy_px=pixels + noise_px * rng.standard_normal(pixels.shape),
        focal_px=np.full(num_cams, 500.0),
        centre_px=np.array([320.0, 240.0]),
        model=model,
        distortion=distortion,
        sigma_px=max(noise_px, 0.5),
    )
    return bundle, centre


def _perturbed(bundle: Bundle, amount: float, seed: int = 1) -> Bundle:
    rng = np.random.default_rng(seed)
    step = {
        "cam": amount * rng.standard_normal((len(bundle.cam_from_world), 6)),
        "shared": np.zeros(0),
        "point": amount * rng.standard_normal(bundle.points_in_world.shape),
    }
    moved = apply_step(bundle, BundleConfig(), step)
    assert moved is not None
    return moved


@pytest.mark.parametrize("model", ["pinhole", "radial", "fisheye"])
def test_jacobians_match_finite_differences(model: str) -> None:
    bundle, _ = _scene(model=model)
    bundle = _perturbed(bundle, 0.02)
    config = BundleConfig(
        free_focal=True, free_distortion=model != "pinhole", free_camera_focal=True, centre_sigma_px=5.0
    )
    terms = linearise(bundle, config)
    num_shared = terms["shared"].shape[2]
    eps = 1e-6
    for column in range(7 + num_shared + 3):

        def moved(sign: float, column: int = column) -> np.ndarray:
            step = {
                "cam": np.zeros((len(bundle.cam_from_world), 7)),
                "shared": np.zeros(num_shared),
                "point": np.zeros_like(bundle.points_in_world),
            }
            if column < 7:
                step["cam"][:, column] = sign * eps
            elif column < 7 + num_shared:
                step["shared"][column - 7] = sign * eps
            else:
                step["point"][:, column - 7 - num_shared] = sign * eps
            candidate = apply_step(bundle, config, step)
            assert candidate is not None
            return linearise(candidate, config)["residual"]

        numeric = (moved(1) - moved(-1)) / (2 * eps)
        analytic = np.concatenate([terms["cam"], terms["shared"], terms["point"]], axis=2)[:, :, column]
        scale = np.abs(numeric).max() + 1
        assert np.abs(numeric - analytic).max() < 1e-6 * scale, column


def test_projection_is_that_of_the_camera_contract() -> None:
    for model in ("pinhole", "radial", "fisheye"):
        bundle, _ = _scene(model=model)
        assert reprojection_errors(bundle).max() < 1e-9
        pixels, depth = project_all(bundle)
        assert np.allclose(pixels, bundle.xy_px, atol=1e-9)
        assert (depth > 0).all()


@pytest.mark.parametrize("model", ["pinhole", "radial", "fisheye"])
def test_exact_observations_give_the_exact_scene_back(model: str) -> None:
    truth, centre = _scene(model=model)
    start = replace(_perturbed(truth, 0.03), focal_px=truth.focal_px * 1.06)
    start = replace(start, distortion=truth.distortion * 0.5)
    config = BundleConfig(
        free_focal=True,
        free_distortion=model != "pinhole",
        max_iterations=200,
        relative_tolerance=1e-14,
        loss="huber",
        loss_scale=100.0,
    )
    solved = adjust(start, config)
    assert reprojection_errors(solved).max() < 1e-4
    assert solved.focal_px[0] == pytest.approx(500.0, abs=0.02)
    found = invert(solved.cam_from_world)[:, :, 3]
    aligned = umeyama(centre, found).points(found)
    assert np.abs(aligned - centre).max() < 1e-4


def test_minimum_is_that_of_a_general_solver() -> None:
    noisy, _ = _scene(num_cams=4, num_points=25, noise_px=0.7)
    config = BundleConfig(loss="none", max_iterations=100, relative_tolerance=1e-15)
    ours = adjust(noisy, config)

    def residuals(vector: np.ndarray) -> np.ndarray:
        step = {
            "cam": vector[:24].reshape(4, 6),
            "shared": np.zeros(0),
            "point": vector[24:].reshape(-1, 3),
        }
        moved = apply_step(noisy, config, step)
        assert moved is not None
        return (linearise(moved, config)["residual"] / noisy.sigma_px).reshape(-1)

    reference = scipy.optimize.least_squares(
        residuals, np.zeros(24 + 75), x_scale="jac", xtol=1e-14, ftol=1e-14
    )
    assert ours.cost == pytest.approx(2 * reference.cost, rel=1e-6)


def test_outliers_are_outvoted() -> None:
    truth, centre = _scene(noise_px=0.3)
    rng = np.random.default_rng(3)
    wrong = rng.random(len(truth.xy_px)) < 0.1
    xy = truth.xy_px.copy()
    xy[wrong] += rng.uniform(-80, 80, (int(wrong.sum()), 2))
    solved = adjust(replace(_perturbed(truth, 0.01), xy_px=xy), BundleConfig(max_iterations=60))
    found = invert(solved.cam_from_world)[:, :, 3]
    assert np.abs(umeyama(centre, found).points(found) - centre).max() < 0.02
    assert solved.weight is not None
    assert np.median(solved.weight[wrong]) < 0.01 < 0.5 < np.median(solved.weight[~wrong])


def test_fixed_cameras_and_known_focal_do_not_move() -> None:
    truth, _ = _scene(noise_px=0.5)
    start = _perturbed(truth, 0.02)
    is_fixed = np.zeros(7, dtype=bool)
    is_fixed[[0, 3]] = True
    solved = adjust(replace(start, is_fixed=is_fixed), BundleConfig())
    assert np.abs(solved.cam_from_world[is_fixed] - start.cam_from_world[is_fixed]).max() < 1e-6
    assert np.abs(solved.cam_from_world[~is_fixed] - start.cam_from_world[~is_fixed]).max() > 1e-3
    assert (solved.focal_px == start.focal_px).all()


def test_zoom_is_recovered_when_freed() -> None:
    truth, _ = _scene()
    zoom = 500 * np.exp(np.linspace(0, 0.08, 7))
    xy = (truth.xy_px - truth.centre_px) * (zoom / 500)[truth.cam_idx, None] + truth.centre_px
    start = replace(truth, xy_px=xy)
    config = BundleConfig(
        free_camera_focal=True, focal_step_sigma=0.1, max_iterations=200, relative_tolerance=1e-13
    )
    solved = adjust(start, config)
    ratio = solved.focal_px / solved.focal_px[0]
    assert np.abs(ratio - zoom / zoom[0]).max() < 3e-3


def test_depth_measurements_pin_the_scale() -> None:
    truth, centre = _scene(noise_px=0.3)
    _, depth = project_all(truth)
    metres = 2.5
    rng = np.random.default_rng(5)
    measured = DepthObservations(
        obs_idx=np.arange(len(depth)),
        log_depth=np.log(depth * metres) + 0.02 * rng.standard_normal(len(depth)),
        sigma=np.full(len(depth), 0.02),
    )
    solved = adjust(replace(_perturbed(truth, 0.01), depth=measured), BundleConfig(max_iterations=60))
    assert solved.log_depth_scale is not None
    found = invert(solved.cam_from_world)[:, :, 3]
    unit = umeyama(centre, found, with_scale=True).scale
    assert np.exp(solved.log_depth_scale.mean()) / unit == pytest.approx(metres, rel=0.01)


def _in_gauge(bundle: Bundle, truth: Bundle) -> np.ndarray:
    """[C, 3] errors of the centres with the first camera and the rms distance from it held."""
    first = bundle.cam_from_world[0]
    relative = bundle.cam_from_world.copy()
    relative[:, :, :3] = bundle.cam_from_world[:, :, :3] @ first[:, :3].T
    relative[:, :, 3] = bundle.cam_from_world[:, :, 3] - np.einsum(
        "cij,j->ci", relative[:, :, :3], first[:, 3]
    )
    found = invert(relative)[:, :, 3] @ truth.cam_from_world[0, :, :3]
    true = invert(truth.cam_from_world)[:, :, 3]
    true = true - true[0]
    return found * np.sqrt(np.sum(true**2) / np.sum(found**2)) - true


_FREE_FOCAL = BundleConfig(loss="none", free_focal=True, max_iterations=40, relative_tolerance=1e-10)


def test_covariance_is_the_scatter_of_repeated_experiments() -> None:
    """Monte Carlo: the stated standard deviations are those of the solutions, in the stated gauge."""
    truth, _ = _scene(num_cams=5, num_points=40, seed=7)
    stated = np.sqrt(np.einsum("cii->ci", covariance(truth, _FREE_FOCAL).camera)[:, 3:6])
    errors = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        noisy = replace(truth, xy_px=truth.xy_px + 0.5 * rng.standard_normal(truth.xy_px.shape), sigma_px=0.5)
        errors.append(_in_gauge(adjust(noisy, _FREE_FOCAL), truth))
    scatter = np.sqrt(np.mean(np.square(errors), axis=0))
    ratio = np.sqrt(np.mean(scatter[1:] ** 2)) / np.sqrt(np.mean(stated[1:] ** 2))
    assert 0.85 < ratio < 1.15
    assert np.abs(stated[0]).max() == 0


@pytest.mark.parametrize(
    ("told_by", "share"), [("togetherness", 0.0), ("togetherness", 0.8), ("standing", 0.8)]
)
def test_togetherness_is_what_shared_errors_add_to_the_scatter(told_by: str, share: float) -> None:
    """Monte Carlo: points in one part of a frame, or of the image over all frames, move by `share` of their variance
    together, the rest each alone."""
    truth, _ = _scene(num_cams=7, num_points=400, seed=7, spread=2.8)
    result = covariance(truth, _FREE_FOCAL)
    stated = np.sqrt(np.mean(np.einsum("cii->ci", result.camera)[1:, 3:6]))
    cell = np.clip(truth.xy_px / 160, 0, [3, 2]).astype(int)
    part = cell[:, 0] * 3 + cell[:, 1]
    if told_by == "togetherness":
        part += truth.cam_idx * 12
    errors, told = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        together = rng.standard_normal((part.max() + 1, 2))[part]
        alone = rng.standard_normal(truth.xy_px.shape)
        noise = 0.5 * (np.sqrt(share) * together + np.sqrt(1 - share) * alone)
        solved = adjust(replace(truth, xy_px=truth.xy_px + noise), _FREE_FOCAL)
        errors.append(_in_gauge(solved, truth)[1:])
        told.append(getattr(covariance(solved, _FREE_FOCAL), told_by))
    scatter = np.sqrt(np.mean(np.square(errors)))
    # The poses take up a part of what is shared, so the residuals show less of it than there is.
    assert 0.55 < stated * np.sqrt(np.mean(np.square(told))) / scatter < 0.9
    assert scatter > 2 * stated if share else scatter == pytest.approx(stated, rel=0.15)


def test_scores_of_clusters_are_those_of_the_dense_equations() -> None:
    bundle, _ = _scene(num_cams=4, num_points=15, model="radial", noise_px=0.3)
    config = BundleConfig(free_focal=True, free_distortion=True, centre_sigma_px=3.0)
    layout, terms = Layout.of(bundle, config), linearise(bundle, config)
    weight = np.random.default_rng(0).uniform(0.2, 1, len(bundle.xy_px))
    root = np.sqrt(weight) / bundle.sigma_px
    system = normal_equations(bundle, config, terms, weight, layout, bundle)
    _, right = reduce(system, 0.0, layout)
    cluster = bundle.cam_idx * 2 + (bundle.xy_px[:, 0] > 320)
    found = cluster_scores(
        terms["cam"],
        terms["shared"],
        terms["point"],
        terms["residual"],
        root,
        system["w"],
        system["v_inv"],
        cluster,
        8,
        system["cam_idx"],
        layout.by_point,
        layout.point_starts,
        layout.num_cam,
    )
    rows = np.arange(len(root))
    by_cams = np.zeros((len(root), 2, layout.size))
    for column in range(6):
        by_cams[rows, :, bundle.cam_idx * 6 + column] = terms["cam"][:, :, column]
    by_cams[:, :, layout.num_cam :] = terms["shared"]
    by_points = np.zeros((len(root), 2, 3 * 15))
    for column in range(3):
        by_points[rows, :, bundle.point_idx * 3 + column] = terms["point"][:, :, column]
    by_cams, by_points = by_cams * root[:, None, None], by_points * root[:, None, None]
    residual = terms["residual"] * root[:, None]
    coupling = np.einsum("mka,mkb->ab", by_cams, by_points)
    inverse = np.linalg.inv(np.einsum("mka,mkb->ab", by_points, by_points))
    for k in range(8):
        at = cluster == k
        score = np.einsum("mka,mk->a", by_cams[at], residual[at])
        score -= coupling @ inverse @ np.einsum("mka,mk->a", by_points[at], residual[at])
        assert np.allclose(found[k], score, rtol=1e-6, atol=1e-6 * np.abs(score).max())
    assert np.allclose(found.sum(axis=0), right, rtol=1e-5, atol=1e-5 * np.abs(found).max())


def test_a_held_principal_point_adds_what_its_prior_moves_the_path() -> None:
    """Finite differences: the path adjusted with the principal point held one sigma off, either way, along each axis."""
    exact, _ = _scene(num_cams=5, num_points=80)
    sigma = 2.0
    config = replace(_FREE_FOCAL, centre_sigma_px=sigma)
    added = covariance(exact, config, is_centre_held=True).held_lens
    expected = np.zeros((5, 3))
    for axis in (0, 1):
        step = 0.05 * np.eye(2)[axis]
        moved = [
            _in_gauge(adjust(replace(exact, centre_px=exact.centre_px + sign * step), _FREE_FOCAL), exact)
            for sign in (1, -1)
        ]
        expected += ((moved[0] - moved[1]) / 2 * sigma / 0.05) ** 2
    found = np.einsum("cii->ci", added)[:, 3:6]
    assert np.allclose(np.sqrt(found.sum(axis=1)), np.sqrt(expected.sum(axis=1)), rtol=0.02, atol=1e-4)
    assert not covariance(exact, config).held_lens.any()


def test_a_held_focal_length_adds_what_it_may_be_off() -> None:
    """Finite differences: the path adjusted with a focal length held one per mille off, either way."""
    exact, _ = _scene(num_cams=5, num_points=80)
    sigma, step = 0.01, 0.001
    config = replace(_FREE_FOCAL, focal_prior_sigma=sigma)
    held = replace(_FREE_FOCAL, free_focal=False)
    moved = [
        _in_gauge(adjust(replace(exact, focal_px=exact.focal_px * np.exp(sign * step)), held), exact)
        for sign in (1, -1)
    ]
    expected = ((moved[0] - moved[1]) / 2 * sigma / step) ** 2
    result = covariance(exact, config, is_focal_held=True)
    found = np.einsum("cii->ci", result.held_lens)[:, 3:6]
    assert np.allclose(np.sqrt(found.sum(axis=1)), np.sqrt(expected.sum(axis=1)), rtol=0.02, atol=1e-4)
    assert np.allclose(result.camera, covariance(exact, held).camera)


def test_wrong_shapes_are_named() -> None:
    bundle, _ = _scene()
    with pytest.raises(ValueError, match="one row per observation"):
        adjust(replace(bundle, cam_idx=bundle.cam_idx[:-1]), BundleConfig())
    with pytest.raises(ValueError, match="known are"):
        BundleConfig(loss="l3")


def test_an_unsure_principal_point_widens_the_error_bars() -> None:
    """Its prior at work: held it adds nothing, loose it turns the path, and a moved one is found."""
    truth, _ = _scene(noise_px=0.3)
    spread = [
        np.trace(covariance(truth, BundleConfig(centre_sigma_px=sigma)).camera.sum(axis=0))
        for sigma in (0, 1e-3, 8)
    ]
    assert spread[0] == pytest.approx(spread[1], rel=1e-3)
    assert spread[2] > 1.05 * spread[0]
    exact, _ = _scene()
    moved = replace(exact, centre_px=exact.centre_px + np.array([9.0, -6.0]))
    config = BundleConfig(centre_sigma_px=1e3, loss="none", max_iterations=100, relative_tolerance=1e-14)
    assert np.abs(adjust(moved, config).centre_px - exact.centre_px).max() < 0.1
