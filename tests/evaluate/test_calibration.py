"""Coverage on simulated paths whose joint covariance is known in closed form."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import chi

from worldline.annotate.camera import compose
from worldline.evaluate import calibration
from worldline.evaluate.calibration import coverage
from worldline.evaluate.trajectory import align

NUM_FRAMES = 40


def true_path():
    t = np.linspace(0, 4, NUM_FRAMES)
    centre = np.stack([np.sin(t), 0.3 * np.cos(t) - 0.3, 1.5 * t], axis=-1)
    rotation = Rotation.from_rotvec(np.stack([0 * t, 0.4 * t, 0.1 * t], axis=-1)).as_matrix()
    return np.concatenate([rotation, centre[..., None]], axis=-1)


def random_walk(rng, step):
    """Errors [T, 3] of the centres that add up from frame to frame; the first is zero."""
    return np.cumsum(np.vstack([np.zeros((1, 3)), step * rng.normal(size=(NUM_FRAMES - 1, 3))]), axis=0)


def moved(poses, seed):
    """The same path in another world: coverage must not care."""
    rng = np.random.default_rng(seed)
    shift = np.concatenate([Rotation.random(rng=rng).as_matrix(), rng.normal(size=(3, 1))], axis=1)
    return compose(shift, poses)


def sigma_with_scale_held(truth, step):
    """Closed form: the walk's joint covariance with the direction of a scale change projected out, per
    frame."""
    walk = step**2 * np.minimum.outer(np.arange(NUM_FRAMES), np.arange(NUM_FRAMES)).astype(float)
    joint = np.kron(walk, np.eye(3))
    along = truth[:, :, 3].reshape(-1)
    project = np.eye(len(along)) - np.outer(along, along) / (along @ along)
    variance = np.diag(project @ joint @ project.T).reshape(NUM_FRAMES, 3)
    return np.sqrt(variance.mean(axis=1))


def pooled(simulate, num_clips=400):
    found = [simulate(np.random.default_rng(seed), seed) for seed in range(num_clips)]
    counts = np.array([c.num_frames for c in found])
    shares = np.array([(c.share_1_sigma, c.share_2_sigma) for c in found])
    return (counts[:, None] * shares).sum(axis=0) / counts.sum()


def test_lengths_are_those_of_a_gaussian_in_space():
    expected = chi.ppf([0.682689492, 0.954499736], df=3)
    found = [calibration.LENGTH_OF_1_SIGMA, calibration.LENGTH_OF_2_SIGMA]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_true_sigmas_cover_as_they_should_whatever_the_scale_and_world():
    truth, step = true_path(), 0.01
    sigma = sigma_with_scale_held(truth, step)

    def simulate(rng, seed):
        scale = np.exp(0.3 * rng.normal())
        estimate = truth.copy()
        estimate[:, :, 3] = scale * (truth[:, :, 3] + random_walk(rng, step))
        return coverage(moved(estimate, seed), moved(truth, seed + 1), scale * sigma)

    one, two = pooled(simulate)
    assert one == pytest.approx(0.683, abs=0.035)
    assert two == pytest.approx(0.954, abs=0.02)


def test_wrong_sigmas_show():
    truth, step = true_path(), 0.01
    sigma = sigma_with_scale_held(truth, step)

    def simulate(factor):
        def one_clip(rng, seed):
            estimate = truth.copy()
            estimate[:, :, 3] += random_walk(rng, step)
            return coverage(estimate, truth, factor * sigma)

        return pooled(one_clip)

    assert simulate(0.5)[0] < 0.3
    assert simulate(2.0)[0] > 0.93


def test_alignment_over_all_frames_would_flatter():
    """Why the first frame is the gauge: after Umeyama even sigmas of half the truth look fine."""
    truth, step = true_path(), 0.01
    sigma = 0.5 * sigma_with_scale_held(truth, step)
    inside = []
    for seed in range(200):
        estimate = truth.copy()
        estimate[:, :, 3] += random_walk(np.random.default_rng(seed), step)
        aligned = align(estimate, truth, "sim3")[0].poses(estimate)
        error = np.linalg.norm(aligned[:, :, 3] - truth[:, :, 3], axis=-1)
        inside.append(error[1:] < calibration.LENGTH_OF_1_SIGMA * sigma[1:])
    assert np.mean(inside) > 0.55


def test_constant_turn_of_the_camera_frame_counts_only_where_the_rotation_is_held():
    """A principal point off by ten pixels turns every camera alike: no frame moved wrongly."""
    truth, step = true_path(), 0.002
    sigma = sigma_with_scale_held(truth, step)
    turn = np.concatenate([Rotation.from_euler("y", 1, degrees=True).as_matrix(), np.zeros((3, 1))], axis=1)

    def simulate(fit_rotation):
        def one_clip(rng, seed):
            estimate = truth.copy()
            estimate[:, :, 3] += random_walk(rng, step)
            return coverage(compose(estimate, turn), truth, sigma, fit_rotation=fit_rotation)

        return pooled(one_clip, 200)

    assert simulate(False)[0] < 0.2
    assert 0.7 < simulate(True)[0] < 0.95  # An upper bound: the fit takes away error that the sigmas contain.


def test_first_cameras_rotation_error_counts_with_its_lever():
    """The gauge camera's own rotation error moves every later centre: sigma = angle sigma times distance, in
    a plane."""
    truth = np.tile(np.eye(3, 4), (NUM_FRAMES, 1, 1))
    truth[:, 2, 3] = np.arange(NUM_FRAMES)
    angle_sigma = 0.01
    sigma = angle_sigma * truth[:, 2, 3] * np.sqrt(2 / 3)  # Two of three axes; rms per axis.

    def simulate(rng, seed):
        turn = Rotation.from_rotvec(angle_sigma * rng.normal(size=3)).as_matrix()
        estimate = truth.copy()
        estimate[0, :, :3] = turn
        return coverage(moved(estimate, seed), truth, sigma)

    one, two = pooled(simulate, 2000)
    assert one == pytest.approx(0.691, abs=0.03)  # 1 - exp(-q^2 / 3) of a Gaussian in a plane.
    assert two == pytest.approx(0.931, abs=0.02)


def test_stated_scale_sigma_joins_in():
    truth = true_path()
    truth[:, :, 3] = 0
    truth[:, 0, 3] = np.arange(NUM_FRAMES)

    def simulate(rng, seed):
        estimate = truth.copy()
        estimate[:, :, 3] *= 1 + 0.05 * rng.normal()
        return coverage(estimate, truth, np.full(NUM_FRAMES, 1e-6), scale_sigma=0.05)

    one, two = pooled(simulate, 2000)
    assert one == pytest.approx(0.722, abs=0.03)  # A line: P(|z| < 1.878 / sqrt 3).
    assert two == pytest.approx(0.898, abs=0.02)


def test_what_does_not_count_and_what_is_refused():
    truth = true_path()
    sigma = np.full(NUM_FRAMES, np.nan)
    assert np.isnan(coverage(truth, truth, sigma).share_1_sigma)
    sigma[5:9] = 0.1
    sigma[0] = 0.0
    found = coverage(truth, truth, sigma)
    assert (found.num_frames, found.share_1_sigma, found.scale_ratio) == (4, 1.0, pytest.approx(1.0))
    with pytest.raises(ValueError, match="coverage: 40 poses"):
        coverage(truth, truth[1:], sigma)
