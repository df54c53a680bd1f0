"""Softmax attention over a clip's tokens: full inside a chunk, causal across chunks, with a sink and a
local window.

A query of a chunk that spans frames [a, b) reads the frames [0, sink) and [a - window, b). The whole-clip
form walks the chunks, so no N x N mask exists; the streaming form keeps the same frames in a cache whose
size is constant in the length of the roll-out. Both read the same keys, so they agree to rounding.

Letters: B batch, T latent frames, S tokens a frame, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from worldline.model.chunks import chunk_spans
from worldline.model.context_parallel import gather_frames


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSpan:
    """Which earlier frames a chunk may read."""

    sink_frames: int = 1
    """Latent frames at the start of the clip that stay readable; 1 keeps the image an image-to-video clip
    begins with.
    """
    window_frames: int | None = None
    """Latent frames before the chunk that stay readable; None is all, whose cache grows with the clip."""

    def __post_init__(self) -> None:
        if self.sink_frames < 0 or (self.window_frames is not None and self.window_frames < 0):
            raise ValueError("sink_frames and window_frames count frames and cannot be negative")

    def keeps(self, frame: int, chunk_start: int) -> bool:
        """Whether a chunk that starts at `chunk_start` reads an earlier frame."""
        if self.window_frames is None:
            return True
        return frame < self.sink_frames or frame >= chunk_start - self.window_frames


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyValueCache:
    """The earlier frames a stream still reads."""

    keys: Tensor
    """[B, F, S, H, D]"""
    values: Tensor
    """[B, F, S, H, D]"""
    frames: tuple[int, ...]
    """Indices in the clip of the F frames."""
    num_seen: int
    """Frames of the clip before the next call."""


def softmax_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    chunks: Sequence[int] | None,
    span: AttentionSpan,
    cache: KeyValueCache | None = None,
    frame_valid: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    scale: float | None = None,
) -> tuple[Tensor, KeyValueCache]:
    """Attention output [B, T, S, H, D] and the cache for the next call.

    Args:
        queries, keys, values: [B, T, S, H, D] of this call's frames; with `group`, of this rank's frames.
        chunks: chunk index of each frame of the call (of all ranks with `group`); None makes each frame a
            chunk.
        span: earlier frames a chunk reads.
        cache: what an earlier call returned.
        frame_valid: [B, T] bool, False for padding that no query may read; whole-clip form only.
        group: ranks that share the clip in time order.
        scale: of the scores; None is 1 / sqrt(D).
    """
    if frame_valid is not None and (cache is not None or group is not None):
        raise ValueError("frame_valid is for whole clips on one rank")
    num_frames = queries.shape[1]
    first = 0 if group is None else group.rank() * num_frames
    keys, values = gather_frames(keys, group), gather_frames(values, group)
    total = keys.shape[1]
    chunks = list(range(total)) if chunks is None else list(chunks)
    if len(chunks) != total:
        raise ValueError(f"chunks has {len(chunks)} entries for {total} frames")

    offset, frames = 0, list(range(total))
    if cache is not None:
        keys, values = torch.cat([cache.keys, keys], dim=1), torch.cat([cache.values, values], dim=1)
        offset, frames = cache.num_seen, [*cache.frames, *(cache.num_seen + t for t in range(total))]
    outputs = []
    for start, stop in chunk_spans(chunks):
        local = queries[:, max(start - first, 0) : max(stop - first, 0)]
        if local.shape[1] == 0:
            continue
        read = [i for i, t in enumerate(frames) if t < offset + stop and span.keeps(t, offset + start)]
        valid = None if frame_valid is None else _frames(frame_valid, read)
        outputs.append(_attend(local, _frames(keys, read), _frames(values, read), valid, scale))
    return torch.cat(outputs, dim=1), _next_cache(keys, values, frames, offset + total, span)


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, frame_valid: Tensor | None, scale: float | None
) -> Tensor:
    batch, num_frames, num_tokens, num_heads, head_dim = queries.shape
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (queries, keys, values))  # [B, H, N, D]
    mask = None if frame_valid is None else frame_valid.repeat_interleave(num_tokens, dim=1)[:, None, None]
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=head_dim**-0.5 if scale is None else scale
    )
    return out.transpose(1, 2).reshape(batch, num_frames, num_tokens, num_heads, head_dim)


def _frames(x: Tensor, indices: list[int]) -> Tensor:
    """x at the frames `indices`, without a copy where they are one run."""
    if indices and indices == list(range(indices[0], indices[-1] + 1)):
        return x[:, indices[0] : indices[-1] + 1]
    return x[:, indices]


def _next_cache(
    keys: Tensor, values: Tensor, frames: list[int], num_seen: int, span: AttentionSpan
) -> KeyValueCache:
    kept = [i for i, t in enumerate(frames) if span.keeps(t, num_seen)]
    return KeyValueCache(
        keys=_frames(keys, kept),
        values=_frames(values, kept),
        frames=tuple(frames[i] for i in kept),
        num_seen=num_seen,
    )
