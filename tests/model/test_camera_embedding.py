"""Camera conditions against an independent float64 numpy version, the release's layout, and their
invariants.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from worldline.annotate.camera import Intrinsics, compose, invert, rotation_from_rotvec
from worldline.model.camera_embedding import (
    CameraGridConfig,
    camera_conditions,
    relative_to_first,
    transform_channels,
)
from worldline.model.gated_delta import delta_chunked
from worldline.model.rope import Grid, apply_rope

torch.set_num_threads(1)
GRID = Grid(num_frames=3, height=3, width=5)
HEAD_DIM = 16


def random_poses(num_frames, *, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rotvec = 0.4 * torch.randn(batch, num_frames, 3, dtype=torch.float64, generator=generator)
    centre = torch.randn(batch, num_frames, 3, 1, dtype=torch.float64, generator=generator)
    return torch.cat([rotation_from_rotvec(rotvec), centre], dim=-1)


def lens(batch=1, num_frames=17, seed=0):
    generator = torch.Generator().manual_seed(seed)
    focal = torch.tensor([500.0, 480.0, 310.0, 200.0], dtype=torch.float64)
    jitter = torch.rand(batch, num_frames, 4, dtype=torch.float64, generator=generator)
    return Intrinsics(fxfycxcy_px=focal + 10 * jitter, width=640, height=384)


def conditions(poses, intrinsics, *, kind="ucpe", grid=GRID, relative=True, **config):
    return camera_conditions(
        relative_to_first(poses) if relative else poses,
        intrinsics,
        grid=grid,
        kind=kind,
        head_dim=HEAD_DIM,
        with_plucker=True,
        config=CameraGridConfig(**config),
    )


def numpy_ray_frame(pose, focal, column, row):
    """ray_from_world (4, 4) of one token, written from the definition."""
    fx, fy, cx, cy = focal * np.array([5 / 640, 3 / 384] * 2)
    ray = np.array([(column - cx) / fx, (row - cy) / fy, 1.0])
    rotation, centre = pose[:, :3], pose[:, 3]
    z = rotation @ ray
    z /= np.linalg.norm(z)
    x = np.cross(rotation[:, 1], z)
    x /= np.linalg.norm(x)
    y = np.cross(z, x)
    out = np.eye(4)
    out[:3, :3] = np.stack([x, y, z])
    out[:3, 3] = -out[:3, :3] @ centre
    return out


@pytest.mark.parametrize("cell_centre", [0.5, 0.0])
def test_ucpe_and_plucker_equal_numpy(cell_centre):
    poses, intrinsics = random_poses(17), lens()
    got = conditions(poses, intrinsics, cell_centre=cell_centre)
    relative, focal = relative_to_first(poses)[0].numpy(), intrinsics.fxfycxcy_px[0].numpy()
    for t in range(3):
        for row in range(3):
            for column in range(5):
                token = 5 * row + column
                at = (column + cell_centre, row + cell_centre)
                expected = numpy_ray_frame(relative[8 * t], focal[8 * t], *at)
                np.testing.assert_allclose(got.transforms.matrix[0, t, token], expected, atol=1e-13)
                product = got.transforms.inverse[0, t, token].numpy() @ expected
                np.testing.assert_allclose(product, np.eye(4), atol=1e-13)
                for k in range(8):
                    frame = max(0, 8 * t - 7 + k)
                    ray_frame = numpy_ray_frame(relative[frame], focal[frame], *at)
                    direction = ray_frame[2, :3]
                    moment = np.cross(relative[frame][:, 3], direction)
                    ours = got.plucker[0, t, token, 6 * k : 6 * k + 6].numpy()
                    np.testing.assert_allclose(ours, [*direction, *moment], atol=1e-13)


def test_release_layout_equals_diffusers():
    """Corner grid and look-ahead: the tensors its pipeline prepares, from its own function."""
    cam_utils = pytest.importorskip("diffusers.pipelines.sana_wm.cam_utils")
    poses, intrinsics = random_poses(17), lens()
    four_by_four = torch.cat([poses[0], torch.tensor([[[0.0, 0, 0, 1]]]).expand(17, 1, 4)], dim=1)
    theirs = cam_utils.prepare_camera(
        four_by_four.numpy(),
        intrinsics.fxfycxcy_px[0].numpy(),
        target_size=(384, 640),
        vae_stride=(8, 128, 128),
    )
    ours = conditions(poses, intrinsics, cell_centre=0.0, first_stride_looks_ahead=True)
    packed = theirs["chunk_plucker"].permute(1, 2, 3, 0).flatten(1, 2)
    torch.testing.assert_close(ours.plucker[0].float(), packed, rtol=0, atol=2e-5)


def test_half_cell_shift():
    """The cell whose corner is the principal point of a 22 x 40 grid: its rays differ by atan(sqrt(1/2) /
    focal).
    """
    grid = Grid(num_frames=1, height=22, width=40)
    poses = torch.eye(3, 4, dtype=torch.float64)[None, None]
    intrinsics = Intrinsics(
        fxfycxcy_px=torch.tensor([640.0, 640, 640, 352], dtype=torch.float64), width=1280, height=704
    )
    rays = [
        conditions(poses, intrinsics, grid=grid, cell_centre=c).plucker[0, 0, 11 * 40 + 20, :3]
        for c in (0.5, 0.0)
    ]
    assert torch.equal(rays[1], torch.tensor([0.0, 0, 1], dtype=torch.float64))
    assert float(torch.dot(*rays).acos()) == pytest.approx(math.atan(math.sqrt(0.5) / 20), rel=1e-9)


def attention(q, k, v, transforms):
    """Softmax attention in ray space, O = D Attn(D^T Q, D^-1 K, D^-1 V)."""
    q = transform_channels(q, transforms.matrix.mT, transforms.rope)
    k, v = (transform_channels(x, transforms.inverse, transforms.rope) for x in (k, v))
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(1, (3, 15))
    return transform_channels(out, transforms.matrix, transforms.rope, inverse_rope=True)


@pytest.mark.parametrize("kind", ["ucpe", "prope"])
def test_a_rigid_motion_of_all_cameras_changes_nothing(kind):
    poses, intrinsics = random_poses(17), lens()
    moved = compose(random_poses(1, seed=3), poses)
    generator = torch.Generator().manual_seed(1)
    q, k, v = torch.randn(3, 1, 3, 15, 2, HEAD_DIM, dtype=torch.float64, generator=generator)
    # Attention in ray space is invariant by construction, with no first-frame anchor.
    outputs = [
        attention(q, k, v, conditions(p, intrinsics, kind=kind, relative=False).transforms)
        for p in (poses, moved)
    ]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    # With the anchor the conditions themselves are.
    first, second = (conditions(p, intrinsics, kind=kind) for p in (poses, moved))
    torch.testing.assert_close(first.transforms.matrix, second.transforms.matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(first.plucker, second.plucker, rtol=0, atol=1e-12)


def test_rolling_every_camera_rolls_the_ray_frames_and_keeps_ucpe_scores():
    """A camera rolled about its axis with its image rolled back sees the same rays: on the axis, the same
    score.
    """
    poses, intrinsics = random_poses(1), lens(num_frames=1)
    roll = torch.cat(
        [
            rotation_from_rotvec(torch.tensor([[[0.0, 0.0, 0.7]]], dtype=torch.float64)),
            torch.zeros(1, 1, 3, 1, dtype=torch.float64),
        ],
        dim=-1,
    )
    grid = Grid(num_frames=1, height=1, width=1)
    centred = Intrinsics(
        fxfycxcy_px=torch.tensor([50.0, 50, 0.5, 0.5], dtype=torch.float64), width=1, height=1
    )
    plain, rolled = (
        conditions(p, centred, grid=grid, relative=False).transforms.matrix[0, 0, 0]
        for p in (poses, compose(poses, roll))
    )
    # On the optical axis the ray frame is the camera's: rolled_ray_from_ray is the roll itself.
    torch.testing.assert_close(
        (rolled @ torch.linalg.inv(plain))[:3, :3], roll[0, 0, :, :3].mT, rtol=0, atol=1e-12
    )
    assert intrinsics.width == 640


def test_scaling_the_world_scales_moments_and_translations_only():
    poses, intrinsics = random_poses(17), lens()
    scaled = torch.cat([poses[..., :3], 3 * poses[..., 3:]], dim=-1)
    first, second = conditions(poses, intrinsics), conditions(scaled, intrinsics)
    factors = torch.tensor([1.0, 1, 1, 3, 3, 3] * 8, dtype=torch.float64)
    torch.testing.assert_close(second.plucker, factors * first.plucker, rtol=0, atol=1e-12)
    expected = first.transforms.matrix.clone()
    expected[..., :3, 3] *= 3
    torch.testing.assert_close(second.transforms.matrix, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["ucpe", "prope"])
def test_transforms_are_block_diagonal_and_undo_each_other(kind):
    transforms = conditions(random_poses(17), lens(), kind=kind).transforms
    x = torch.randn(1, 3, 15, 2, HEAD_DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    there = transform_channels(x, transforms.inverse, transforms.rope)
    back = transform_channels(there, transforms.matrix, transforms.rope, inverse_rope=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
    one_token = there[0, 1, 7, 1]
    blocks = torch.block_diag(*[transforms.inverse[0, 1, 7]] * (HEAD_DIM // 8))
    torch.testing.assert_close(one_token[: HEAD_DIM // 2], blocks @ x[0, 1, 7, 1, : HEAD_DIM // 2])
    torch.testing.assert_close(
        one_token[HEAD_DIM // 2 :], apply_rope(x[..., HEAD_DIM // 2 :], transforms.rope)[0, 1, 7, 1]
    )


def test_prope_matrix_equals_numpy():
    poses, intrinsics = random_poses(17), lens()
    matrix = conditions(poses, intrinsics, kind="prope").transforms.matrix[0, 2, 4].numpy()
    fx, fy, cx, cy = intrinsics.fxfycxcy_px[0, 16].numpy() / np.array([640, 384, 640, 384])
    projection = np.eye(4)
    projection[:3, :3] = [[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]]
    cam_from_first = np.eye(4)
    cam_from_first[:3] = invert(relative_to_first(poses))[0, 16].numpy()
    np.testing.assert_allclose(matrix, projection @ cam_from_first, atol=1e-12)


@pytest.mark.parametrize("kind", ["ucpe", "prope", "none"])
def test_a_later_chunk_equals_a_slice_of_the_whole(kind):
    poses, intrinsics = relative_to_first(random_poses(17)), lens()
    whole = conditions(poses, intrinsics, kind=kind, relative=False)
    later = conditions(
        poses[:, 1:],
        Intrinsics(fxfycxcy_px=intrinsics.fxfycxcy_px[:, 1:], width=640, height=384),
        kind=kind,
        relative=False,
        grid=Grid(num_frames=2, height=3, width=5, first_frame=1),
    )
    assert torch.equal(later.plucker, whole.plucker[:, 1:])
    if kind != "none":
        assert torch.equal(later.transforms.matrix, whole.transforms.matrix[:, 1:])
        torch.testing.assert_close(later.transforms.rope, whole.transforms.rope[:, 1:], rtol=0, atol=1e-12)


def test_rays_beyond_a_fisheye_lens_are_neutral():
    poses = random_poses(17)
    fisheye = Intrinsics(
        fxfycxcy_px=torch.tensor([100.0, 100, 320, 192], dtype=torch.float64),
        width=640,
        height=384,
        model="fisheye",
        distortion=(-0.2, 0.0),
    )
    got = conditions(poses, fisheye)
    assert torch.isfinite(got.plucker).all()
    assert torch.isfinite(got.transforms.matrix).all()
    assert torch.equal(got.transforms.matrix[0, 1, 0], torch.eye(4, dtype=torch.float64))
    assert (got.plucker[0, 1, 0] == 0).all()


def test_bad_arguments():
    with pytest.raises(ValueError, match="3 latent frames need 17 poses, got 16"):
        conditions(random_poses(16), lens(num_frames=16))
    with pytest.raises(ValueError, match="camera kind"):
        conditions(random_poses(17), lens(), kind="pose")


def test_gated_delta_in_ray_space_is_invariant_to_rotations_only():
    """Its transition keeps its form under an orthogonal change of basis; hence the anchor at the first
    frame.
    """
    poses, intrinsics = random_poses(17), lens()
    moved = random_poses(1, seed=3)
    rotated = torch.cat([moved[..., :3], torch.zeros_like(moved[..., 3:])], dim=-1)
    generator = torch.Generator().manual_seed(1)
    q, k, v = torch.randn(3, 1, 3, 15, 2, HEAD_DIM, dtype=torch.float64, generator=generator)
    beta, gamma = torch.rand(1, 3, 15, 2, dtype=torch.float64), torch.rand(1, 3, 2, dtype=torch.float64)

    def run(world_from_cam):
        rays = conditions(world_from_cam, intrinsics, relative=False).transforms
        keys, values = (transform_channels(x, rays.inverse, rays.rope) for x in (k / 15, v))
        queries = transform_channels(q, rays.matrix.mT, rays.rope)
        out, _ = delta_chunked(queries, keys, values, beta=beta, gamma=gamma, chunks=[0] * 3)
        return transform_channels(out, rays.matrix, rays.rope, inverse_rope=True)

    torch.testing.assert_close(run(compose(rotated, poses)), run(poses), rtol=0, atol=1e-12)
    assert float((run(compose(moved, poses)) - run(poses)).norm() / run(poses).norm()) > 1e-3
