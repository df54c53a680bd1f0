"""The training view: the right frames with the right cameras, refusals, weights."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from worldline.annotate.camera import Intrinsics, project, transform
from worldline.datasets.clip_video import EncodeConfig, encode_video
from worldline.datasets.loader import Loader, LoaderConfig
from worldline.datasets.schema import ClipRejected
from worldline.datasets.shard_index import select
from worldline.datasets.transforms import (
    TrainingView,
    ViewConfig,
    collate_views,
    frame_weights,
    training_view,
)

NUM = 40


@pytest.fixture(scope="module")
def sample(media) -> dict:
    """A clip that shows its frame numbers, on a wandering metric path."""
    rng = np.random.default_rng(3)
    poses = np.concatenate(
        [Rotation.random(NUM, rng=rng).as_matrix(), rng.normal(size=(NUM, 3, 1)).cumsum(axis=0)], axis=-1
    )
    row = {
        "clip_id": "c",
        "width": 160,
        "height": 96,
        "num_frames": NUM,
        "world_from_cam": poses.reshape(-1).tolist(),
        "fxfycxcy_px": (np.tile([100.0, 110, 80, 48], (NUM, 1)) + np.arange(NUM)[:, None])
        .reshape(-1)
        .tolist(),
        "is_registered": [True] * NUM,
        "sigma_translation": np.linspace(0, 0.1, NUM).tolist(),
        "sigma_rotation_rad": np.linspace(0, 0.02, NUM).tolist(),
        "scale_status": "metric",
        "scale_sigma": 0.1,
        "camera_model": "pinhole",
    }
    frames = [media.numbered_frame(k) for k in range(NUM)]
    return {"json": row, "mp4": encode_video(frames, EncodeConfig(width=160, height=96)), "__seed__": 5}


def changed(sample: dict, **more) -> dict:
    return sample | {"json": sample["json"] | more}


@pytest.mark.parametrize("stride", [1, 2])
def test_frames_and_cameras_are_of_the_same_window(sample, media, stride) -> None:
    poses = np.array(sample["json"]["world_from_cam"]).reshape(-1, 3, 4)
    starts = set()
    for seed in range(12):
        view = training_view(sample | {"__seed__": seed}, ViewConfig(num_frames=17, stride=stride))
        shown = [media.number_of(image) for image in view.frames.permute(0, 2, 3, 1).numpy()]
        assert np.diff(shown).tolist() == [stride] * 16
        np.testing.assert_allclose(view.fxfycxcy_px[:, 0], 100 + np.array(shown))
        # Oracle: homogeneous matrices inverted by numpy.
        full = np.concatenate([poses[shown], np.tile([[[0.0, 0, 0, 1]]], (17, 1, 1))], axis=1)
        expected = np.linalg.inv(full[0]) @ full
        np.testing.assert_allclose(view.first_from_cam, expected[:, :3], atol=1e-5)
        starts.add(shown[0])
    assert len(starts) > 3
    again = training_view(sample, ViewConfig(num_frames=17))
    torch.testing.assert_close(again.frames, training_view(sample, ViewConfig(num_frames=17)).frames)


def test_windows_avoid_frames_without_a_pose(sample) -> None:
    posed = [k not in (3, 22) for k in range(NUM)]
    starts = set()
    for seed in range(30):
        clip = changed(sample, is_registered=posed) | {"__seed__": seed}
        view = training_view(clip, ViewConfig(num_frames=17))
        starts.add(round(float(view.fxfycxcy_px[0, 0])) - 100)
    assert starts <= {4, 5, 23}
    assert len(starts) == 3
    with pytest.raises(ClipRejected, match="no_posed_window"):
        training_view(changed(sample, is_registered=posed), ViewConfig(num_frames=25))
    with pytest.raises(ClipRejected, match="no_posed_window"):
        training_view(sample, ViewConfig(num_frames=41))


@pytest.mark.parametrize("size", [(80, 48), (64, 64), (320, 96), (160, 96)])
def test_a_point_stays_on_its_pixel_through_resize_and_crop(sample, size) -> None:
    """Scaling and cutting commute with projection: checked against the affine map of pixels themselves."""
    width, height = size
    view = training_view(sample, ViewConfig(num_frames=9, width=width, height=height, random_start=False))
    assert view.frames.shape == (9, 3, height, width)
    points = np.random.default_rng(0).normal(size=(20, 3)) * 0.3 + [0, 0, 3]
    before = project(points, Intrinsics(fxfycxcy_px=np.array([100.0, 110, 80, 48]), width=160, height=96))
    after = project(
        points, Intrinsics(fxfycxcy_px=view.fxfycxcy_px[0].numpy().astype(float), width=width, height=height)
    )
    factor = max(width / 160, height / 96)
    inner = np.array([round(160 * factor), round(96 * factor)])
    cut = (inner - size) // 2
    np.testing.assert_allclose(after, before * inner / [160, 96] - cut, atol=1e-3)


def test_only_metres_unless_asked(sample) -> None:
    for status in ("up_to_scale", None):
        with pytest.raises(ClipRejected, match="up_to_scale"):
            training_view(changed(sample, scale_status=status), ViewConfig(num_frames=9))
    config = ViewConfig(num_frames=9, allow_up_to_scale=True, random_start=False)
    view = training_view(changed(sample, scale_status="up_to_scale"), config)
    poses = np.array(sample["json"]["world_from_cam"])
    # Any unit gives the same result.
    scaled = poses.reshape(-1, 3, 4) * [1, 1, 1, 7.5]
    other = changed(sample, scale_status="up_to_scale", world_from_cam=scaled.reshape(-1).tolist())
    torch.testing.assert_close(training_view(other, config).first_from_cam, view.first_from_cam)
    steps = torch.linalg.norm(torch.diff(view.first_from_cam[:, :, 3], dim=0), dim=1)
    assert float(steps.sum()) == pytest.approx(1, abs=1e-5)
    assert not view.is_metric
    metric = training_view(sample, dataclasses.replace(config, allow_up_to_scale=False))
    assert metric.is_metric
    bent = training_view(changed(sample, camera_model="radial", distortion=[0.1, 0.0]), config)
    assert float(bent.fxfycxcy_px[0, 0]) > float(
        metric.fxfycxcy_px[0, 0]
    )  # Its rim lies outside of what was seen.


def test_weights_by_hand(sample) -> None:
    config = ViewConfig(num_frames=9, sigma_translation_m=0.05, sigma_rotation_rad=0.01, scale_sigma=0.2)
    row = {"sigma_translation": [0.0, 0.05, 0.1], "sigma_rotation_rad": [0.0, 0.0, 0.01], "scale_sigma": 0.2}
    np.testing.assert_allclose(frame_weights(row, np.arange(3), config), [0.5, 0.25, 0.5 * 0.2 * 0.5])
    # Unknown is worth half each, and not one.
    np.testing.assert_allclose(frame_weights({}, np.arange(2), config), [0.125, 0.125])
    # Relative to the window's first frame.
    row = {"sigma_translation": [0.3, 0.3], "sigma_rotation_rad": [0.1, 0.1], "scale_sigma": 0.0}
    np.testing.assert_allclose(frame_weights(row, np.arange(2), config), [1, 1])


def test_latents_are_cut_at_the_beginning(sample) -> None:
    latent = np.random.default_rng(0).normal(size=(4, 5, 3, 5)).astype(np.float16)
    clip = {key: value for key, value in sample.items() if key != "mp4"} | {"latent.npy": latent}
    view = training_view(clip, ViewConfig(num_frames=17))
    assert view.frames is None
    np.testing.assert_array_equal(view.latent, latent[:, :3])
    assert float(view.fxfycxcy_px[0, 0]) == 100
    with pytest.raises(ClipRejected, match="lens_distortion"):
        training_view(changed(clip, camera_model="radial", distortion=[0.1, 0.0]), ViewConfig(num_frames=17))
    with pytest.raises(ClipRejected, match="latent_too_short"):
        training_view(clip | {"latent.npy": latent[:, :2]}, ViewConfig(num_frames=17))
    with pytest.raises(ValueError, match="stride"):
        training_view(clip, ViewConfig(num_frames=17, stride=2))


def test_from_shards_to_a_batch_with_workers(shards_made, media) -> None:
    selection = select(shards_made, "num_frames >= 17")
    batches = []
    for workers in (0, 2):
        config = LoaderConfig(global_batch=3, num_workers=workers)
        loader = Loader(selection, config, collate_views).map(TrainingView(ViewConfig(num_frames=17)))
        batches.append(next(iter(loader)))
    assert batches[0].frames.shape == (3, 17, 3, 96, 160)
    for name in ("frames", "first_from_cam", "fxfycxcy_px", "weight"):
        torch.testing.assert_close(getattr(batches[1], name), getattr(batches[0], name), rtol=0, atol=0)
    # Frame k of a source video stands at x = k.
    images = batches[0].frames.permute(0, 1, 3, 4, 2).numpy()
    for clip, poses in zip(images, batches[0].first_from_cam.numpy(), strict=True):
        shown = np.array([media.number_of(image) for image in clip])
        np.testing.assert_allclose(poses[:, 0, 3], shown - shown[0], atol=1e-4)


def test_views_that_do_not_fit_together(sample) -> None:
    view = training_view(sample, ViewConfig(num_frames=9))
    small = training_view(sample, ViewConfig(num_frames=9, width=80, height=48))
    for wrong in ([], [view, small], [view, dataclasses.replace(view, frames=None)]):
        with pytest.raises(ValueError, match=r"view"):
            collate_views(wrong)


def test_wrong_arguments() -> None:
    for wrong in ({"num_frames": 16}, {"num_frames": 0}, {"stride": 0}, {"width": 10}, {"scale_sigma": 0.0}):
        with pytest.raises(ValueError, match=r"num_frames|stride|width|sigmas"):
            ViewConfig(**wrong)


def test_relative_poses_map_points_as_the_world_does(sample) -> None:
    view = training_view(sample, ViewConfig(num_frames=9, random_start=False))
    poses = np.array(sample["json"]["world_from_cam"]).reshape(-1, 3, 4)[:9]
    points = np.random.default_rng(1).normal(size=(5, 3))
    in_world = functools.partial(transform, points_in_b=points)
    for pose, relative in zip(poses, view.first_from_cam.numpy().astype(float), strict=True):
        np.testing.assert_allclose(
            transform(poses[0], transform(relative, points)), in_world(pose), atol=1e-4
        )
