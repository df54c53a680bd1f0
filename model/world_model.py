"""The world model: noisy latents, timesteps, caption and cameras in, flow velocity out.

A transformer over the latent frames of a clip (SANA-WM, arXiv 2605.15178). Its parts, in reading order:
feed-forward with a convolution over space and one over time, block, model, initialisation. Attention is in
attention.py, the camera's input in camera_embedding.py. One set of weights runs whole clips bidirectionally
or chunk-causally, streams chunk after chunk with a state of constant size, and spreads a clip over ranks,
all equal to rounding.

Departures from the paper: the per-block Pluecker projection starts at zero and its embedder does not (both
at zero would never learn); the other differences between paper and released code are switches in config.py.

Letters: B batch, T latent frames, S = h w tokens a frame, C width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from worldline.annotate.camera import Intrinsics
from worldline.model.attention import AttentionState, CrossAttention, DeltaGates, Frames, SelfAttention
from worldline.model.camera_embedding import CameraConditions, camera_conditions
from worldline.model.chunks import one_chunk
from worldline.model.config import ModelConfig
from worldline.model.rope import Grid, rope_table
from worldline.model.softmax_attention import AttentionSpan
from worldline.model.temporal import temporal_conv

MAX_CONV_ELEMENTS = 1 << 30
"""Convolution kernels index with 32 bits; larger batches of frames are split."""

TIME_CHANNELS = 256
"""Channels of the sinusoidal timestep embedding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockState:
    """What one block carries from chunk to chunk of a stream."""

    attention: AttentionState
    ffn_tail: Tensor
    """[B, 1, S, C]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamState:
    """What a stream carries; its size does not depend on the frames seen while `AttentionSpan` has a
    window.
    """

    blocks: tuple[BlockState, ...]
    num_frames: int
    """Latent frames seen."""


class FeedForward(nn.Module):
    """Gated inverted bottleneck with a depthwise 3 x 3 convolution, then a residual convolution over time."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.ffn_ratio * config.width
        self.expand = nn.Linear(config.width, 2 * hidden)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.contract = nn.Linear(hidden, config.width, bias=False)
        self.temporal = nn.Parameter(torch.empty(config.width, config.width, 3))
        self.reads_padding = config.quirks.reads_padding

    def forward(self, x: Tensor, grid: Grid, frames: Frames, tail: Tensor | None, /) -> tuple[Tensor, Tensor]:
        """x [B, T, S, C] -> same, and the frame the next chunk's convolution needs."""
        per_frame = self.expand.out_features * grid.num_tokens
        step = max(1, MAX_CONV_ELEMENTS // per_frame)
        y = torch.cat([self._in_space(part, grid) for part in x.flatten(0, 1).split(step)]).view_as(x)
        if not self.reads_padding:
            y = frames.mask(y)
        over_time, tail = temporal_conv(y, self.temporal, chunks=frames.chunks, tail=tail, group=frames.group)
        return y + over_time, tail

    def _in_space(self, x: Tensor, grid: Grid) -> Tensor:
        planes = F.silu(self.expand(x)).unflatten(1, (grid.height, grid.width)).permute(0, 3, 1, 2)
        value, gate = self.depthwise(planes).permute(0, 2, 3, 1).flatten(1, 2).chunk(2, dim=-1)
        return self.contract(value * F.silu(gate))


class Block(nn.Module):
    """Self-attention, fine camera branch, cross-attention, feed-forward; the first and last modulated by
    time.
    """

    def __init__(self, config: ModelConfig, *, is_softmax: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(6, config.width))
        self.attention = SelfAttention(config, is_softmax=is_softmax)
        self.plucker = nn.Linear(config.width, config.width) if config.plucker else None
        self.cross_attention = CrossAttention(config)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        text: Tensor,
        text_mask: Tensor,
        plucker: Tensor | None,
        grid: Grid,
        frames: Frames,
        state: BlockState | None,
    ) -> tuple[Tensor, BlockState]:
        """x [B, T, S, C], time [B, T, 6 C], text [B, L, C], plucker [B, T, S, C] -> x, and the state."""
        modulation = (time.unflatten(-1, (6, -1)) + self.table)[:, :, None]  # [B, T, 1, 6, C]
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation.unbind(-2)

        x = frames.mask(x)
        normed = frames.mask(_modulated(x, shift_a, scale_a))
        attended, attention = self.attention(normed, frames, state.attention if state else None)
        x = x + frames.mask(gate_a * attended)
        if self.plucker is not None and plucker is not None:
            x = x + self.plucker(plucker)
        x = frames.mask(x + self.cross_attention(x, text, text_mask))
        normed = frames.mask(_modulated(x, shift_f, scale_f))
        fed, ffn_tail = self.feed_forward(normed, grid, frames, state.ffn_tail if state else None)
        x = x + frames.mask(gate_f * fed)
        return x, BlockState(attention=attention, ffn_tail=ffn_tail)


class WorldModel(nn.Module):
    """The transformer; `config` is the whole description of its shape."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.latent_in = nn.Linear(config.latent_channels, width)
        self.time_in = nn.Sequential(nn.Linear(TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))
        self.time_block = nn.Linear(width, 6 * width)
        self.text_in = nn.Sequential(
            nn.Linear(config.text_channels, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.text_norm = nn.RMSNorm(width, eps=1e-5)
        self.plucker_in = nn.Linear(6 * config.camera_grid.time_stride, width) if config.plucker else None
        self.blocks = nn.ModuleList(
            Block(config, is_softmax=config.is_softmax(i)) for i in range(config.num_blocks)
        )
        self.final_table = nn.Parameter(torch.empty(2, width))
        self.final = nn.Linear(width, config.latent_channels)
        self.checkpoint_blocks = False
        init_weights(self)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor,
        text_mask: Tensor,
        cameras: CameraConditions | None,
        *,
        chunks: Sequence[int] | None = None,
        frame_valid: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
        form: str = "chunked",
    ) -> Tensor:
        """Velocity [B, c, T, h, w] of a whole clip, or with `group` of this rank's frames.

        Args:
            latents: [B, c, T, h, w].
            timesteps: [B] or [B, T] in [0, 1000]; 0 is clean.
            text: [B, L, text_channels].
            text_mask: [B, L] bool, True where a token counts.
            cameras: what `conditions` returns; None only for a model without camera branches.
            chunks: chunk index of each frame (of all ranks with `group`); None is one chunk, bidirectional.
            frame_valid: [B, T] bool, False for padding.
            group: ranks that share the clip in time order, all with the same number of frames.
            form: of the gated delta rule, "chunked" or the reference "recurrent".
        """
        num_frames = latents.shape[2]
        rank, num_ranks = (0, 1) if group is None else (group.rank(), group.size())
        chunks = one_chunk(num_frames * num_ranks) if chunks is None else chunks
        frames_before = rank * num_frames
        velocity, _ = self._run(
            latents,
            timesteps,
            text,
            text_mask,
            cameras,
            first_frame=frames_before,
            chunks=chunks,
            frame_valid=frame_valid,
            group=group,
            form=form,
        )
        return velocity

    def read_span(self, span: AttentionSpan) -> None:
        """Softmax blocks read these earlier frames from now on, whatever they were trained with."""
        self.config = replace(self.config, span=span)
        for block in self.blocks:
            cast(Block, block).attention.config = self.config

    def stream(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor,
        text_mask: Tensor,
        cameras: CameraConditions | None,
        state: StreamState | None,
        *,
        form: str = "chunked",
    ) -> tuple[Tensor, StreamState]:
        """Velocity [B, c, T, h, w] of the next chunk, and the state after it.

        The state handed in is not changed: several noise levels of a chunk start from the same one, and
        only the one returned for the clean chunk is kept. Arguments as in `forward`.
        """
        num_frames = latents.shape[2]
        seen = state.num_frames if state else 0
        velocity, blocks = self._run(
            latents,
            timesteps,
            text,
            text_mask,
            cameras,
            first_frame=seen,
            chunks=one_chunk(num_frames),
            form=form,
            state=state,
            keep_state=True,
        )
        return velocity, StreamState(blocks=blocks, num_frames=seen + num_frames)

    def _run(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor,
        text_mask: Tensor,
        cameras: CameraConditions | None,
        *,
        first_frame: int,
        chunks: Sequence[int],
        form: str,
        frame_valid: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
        state: StreamState | None = None,
        keep_state: bool = False,
    ) -> tuple[Tensor, tuple[BlockState, ...]]:
        _, _, num_frames, height, width = latents.shape
        grid = Grid(num_frames=num_frames, height=height, width=width, first_frame=first_frame)
        frames = Frames(
            rope=rope_table(grid, self.config.head_dim, device=latents.device),
            chunks=chunks,
            camera=cameras.transforms if cameras else None,
            frame_valid=frame_valid,
            group=group,
            form=form,
        )
        x = self.latent_in(latents.permute(0, 2, 3, 4, 1).flatten(2, 3))  # [B, T, S, C]
        plucker = None
        if self.plucker_in is not None:
            if cameras is None or cameras.plucker is None:
                raise ValueError("a model with a Pluecker branch needs Pluecker rays")
            plucker = self.plucker_in(cameras.plucker.to(x.dtype))
        time = self._embed_time(timesteps, num_frames, x.dtype)  # [B, T, C]
        block_time = self.time_block(F.silu(time))
        text = self.text_norm(self.text_in(text.to(x.dtype)))

        states: list[BlockState] = []
        for i, block in enumerate(self.blocks):
            block_state = state.blocks[i] if state else None
            inputs = (x, block_time, text, text_mask, plucker, grid, frames, block_state)
            if self.checkpoint_blocks and torch.is_grad_enabled():
                x, new_state = cast(
                    tuple[Tensor, BlockState], checkpoint(block, *inputs, use_reentrant=False)
                )
            else:
                x, new_state = block(*inputs)
            if keep_state:
                states.append(new_state)
        shift, scale = (time[:, :, None] + self.final_table).unbind(dim=2)
        x = self.final(_modulated(x, shift[:, :, None], scale[:, :, None]))
        return x.unflatten(2, (height, width)).permute(0, 4, 1, 2, 3), tuple(states)

    def _embed_time(self, timesteps: Tensor, num_frames: int, dtype: torch.dtype) -> Tensor:
        """Timesteps [B] or [B, T] -> [B, T, C]."""
        if timesteps.ndim == 1:
            timesteps = timesteps[:, None].expand(-1, num_frames)
        if self.config.quirks.integer_timesteps:
            timesteps = timesteps.floor()
        half = TIME_CHANNELS // 2
        timesteps = timesteps.double() if dtype == torch.float64 else timesteps.float()
        exponents = torch.arange(half, dtype=timesteps.dtype, device=timesteps.device) / half
        angles = timesteps[..., None] * torch.exp(-math.log(1e4) * exponents)
        return self.time_in(torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype))


def conditions(
    config: ModelConfig, first_from_cam: Tensor, intrinsics: Intrinsics, grid: Grid
) -> CameraConditions | None:
    """What a model of this config reads of a clip's cameras; see `camera_conditions` for the arguments."""
    if config.camera == "none" and not config.plucker:
        return None
    return camera_conditions(
        first_from_cam,
        intrinsics,
        grid=grid,
        kind=config.camera,
        head_dim=config.head_dim,
        with_plucker=config.plucker,
        config=config.camera_grid,
    )


@torch.no_grad()
def init_weights(model: WorldModel) -> None:
    """Sets every parameter. The model starts near plain linear attention, without camera and without
    temporal mixing.

    | parameter | law |
    |---|---|
    | linear weights | Xavier uniform; timestep and text embedding normal, 0.02 |
    | biases | 0 |
    | final layer, camera output, Pluecker projection of a block, temporal convolution | 0 |
    | modulation tables | normal, 1 / sqrt(C) |
    | norms | 1; text 0.01 |
    | beta | weight 0, bias 5: every value is written almost fully |
    | gamma | weight 0, bias 0, offset -5, log rate 0: retention 0.993 a frame |
    | output gate | weight 0, bias 1.2784645, where SiLU is 1 |
    | key convolution | identity |
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, DeltaGates):
            nn.init.constant_(module.bias, -5.0)
            nn.init.zeros_(module.log_rate)
    for layer in (model.time_in[0], model.time_in[2], model.time_block, model.text_in[0], model.text_in[2]):
        nn.init.normal_(cast(nn.Linear, layer).weight, std=0.02)
    nn.init.constant_(model.text_norm.weight, 0.01)
    nn.init.zeros_(model.final.weight)
    for table in (model.final_table, *(cast(Block, block).table for block in model.blocks)):
        nn.init.normal_(table, std=table.shape[-1] ** -0.5)
    for block in model.blocks:
        _init_block(cast(Block, block))


def _init_block(block: Block) -> None:
    attention = block.attention
    nn.init.zeros_(block.feed_forward.temporal)
    nn.init.zeros_(attention.output_gate.weight)
    nn.init.constant_(attention.output_gate.bias, 1.2784645)
    if block.plucker is not None:
        nn.init.zeros_(block.plucker.weight)
    if attention.gates is not None:
        nn.init.zeros_(attention.gates.beta.weight)
        nn.init.constant_(attention.gates.beta.bias, 5.0)
        nn.init.zeros_(attention.gates.gamma.weight)
    for projection in (attention.main, attention.camera):
        if projection is not None and projection.key_conv is not None:
            nn.init.zeros_(projection.key_conv)
            projection.key_conv[:, -1] = 1.0
    if attention.camera is not None:
        nn.init.zeros_(attention.camera_out.weight)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without parameters, then scale and shift; x [B, T, S, C], the others [B, T, 1, C]."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
