"""Temporal convolutions over latent frames: depthwise (keys) and full (feed-forward), in whole, chunk and
stream forms.

A chunk's frames see earlier frames, and later ones of their own chunk only: the taps that reach over the
chunk's end read zero. That one rule gives the bidirectional form (one chunk), the chunk-causal form, and,
with the frames before the call handed over as `tail`, the streaming form; with `group` the neighbouring
ranks' frames take the tail's place.

Letters: B batch, T latent frames, S tokens a frame, C channels, K taps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from worldline.model import fla_kernels
from worldline.model.context_parallel import halo


def short_conv(
    x: Tensor,
    weight: Tensor,
    *,
    chunks: Sequence[int] | None,
    tail: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Depthwise convolution, mirrored into the chunk's future: y_t = w_K x_t + sum_d w_{K-d} (x_{t-d} +
    x_{t+d}).

    Args:
        x: [B, T, S, C].
        weight: [C, K], the tap of the frame itself last.
        chunks: chunk index of each frame (of all ranks with `group`); None is causal.
        tail: the K - 1 frames before x, None where x starts the clip.
        group: ranks that share the clip in time order.

    Returns:
        y [B, T, S, C], and the tail for the next call [B, K - 1, S, C].
    """
    num_frames, reach = x.shape[1], weight.shape[1] - 1
    num_later = 0 if chunks is None else reach
    padded, tail = _padded(x, num_before=reach, num_after=num_later, tail=tail, group=group)
    in_chunk = None
    if chunks is not None:
        in_chunk = [_in_chunk(chunks, distance, num_frames, group) for distance in range(1, reach + 1)]
    weighted = fla_kernels.mirrored_conv if fla_kernels.are_used(x) else mirrored_sum
    return weighted(padded, weight, in_chunk), tail


def mirrored_sum(padded: Tensor, weight: Tensor, in_chunk: Sequence[Sequence[bool]] | None) -> Tensor:
    """The convolution of `short_conv` by shifted copies.

    padded: [B, K - 1 + T, S, C] the frames and those before, and the K - 1 after where in_chunk is given.
    in_chunk: [K - 1, T] whether the frame d later belongs to the same chunk, d = 1, 2, ...; None is causal.
    Returns [B, T, S, C].
    """
    reach = weight.shape[1] - 1
    num_frames = padded.shape[1] - reach * (1 if in_chunk is None else 2)
    y = weight[:, -1] * padded[:, reach:][:, :num_frames]
    for distance in range(1, reach + 1):
        tap = weight[:, -1 - distance]
        y = y + tap * padded[:, reach - distance :][:, :num_frames]
        if in_chunk is not None:
            later = padded[:, reach + distance :][:, :num_frames]
            y = y + tap * _masked(later, in_chunk[distance - 1])
    return y


def temporal_conv(
    x: Tensor,
    weight: Tensor,
    *,
    chunks: Sequence[int] | None,
    tail: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolution over time with a full matrix per tap, centred: y_t = W_0 x_{t-1} + W_1 x_t + W_2 x_{t+1}.

    Arguments as in `short_conv`, weight [C_out, C_in, 3] and the tail one frame long.
    """
    num_frames = x.shape[1]
    padded, tail = _padded(x, num_before=1, num_after=0 if chunks is None else 1, tail=tail, group=group)
    y = F.linear(x, weight[..., 1]) + F.linear(padded[:, :num_frames], weight[..., 0])
    if chunks is not None:
        later = _masked(padded[:, 2:], _in_chunk(chunks, 1, num_frames, group))
        y = y + F.linear(later, weight[..., 2])
    return y, tail


def _padded(
    x: Tensor, *, num_before: int, num_after: int, tail: Tensor | None, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """x with its neighbouring frames on both sides, zero outside the clip; and the last `num_before`
    frames.
    """
    before, after = halo(x, group, before=num_before, after=num_after)
    before = before if tail is None else tail.to(x.dtype)
    known = torch.cat([before, x], dim=1)
    return torch.cat([known, after], dim=1), known[:, known.shape[1] - num_before :]


def _in_chunk(
    chunks: Sequence[int], distance: int, num_frames: int, group: dist.ProcessGroup | None
) -> list[bool]:
    """Whether the frame `distance` later belongs to the same chunk, for each of this rank's frames."""
    rank, num_ranks = (0, 1) if group is None else (group.rank(), group.size())
    if len(chunks) != num_frames * num_ranks:
        raise ValueError(f"chunks has {len(chunks)} entries for {num_frames * num_ranks} frames")
    same = [t + distance < len(chunks) and chunks[t] == chunks[t + distance] for t in range(len(chunks))]
    return same[rank * num_frames : (rank + 1) * num_frames]


def _masked(x: Tensor, keep: Sequence[bool]) -> Tensor:
    return x if all(keep) else x * x.new_tensor(keep)[:, None, None]
