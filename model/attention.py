"""Self-attention of a block, main and camera branch, and cross-attention to text.

Both branches run the same mixing, gated delta or softmax, on their own projections: the main one with
rotary positions, the camera one in ray space. They share the gates, are summed, gated, and projected once.

Letters: B batch, T latent frames, S tokens a frame, H heads, D head dim, C = H D width, L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from worldline.model import fla_kernels
from worldline.model.camera_embedding import CameraTransforms, transform_channels
from worldline.model.config import ModelConfig
from worldline.model.gated_delta import DeltaInputs, DeltaState, gated_delta, guarded_beta
from worldline.model.rope import apply_rope
from worldline.model.softmax_attention import KeyValueCache, softmax_attention
from worldline.model.temporal import short_conv
from worldline.model.token_delta import token_delta

MixState = DeltaState | KeyValueCache
Gates = tuple[Tensor, Tensor]
"""beta [B, T, S, H] and gamma [B, T, H]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frames:
    """What every block of one call reads about its frames."""

    rope: Tensor
    """[2, T, S, D / 2]"""
    chunks: Sequence[int] | None
    """Chunk index of each frame (of all ranks with `group`); None is causal, frame by frame."""
    camera: CameraTransforms | None = None
    frame_valid: Tensor | None = None
    """[B, T] bool, False for padding; None is all valid."""
    group: dist.ProcessGroup | None = None
    """Ranks that share the clip in time order."""
    form: str = "chunked"
    """Of the gated delta rule: "chunked" or "recurrent"."""

    def mask(self, x: Tensor) -> Tensor:
        """x [B, T, ...] with padding frames set to zero."""
        if self.frame_valid is None:
            return x
        return x * self.frame_valid.to(x.dtype).reshape(*self.frame_valid.shape, *[1] * (x.ndim - 2))


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionState:
    """What one block's self-attention carries from chunk to chunk."""

    main: MixState
    camera: MixState | None
    main_tail: Tensor | None
    """[B, K - 1, S, C], keys before their short convolution; None in softmax blocks."""
    camera_tail: Tensor | None


class WidthNorm(nn.Module):
    """RMS norm of [..., C] over all heads together or over each, with one learned weight a channel."""

    def __init__(self, config: ModelConfig, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.width))
        self.num_groups = 1 if config.key_norm == "width" else config.num_heads
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if self.num_groups == 1 and fla_kernels.are_used(x):
            return fla_kernels.rms_norm(x, self.weight, self.eps)
        groups = x.unflatten(-1, (self.num_groups, -1))
        return F.rms_norm(groups, groups.shape[-1:], eps=self.eps).flatten(-2) * self.weight


class Heads(NamedTuple):
    """Queries, keys and values, each [B, T, S, H, D]."""

    queries: Tensor
    keys: Tensor
    values: Tensor


class HeadProjection(nn.Module):
    """Tokens [B, T, S, C] to normed queries, keys and values [B, T, S, H, D]."""

    def __init__(self, config: ModelConfig, *, bias: bool, with_conv: bool) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=bias)
        self.query_norm = WidthNorm(config)
        self.key_norm = WidthNorm(config)
        self.key_conv = nn.Parameter(torch.empty(config.width, config.key_conv_taps)) if with_conv else None

    def forward(self, x: Tensor, frames: Frames, tail: Tensor | None) -> tuple[Heads, Tensor | None]:
        """Also the tail of the key convolution, None without one."""
        queries, keys, values = frames.mask(self.qkv(x)).chunk(3, dim=-1)
        if self.key_conv is not None:
            keys, tail = short_conv(keys, self.key_conv, chunks=frames.chunks, tail=tail, group=frames.group)
        heads = (self.num_heads, -1)
        queries = frames.mask(self.query_norm(queries)).unflatten(-1, heads)
        keys = frames.mask(self.key_norm(keys)).unflatten(-1, heads)
        return Heads(queries, keys, values.unflatten(-1, heads)), tail


class DeltaGates(nn.Module):
    """Write strength beta [B, T, S, H] of each token and retention gamma [B, T, H] of each frame."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.beta = nn.Linear(config.width, config.num_heads)
        self.gamma = nn.Linear(config.width, config.num_heads)
        self.log_rate = nn.Parameter(torch.empty(config.num_heads))
        self.bias = nn.Parameter(torch.empty(config.num_heads))

    def forward(self, x: Tensor, frames: Frames) -> tuple[Tensor, Tensor]:
        beta = frames.mask(self.beta(x).sigmoid())
        # Products of gamma over hundreds of frames: half precision would lose them.
        logit = self.gamma(x.mean(dim=2))
        logit = logit if logit.dtype == torch.float64 else logit.float()
        rate = self.log_rate.to(logit.dtype).exp()
        gamma = torch.exp(-rate * F.softplus(logit + self.bias))
        if frames.frame_valid is not None:
            gamma = torch.where(frames.frame_valid[..., None], gamma, 1.0)
        return beta, gamma


class SelfAttention(nn.Module):
    """Main and camera branch of one block, by gated delta rule or by softmax."""

    def __init__(self, config: ModelConfig, *, is_softmax: bool) -> None:
        super().__init__()
        self.config = config
        self.main = HeadProjection(config, bias=False, with_conv=not is_softmax)
        self.gates = None if is_softmax else DeltaGates(config)
        self.camera = None
        if config.camera != "none":
            self.camera = HeadProjection(config, bias=True, with_conv=not is_softmax)
            self.camera_out = nn.Linear(config.width, config.width)
        self.output_gate = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(
        self, x: Tensor, frames: Frames, state: AttentionState | None
    ) -> tuple[Tensor, AttentionState]:
        """x [B, T, S, C] -> same, and the state for the next chunk."""
        gates = None if self.gates is None else self.gates(x, frames)
        heads, main_tail = self.main(x, frames, state.main_tail if state else None)
        mixed, main = self._mix_main(heads, gates, frames, state.main if state else None)
        mixed = frames.mask(mixed.flatten(-2))

        camera, camera_tail = None, None
        if self.camera is not None:
            if frames.camera is None:
                raise ValueError(f"a model with a {self.config.camera} branch needs camera transforms")
            heads, camera_tail = self.camera(x, frames, state.camera_tail if state else None)
            in_world, camera = self._mix_camera(heads, gates, frames, state.camera if state else None)
            mixed = mixed + self.camera_out(frames.mask(in_world.flatten(-2)).to(x.dtype))

        gated = mixed * F.silu(self.output_gate(x))
        new_state = AttentionState(main=main, camera=camera, main_tail=main_tail, camera_tail=camera_tail)
        return self.out(gated.to(x.dtype)), new_state

    def _mix_main(
        self, heads: Heads, gates: Gates | None, frames: Frames, state: MixState | None
    ) -> tuple[Tensor, MixState]:
        queries, keys, values = heads
        if gates is None:
            queries, keys = apply_rope(queries, frames.rope), apply_rope(keys, frames.rope)
            rotated = Heads(queries, keys, values)
            return self._softmax(rotated, frames, cast(KeyValueCache | None, state), is_camera=False)
        beta, gamma = gates
        queries, keys = queries.relu(), keys.relu() * self._key_scale(keys)
        rotated_keys = apply_rope(keys, frames.rope)
        if self.config.spectral_guard:
            beta = guarded_beta(keys, guarded_beta(rotated_keys, beta))
        inputs = DeltaInputs(
            queries=apply_rope(queries, frames.rope),
            keys=rotated_keys,
            values=values,
            beta=beta,
            gamma=gamma,
            plain_queries=queries,
            plain_keys=keys,
        )
        return self._delta(inputs, frames, cast(DeltaState | None, state))

    def _mix_camera(
        self, heads: Heads, gates: Gates | None, frames: Frames, state: MixState | None
    ) -> tuple[Tensor, MixState]:
        """The same mixing in ray space; the output is back in the clip's world."""
        rays = frames.camera
        assert rays is not None
        queries, keys, values = heads
        if gates is not None:
            queries, keys = queries.relu(), keys.relu() * self._key_scale(keys)
        in_ray_space = Heads(
            queries=transform_channels(queries, rays.matrix.mT, rays.rope),
            keys=transform_channels(keys, rays.inverse, rays.rope),
            values=transform_channels(values, rays.inverse, rays.rope),
        )
        if self.config.quirks.ray_rms_cap:
            plain = (queries, keys, values)
            in_ray_space = Heads(*(_capped(x, ref) for x, ref in zip(in_ray_space, plain, strict=True)))
        out: Tensor
        new_state: MixState
        if gates is None:
            cache = cast(KeyValueCache | None, state)
            # The transforms are in float32; kept there, a model in bfloat16 would spend most of a long clip here.
            in_ray_space = Heads(*(x.to(values.dtype) for x in in_ray_space))
            out, new_state = self._softmax(in_ray_space, frames, cache, is_camera=True)
        else:
            beta, gamma = gates
            beta = beta / _inflation(in_ray_space.keys, keys)
            if self.config.spectral_guard:
                beta = guarded_beta(in_ray_space.keys, beta)
            inputs = DeltaInputs(**in_ray_space._asdict(), beta=beta, gamma=gamma)
            out, new_state = self._delta(inputs, frames, cast(DeltaState | None, state))
        return transform_channels(out, rays.matrix, rays.rope, inverse_rope=True), new_state

    def _delta(
        self, inputs: DeltaInputs, frames: Frames, state: DeltaState | None
    ) -> tuple[Tensor, DeltaState]:
        if self.config.attention == "token_delta":
            if frames.group is not None:
                raise ValueError("token_delta runs on one rank")
            return token_delta(inputs, chunks=frames.chunks, state=state)
        return gated_delta(inputs, chunks=frames.chunks, state=state, form=frames.form, group=frames.group)

    def _softmax(
        self, heads: Heads, frames: Frames, cache: KeyValueCache | None, *, is_camera: bool
    ) -> tuple[Tensor, KeyValueCache]:
        quirks, head_dim = self.config.quirks, self.config.head_dim
        dtype = torch.bfloat16 if quirks.bf16_softmax else heads.values.dtype
        scale = head_dim**-0.5
        if quirks.padded_softmax_scale and is_camera and head_dim not in (32, 64) and head_dim < 128:
            scale = 128**-0.5
        reads_padding = quirks.reads_padding and not is_camera
        out, new_cache = softmax_attention(
            *(x.to(dtype) for x in heads),
            chunks=frames.chunks,
            span=self.config.span,
            cache=cache,
            frame_valid=None if reads_padding else frames.frame_valid,
            group=frames.group,
            scale=scale,
        )
        return out.to(heads.values.dtype), new_cache

    def _key_scale(self, keys: Tensor) -> float:
        num_tokens, head_dim = keys.shape[2], keys.shape[-1]
        return {"frame": (head_dim * num_tokens) ** -0.5, "head": head_dim**-0.5, "none": 1.0}[
            self.config.key_scale
        ]


class CrossAttention(nn.Module):
    """Tokens read the caption."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query = nn.Linear(config.width, config.width)
        self.key_value = nn.Linear(config.width, 2 * config.width)
        self.query_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.key_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """x [B, T, S, C], text [B, L, C], text_mask [B, L] bool, True where a token counts."""

        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, H, N, D]

        keys, values = self.key_value(text).chunk(2, dim=-1)
        queries = heads(self.query_norm(self.query(x.flatten(1, 2))))
        keys, values = heads(self.key_norm(keys)), heads(values)
        out = F.scaled_dot_product_attention(
            queries.to(values.dtype), keys.to(values.dtype), values, attn_mask=text_mask[:, None, None]
        )
        return self.out(out.transpose(1, 2).flatten(2)).reshape(x.shape)


def _inflation(in_ray_space: Tensor, plain: Tensor) -> Tensor:
    """max(1, mean over a frame's tokens of |D^-1 k|^2 / |k|^2): [B, T, 1, H].

    The ray matrix is not orthogonal; dividing beta by this keeps the trace of K B K^T where the plain keys
    put it.
    """
    after = torch.linalg.vector_norm(in_ray_space, dim=-1).clamp_min(1e-6)
    before = torch.linalg.vector_norm(plain.to(after.dtype), dim=-1).clamp_min(1e-6)
    return (after / before).square().mean(dim=2, keepdim=True).clamp_min(1.0)


def _capped(x: Tensor, reference: Tensor, *, eps: float = 1e-6) -> Tensor:
    """x scaled down per token and head to the RMS of `reference` where it is larger."""
    rms, limit = (y.to(x.dtype).square().mean(dim=-1, keepdim=True).add(eps).sqrt() for y in (x, reference))
    return x * (limit / rms).clamp(max=1.0)
