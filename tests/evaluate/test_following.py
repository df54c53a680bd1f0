"""Following figures against closed forms, invariants and a peer's SSIM."""

import dataclasses

import numpy as np
import pytest

from worldline.annotate.camera import Sim3, rotation_from_rotvec
from worldline.evaluate.following import (
    bootstrap,
    paired_table,
    pixel_following,
    pose_following,
    psnr_db,
    ssim,
    static_camera,
)
from worldline.evaluate.perceptual import NAME as PERCEPTUAL
from worldline.train.actions import ActionConfig, poses_of_actions

RNG = np.random.default_rng(0)


def moving_videos(shift, count=6):
    """A texture that slides by `shift` pixels a frame."""
    texture = np.random.default_rng(3).integers(0, 256, (count, 24, 64, 3), dtype=np.uint8)
    return np.stack([np.roll(texture, shift * i, axis=2) for i in range(5)], axis=1)


def test_psnr_of_a_constant_error():
    truth = np.full((2, 3, 8, 8, 3), 100, np.uint8)
    np.testing.assert_allclose(psnr_db(truth + 10, truth), 20 * np.log10(25.5))
    assert np.isinf(psnr_db(truth, truth)).all()


def test_ssim_agrees_with_kornia():
    kornia = pytest.importorskip("kornia")
    torch = pytest.importorskip("torch")
    truth = RNG.integers(0, 256, (1, 2, 33, 41, 3), dtype=np.uint8)
    other = np.clip(truth.astype(int) + RNG.integers(-40, 40, truth.shape), 0, 255).astype(np.uint8)
    as_tensor = [torch.from_numpy(v[0]).permute(0, 3, 1, 2).double() for v in (other, truth)]
    peer = kornia.metrics.ssim(*as_tensor, window_size=11, max_val=255.0).mean()
    assert ssim(other, truth)[0] == pytest.approx(float(peer), abs=2e-3)  # its border differs
    assert ssim(truth, truth)[0] == pytest.approx(1)


def test_a_model_that_follows_wins_and_one_that_ignores_the_camera_does_not():
    truth = moving_videos(2)
    noise = RNG.normal(0, 3, truth.shape)
    generated = np.clip(truth + noise, 0, 255).astype(np.uint8)
    follows = pixel_following(generated, moving_videos(-2), truth)
    assert follows.beats_other.mean == 1
    assert follows.beats_still.mean == 1
    assert follows.gap_db.low > 5
    ignores = pixel_following(generated, generated, truth)
    assert ignores.gap_db.mean == 0
    assert ignores.beats_other.mean == 0
    with pytest.raises(ValueError, match="do not pair"):
        pixel_following(generated, generated[:, :-1], truth)


def test_the_paired_table_knows_a_follower_from_a_model_that_ignores_the_camera():
    truth = np.concatenate([moving_videos(2, 1), moving_videos(-2, 1)])  # their first frames are equal
    paths = np.tile(np.eye(3, 4), (2, truth.shape[1], 1, 1))
    paths[0, :, 0, 3] = np.arange(truth.shape[1])
    paths[1, :, 0, 3] = -np.arange(truth.shape[1])

    def follower(asked, seed):
        """The truth of the path that is asked for, grey where it is neither."""
        grey = np.full(truth.shape[1:], 100 + seed, np.uint8)
        known = [next((truth[k] for k in (0, 1) if np.array_equal(path, paths[k])), grey) for path in asked]
        return np.stack(known) ^ 1

    def ignorer(asked, seed):
        return np.repeat(truth[:1], 2, axis=0) ^ 1

    found = {row["what"]: row["mean"] for row in paired_table(follower, truth, paths, noise_seeds=2)}
    assert found["share nearer to its own than to the other truth"] == 1
    assert found["share nearer than the still frame"] == 1
    own = found["its video, PSNR against its path's truth, dB"]
    assert own > 40
    assert found["video of the other path's cameras, dB"] < own
    assert found["video of a camera that rests, dB"] < own
    assert found[f"its video, {PERCEPTUAL}"] < 0.2 * found[f"video of the other path's cameras, {PERCEPTUAL}"]
    found = {row["what"]: row["mean"] for row in paired_table(ignorer, truth, paths, noise_seeds=1)}
    assert found["share nearer to its own than to the other truth"] == 0.5


def test_pose_figures_of_a_scaled_and_of_a_static_path():
    commanded = poses_of_actions("wd-30,i-10,l-20", ActionConfig(step_m=0.1))
    exact = pose_following(commanded, commanded)
    assert exact.unaligned.cam_mc == pytest.approx(0, abs=1e-9)
    assert exact.scale_ratio == pytest.approx(1)

    # Another world frame and half the size: the fit forgives both, the unaligned figures only the frame.
    moved = Sim3(
        scale=0.5, rotation=rotation_from_rotvec(np.array([0.3, -0.2, 0.9])), translation=np.arange(3.0)
    ).poses(commanded)
    scaled = pose_following(moved, commanded)
    assert scaled.aligned.cam_mc == pytest.approx(0, abs=1e-6)
    assert scaled.scale_ratio == pytest.approx(0.5)
    assert scaled.unaligned.rotation_deg == pytest.approx(0, abs=1e-5)
    away = np.linalg.norm(commanded[:, :, 3], axis=1).mean()
    assert scaled.unaligned.translation == pytest.approx(0.5 * away)

    static = pose_following(static_camera(len(commanded)), commanded)
    assert static.unaligned.translation == pytest.approx(away)
    assert np.isnan(static.scale_ratio)
    broken = commanded.copy()
    broken[3] = np.nan
    with pytest.raises(ValueError, match="missing"):
        pose_following(broken, commanded)


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    hits = []
    for seed in range(200):
        sample = np.random.default_rng(seed).normal(1.0, 2.0, 40)
        interval = bootstrap(sample, num_draws=400, seed=seed)
        assert interval.mean == pytest.approx(sample.mean())
        hits.append(interval.low <= 1.0 <= interval.high)
    assert 0.88 <= np.mean(hits) <= 0.99  # binomial, 200 draws of 0.95, less for 40 values
    same = bootstrap(np.ones(5))
    assert dataclasses.astuple(same) == (1, 1, 1)
    with pytest.raises(ValueError, match="finite"):
        bootstrap(np.array([]))
