"""Camera control: cameras of a clip in, per-token ray transforms (coarse) and raw-frame Pluecker rays
(fine) out.

Coarse, at the latent rate, one of
- `ucpe` (arXiv 2512.07237): each token gets the rigid frame of its own ray, D = ray_from_world. Queries are
  mapped by D^T, keys and values by D^-1, outputs by D, so that a score depends on D_i D_j^-1 alone.
- `prope` (arXiv 2507.10496): the same with one projection matrix lift(K) cam_from_world for all tokens of a
  frame.
- `none`.
Half of a head's channels are homogeneous 4-vectors under the matrix, the other half carries rotary positions.

Fine: for each raw frame of a latent frame's stride the Pluecker ray (d, o x d) through each latent cell,
    stacked to
6 x stride channels: motion inside the stride, which one pose a latent frame cannot show.

Latent frame i lies at raw frame 8 i and its stride is the frames 8 i - 7 ... 8 i; latent frame 0 has frame
0 alone, which is repeated. Rays go through the centres of the latent cells. The released SANA-WM differs in
both; `CameraGridConfig` holds the switches. Poses are relative to the clip's first frame
(`relative_to_first`), so that no global motion of a scene's cameras changes the result.

Letters: B batch, F raw frames, T latent frames, S tokens a frame, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worldline.annotate.camera import (
    Intrinsics,
    as_matrix,
    compose,
    invert,
    pixel_centres,
    plucker_ray_map,
    unproject,
)
from worldline.model.rope import Grid, apply_rope, rope_table

CAMERA_KINDS = ("ucpe", "prope", "none")


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraGridConfig:
    """How rays are laid over the latent grid."""

    time_stride: int = 8
    """Raw frames a latent frame; 8 is the LTX-2 autoencoder's."""
    cell_centre: float = 0.5
    """Where in a latent cell its ray goes through. 0.5 is the centre. The released SANA-WM uses 0, the
    cell's corner,
    which turns rays by 1.1 degrees on average at 60 degrees field of view and 2.1 at 120: only for its
    weights."""
    first_stride_looks_ahead: bool = False
    """Latent frame 0 takes the raw frames 0 ... 7, as the released SANA-WM does, instead of frame 0 alone.
    A stream that is
    steered live does not know them."""

    def __post_init__(self) -> None:
        if self.time_stride < 1:
            raise ValueError(f"time_stride counts frames, got {self.time_stride}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraTransforms:
    """Per-token matrices that carry the camera into attention, and the rotary table of the other half of a
    head.
    """

    matrix: Tensor
    """[B, T, S, 4, 4], applied to outputs; its transpose to queries."""
    inverse: Tensor
    """[B, T, S, 4, 4], applied to keys and values."""
    rope: Tensor
    """[2, T, S, D / 4]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraConditions:
    """What the model reads of a clip's cameras."""

    transforms: CameraTransforms | None
    """None for the kind "none"."""
    plucker: Tensor | None
    """[B, T, S, 6 time_stride], or None without the fine branch."""

    def frames(self, pick: Callable[[Tensor], Tensor]) -> CameraConditions:
        """Those of some frames: `pick` takes them from any tensor along its dimension 1."""
        moves = self.transforms
        return CameraConditions(
            transforms=None
            if moves is None
            else CameraTransforms(
                matrix=pick(moves.matrix), inverse=pick(moves.inverse), rope=pick(moves.rope)
            ),
            plucker=None if self.plucker is None else pick(self.plucker),
        )


def camera_conditions(
    first_from_cam: Tensor,
    intrinsics: Intrinsics,
    *,
    grid: Grid,
    kind: str,
    head_dim: int,
    with_plucker: bool,
    config: CameraGridConfig,
) -> CameraConditions:
    """Conditions of the latent frames of `grid`.

    Args:
        first_from_cam: [B, F, 3, 4], poses of the raw frames relative to the clip's first, in metres. F is
            time_stride (T - 1) + 1 where the grid starts the clip, time_stride T where it goes on.
        intrinsics: of the raw frames, fxfycxcy_px [4], [B, 1, 4] or [B, F, 4], at any image size.
        grid: latent frames and tokens.
        kind: "ucpe", "prope" or "none".
        head_dim: channels of an attention head.
        with_plucker: whether to make the fine branch's input.
        config: ray layout.
    """
    if kind not in CAMERA_KINDS:
        raise ValueError(f"camera kind {kind!r}: known are {CAMERA_KINDS}")
    stride, starts_clip = config.time_stride, grid.first_frame == 0
    expected = stride * (grid.num_frames - 1) + 1 if starts_clip else stride * grid.num_frames
    if first_from_cam.shape[1] != expected:
        raise ValueError(
            f"{grid.num_frames} latent frames need {expected} poses, got {first_from_cam.shape[1]}"
        )
    first_from_cam = first_from_cam if first_from_cam.dtype == torch.float64 else first_from_cam.float()
    on_grid = _on_grid(intrinsics, grid, config, like=first_from_cam)
    # With frame 0 repeated in front, each latent frame is the last of a full stride.
    front = stride - 1 if starts_clip else 0
    poses = _repeat_first(first_from_cam, front).unflatten(1, (grid.num_frames, stride))  # [B, T, 8, 3, 4]
    lenses = replace(
        on_grid, fxfycxcy_px=_repeat_first(on_grid.fxfycxcy_px, front).unflatten(1, (grid.num_frames, stride))
    )
    at_latents = replace(lenses, fxfycxcy_px=lenses.fxfycxcy_px[:, :, -1])

    transforms = None
    if kind == "ucpe":
        transforms = ucpe_transforms(poses[:, :, -1], at_latents, grid=grid, head_dim=head_dim)
    elif kind == "prope":
        transforms = prope_transforms(poses[:, :, -1], at_latents, grid=grid, head_dim=head_dim)

    plucker = None
    if with_plucker:
        if starts_clip and config.first_stride_looks_ahead:
            ahead = [min(i, expected - 1) for i in range(stride)]
            poses = torch.cat([first_from_cam[:, None, ahead], poses[:, 1:]], dim=1)
            focal = lenses.fxfycxcy_px
            focal = torch.cat([on_grid.fxfycxcy_px[:, None, ahead], focal[:, 1:]], dim=1)
            lenses = replace(lenses, fxfycxcy_px=focal)
        rays = plucker_ray_map(poses, lenses).nan_to_num(0.0)  # [B, T, 8, h, w, 6]
        plucker = rays.permute(0, 1, 3, 4, 2, 5).flatten(4).flatten(2, 3)  # [B, T, S, 48]
    return CameraConditions(transforms=transforms, plucker=plucker)


def relative_to_first(world_from_cam: Tensor) -> Tensor:
    """first_from_cam [B, F, 3, 4] of poses world_from_cam [B, F, 3, 4]."""
    return compose(invert(world_from_cam[:, :1]), world_from_cam)


def ucpe_transforms(
    world_from_cam: Tensor, intrinsics: Intrinsics, *, grid: Grid, head_dim: int
) -> CameraTransforms:
    """Ray frames of cameras [B, T, 3, 4] whose intrinsics are in units of the latent grid.

    A ray's z axis is its direction, x is at right angles to it and to the camera's y axis. Rolling the
    camera therefore rolls the ray frames, which the world's y axis would not. A ray the lens does not have
    gets the identity.
    """
    batch, num_frames = world_from_cam.shape[:2]
    pixels = pixel_centres(
        torch, grid.width, grid.height, dtype=world_from_cam.dtype, device=world_from_cam.device
    )
    pixels = pixels.reshape(-1, 2).expand(batch, num_frames, -1, 2)
    z = unproject(pixels, intrinsics) @ world_from_cam[..., :3].mT  # [B, T, S, 3]
    camera_y = world_from_cam[..., None, :, 1].expand_as(z)
    x = torch.nn.functional.normalize(torch.linalg.cross(camera_y, z), dim=-1)
    y = torch.linalg.cross(z, x)
    origin = world_from_cam[..., None, :, 3].expand_as(z)
    world_from_ray = torch.stack([x, y, z, origin], dim=-1)  # [B, T, S, 3, 4]
    missing = z.isnan().any(dim=-1)[..., None, None]
    world_from_ray = torch.where(missing, torch.eye(3, 4).to(world_from_ray), world_from_ray)
    return CameraTransforms(
        matrix=as_matrix(invert(world_from_ray)),
        inverse=as_matrix(world_from_ray),
        rope=rope_table(grid, head_dim, rotated_dim=head_dim // 2, device=z.device),
    )


def prope_transforms(
    world_from_cam: Tensor, intrinsics: Intrinsics, *, grid: Grid, head_dim: int
) -> CameraTransforms:
    """Projection matrices lift(K) cam_from_world of cameras [B, T, 3, 4], K normalised by the grid's size.

    The other half of a head is rotated by column and row, with base 100, a quarter of the head each.
    """
    scale = intrinsics.fxfycxcy_px.new_tensor([1 / grid.width, 1 / grid.height] * 2)
    shift = intrinsics.fxfycxcy_px.new_tensor([0.0, 0.0, 0.5, 0.5])
    normalised = replace(intrinsics, fxfycxcy_px=intrinsics.fxfycxcy_px * scale - shift)
    lift = torch.zeros(*world_from_cam.shape[:2], 4, 4).to(world_from_cam)
    lift[..., :3, :3] = normalised.matrix()
    lift[..., 3, 3] = 1
    matrix = lift @ as_matrix(invert(world_from_cam))
    inverse = as_matrix(world_from_cam) @ torch.linalg.inv(lift)
    shape = (*matrix.shape[:2], grid.num_tokens, 4, 4)
    return CameraTransforms(
        matrix=matrix[:, :, None].expand(shape),
        inverse=inverse[:, :, None].expand(shape),
        rope=_row_column_rope(grid, head_dim // 2, device=matrix.device),
    )


def transform_channels(x: Tensor, matrix: Tensor, rope: Tensor, *, inverse_rope: bool = False) -> Tensor:
    """Block-diagonal map of x [B, T, S, H, D]: matrix on the first half of D in groups of 4, rotation on
    the other.
    """
    working = x.dtype if x.dtype == torch.float64 else torch.float32
    homogeneous, rotated = x.to(working).chunk(2, dim=-1)
    groups = homogeneous.unflatten(-1, (-1, 4))  # [B, T, S, H, D / 8, 4]
    mapped = torch.einsum("btsij,btshgj->btshgi", matrix.to(working), groups).flatten(-2)
    return torch.cat([mapped, apply_rope(rotated, rope, inverse=inverse_rope)], dim=-1)


def _on_grid(intrinsics: Intrinsics, grid: Grid, config: CameraGridConfig, *, like: Tensor) -> Intrinsics:
    """Intrinsics [B, F, 4] in units of latent cells, shifted so that a cell's centre stands for
    `cell_centre`.
    """
    focal = torch.as_tensor(intrinsics.fxfycxcy_px).to(like)
    focal = focal.expand(*like.shape[:2], 4) if focal.ndim != 2 else focal[:, None].expand(*like.shape[:2], 4)
    resized = replace(intrinsics, fxfycxcy_px=focal).resized(grid.width, grid.height)
    shift = focal.new_tensor([0.0, 0.0, 0.5 - config.cell_centre, 0.5 - config.cell_centre])
    return replace(resized, fxfycxcy_px=resized.fxfycxcy_px + shift)


def _repeat_first(x: Tensor, count: int) -> Tensor:
    return torch.cat([x[:, :1].expand(-1, count, *x.shape[2:]), x], dim=1)


def _row_column_rope(grid: Grid, rotated_dim: int, *, device: torch.device) -> Tensor:
    """Cosines and sines [2, T, S, rotated_dim / 2]: columns on the first half of the pairs, rows on the
    second.
    """
    num_pairs = rotated_dim // 4
    frequencies = 100.0 ** (-torch.arange(num_pairs, dtype=torch.float64, device=device) / num_pairs)
    rows = torch.arange(grid.height, dtype=torch.float64, device=device)[:, None].expand(-1, grid.width)
    columns = torch.arange(grid.width, dtype=torch.float64, device=device).expand(grid.height, -1)
    angles = torch.cat([p.reshape(-1, 1) * frequencies for p in (columns, rows)], dim=-1)
    table = torch.stack([angles.cos(), angles.sin()])  # [2, S, R / 2]
    return table[:, None].expand(-1, grid.num_frames, -1, -1)
