"""Camera inputs of training: the model's own rays, straight from a loader's clip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from worldline.annotate.camera import Intrinsics, compose, invert, plucker_ray_map
from worldline.datasets.transforms import ClipView
from worldline.model.camera_embedding import relative_to_first
from worldline.train.camera_inputs import camera_inputs


def _clips(num_frames: int = 17, size: tuple[int, int] = (96, 64)) -> tuple[ClipView, torch.Tensor]:
    rng = np.random.default_rng(0)
    world_from_cam = np.concatenate(
        [
            Rotation.from_rotvec(0.1 * rng.normal(size=(2 * num_frames, 3))).as_matrix(),
            rng.normal(size=(2 * num_frames, 3, 1)),
        ],
        axis=-1,
    ).reshape(2, num_frames, 3, 4)
    poses = torch.from_numpy(world_from_cam)
    width, height = size
    lens = torch.tensor([80.0, 90, width / 2, height / 2]).expand(2, num_frames, 4).clone()
    clips = ClipView(
        clip_id=["a", "b"],
        frames=None,
        latent=None,
        first_from_cam=compose(invert(poses[:, :1]), poses),
        fxfycxcy_px=lens.double(),
        size_px=size,
        weight=torch.ones(2, num_frames),
        is_metric=[True, True],
        caption=[None, None],
    )
    return clips, poses


def test_the_view_s_poses_are_the_model_s_relative_poses() -> None:
    clips, poses = _clips()
    torch.testing.assert_close(clips.first_from_cam, relative_to_first(poses))


def test_rays_are_those_through_the_latent_cells() -> None:
    clips, _ = _clips()
    conditions = camera_inputs(clips, cell_px=32, head_dim=32)
    assert conditions.plucker.shape == (2, 3, 6, 48)
    # The last raw frame of latent frame 2 is frame 16; its rays, by the camera module alone, at the cells' size.
    lens = Intrinsics(fxfycxcy_px=clips.fxfycxcy_px[:, 16], width=96, height=64).resized(3, 2)
    expected = plucker_ray_map(clips.first_from_cam[:, 16], lens).reshape(2, 6, 6)
    torch.testing.assert_close(conditions.plucker[:, 2, :, 42:], expected)
    # The ray transform of a token has that ray as its z axis.
    world_from_ray = conditions.transforms.inverse[:, 2]
    torch.testing.assert_close(world_from_ray[:, :, :3, 2], expected[..., :3])
    torch.testing.assert_close(
        world_from_ray[:, :, :3, 3], clips.first_from_cam[:, 16, None, :, 3].expand(2, 6, 3)
    )


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="cells"):
        camera_inputs(_clips(size=(90, 64))[0])
    with pytest.raises(ValueError, match="latent frames"):
        camera_inputs(_clips(num_frames=16)[0])
