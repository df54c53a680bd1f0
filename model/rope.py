"""Rotary position embedding over (frame, row, column): a table of angles for a grid of tokens, applied to
channel pairs.

Pairs are interleaved channels (2 i, 2 i + 1). Head channels are split t, h, w with h = w = 2 (D // 6) and t
the rest. Angles are made in float64 from absolute frame indices, so a stream has no longest length and
loses no precision late.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """The token grid of one call."""

    num_frames: int
    height: int
    width: int
    first_frame: int = 0
    """Index in the clip of the call's first frame: not 0 for a later chunk of a stream or a later rank."""

    @property
    def num_tokens(self) -> int:
        """Tokens a frame."""
        return self.height * self.width


def split_channels(dim: int) -> tuple[int, int, int]:
    """Channels for (t, h, w) of `dim` rotated channels."""
    side = 2 * (dim // 6)
    return dim - 2 * side, side, side


def rope_table(
    grid: Grid,
    head_dim: int,
    *,
    rotated_dim: int | None = None,
    theta: float = 1e4,
    device: torch.device | str | None = None,
) -> Tensor:
    """Cosines and sines [2, T, S, R / 2] in float64 of `rotated_dim` R channels (head_dim if None).

    With R < head_dim each axis keeps the first, fastest, frequencies of the head_dim split.
    """
    kept = split_channels(head_dim if rotated_dim is None else rotated_dim)
    sizes = (grid.num_frames, grid.height, grid.width)
    starts = (grid.first_frame, 0, 0)
    ranges = [
        torch.arange(start, start + size, dtype=torch.float64, device=device)
        for start, size in zip(starts, sizes, strict=True)
    ]
    positions = torch.meshgrid(*ranges, indexing="ij")
    angles = []
    for position, full, num_kept in zip(positions, split_channels(head_dim), kept, strict=True):
        exponents = torch.arange(0, num_kept, 2, dtype=torch.float64, device=device) / full
        angles.append(position.reshape(grid.num_frames, -1, 1) * theta**-exponents)
    table = torch.cat(angles, dim=-1)
    return torch.stack([table.cos(), table.sin()])


def apply_rope(x: Tensor, table: Tensor, *, inverse: bool = False) -> Tensor:
    """Rotates x [B, T, S, H, R] by table [2, T, S, R / 2], at least in float32; returns x's dtype."""
    working = x.dtype if x.dtype == torch.float64 else torch.float32
    cos, sin = table.to(working)[:, :, :, None]  # [T, S, 1, R / 2]
    if inverse:
        sin = -sin
    even, odd = x.to(working).unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    return rotated.to(x.dtype)
