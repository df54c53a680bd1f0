"""What a model of some size costs: parameters by part, floating-point operations and activation memory,
without building it.

Parameters are counted on torch's meta device. Operations count a multiply-add as two and leave out what is
not a matrix product or a convolution (norms, gates, rotations). Activation memory is what autograd keeps
for the backward pass: an estimate from the tensors each part must save, against which checkpointing keeps
one input a block.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from worldline.model.config import ModelConfig
from worldline.model.exchange import unread_shapes
from worldline.model.rope import Grid
from worldline.model.world_model import TIME_CHANNELS, WorldModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of one forward pass of one clip."""

    parameters: dict[str, int]
    """Of the whole model, by part; "blocks" is all blocks."""
    delta_block: dict[str, int]
    """Parameters of a gated-delta block by part."""
    softmax_block: dict[str, int]
    released_parameters: int | None
    """With those diffusers' format holds and nothing reads; None where that format cannot hold the model."""
    flops: dict[str, int]
    """By part, all blocks together."""
    activation_bytes: int
    """Kept for backward in bfloat16 (float32 in the recurrence), without checkpointing."""
    checkpointed_bytes: int
    """With `checkpoint_blocks`: one input a block, and one block's own."""


def cost(config: ModelConfig, grid: Grid, *, text_tokens: int = 300) -> Cost:
    """The cost of a clip on this token grid."""
    with torch.device("meta"):
        model = WorldModel(config)
    parameters: Counter[str] = Counter()
    blocks: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for name, parameter in model.named_parameters():
        top = name.split(".")[0]
        parameters[top] += parameter.numel()
        if top == "blocks":
            index, part = int(name.split(".")[1]), _part(name.split(".", 2)[2])
            if index == _first(config, is_softmax=config.is_softmax(index)):
                blocks[config.is_softmax(index)][part] += parameter.numel()
    released = None
    if config.camera == "ucpe" and config.plucker and config.attention == "frame_delta":
        unread = unread_shapes(config)
        extra = sum(shape.numel() for name, shape in unread.items() if not name.endswith("recall_gate"))
        released = sum(parameters.values()) + extra
    flops = _flops(config, grid, text_tokens)
    tokens, width = grid.num_frames * grid.num_tokens, config.width
    per_block = [_kept_bytes(config, grid, is_softmax=config.is_softmax(i)) for i in range(config.num_blocks)]
    return Cost(
        parameters=dict(parameters),
        delta_block=dict(blocks[0]),
        softmax_block=dict(blocks[1]),
        released_parameters=released,
        flops=flops,
        activation_bytes=sum(per_block),
        checkpointed_bytes=2 * tokens * width * config.num_blocks + max(per_block),
    )


def forward_flops(config: ModelConfig, grid: Grid, *, text_tokens: int = 300) -> int:
    """Floating-point operations of one forward pass of one clip."""
    return sum(_flops(config, grid, text_tokens).values())


def _part(name: str) -> str:
    """The row of the per-block table a parameter belongs to."""
    table = {
        "attention.main.qkv": "qkv",
        "attention.output_gate": "output gate",
        "attention.out": "out",
        "attention.gates": "beta, gamma",
        "attention.camera.qkv": "camera q, k, v",
        "attention.camera_out": "camera out",
        "cross_attention": "cross-attention",
        "feed_forward": "feed-forward",
        "plucker": "Pluecker",
        "table": "modulation",
    }
    for prefix, row in table.items():
        if name.startswith(prefix):
            return row
    return "norms, key convolutions"


def _first(config: ModelConfig, *, is_softmax: bool) -> int:
    return next(i for i in range(config.num_blocks) if config.is_softmax(i) == is_softmax)


def _flops(config: ModelConfig, grid: Grid, text_tokens: int) -> dict[str, int]:
    frames, tokens, width, head = (
        grid.num_frames,
        grid.num_frames * grid.num_tokens,
        config.width,
        config.head_dim,
    )
    num_softmax = sum(config.is_softmax(i) for i in range(config.num_blocks))
    num_delta = config.num_blocks - num_softmax
    branches = 1 if config.camera == "none" else 2
    linear = (3 + 1 + 1) * width**2 + (0 if branches == 1 else 4 * width**2)
    hidden = config.ffn_ratio * width
    # Per head and stream: three products of D x D with a frame's tokens, and two scans over D x D states.
    stream = 3 * tokens * head**2 + 2 * frames * head**3
    normaliser = tokens * (head**2 + 2 * head) + 2 * frames * head**2
    delta = config.num_heads * (branches * stream + normaliser)
    softmax = branches * 2 * tokens**2 * width
    cross = 2 * width**2 * tokens + 2 * width**2 * text_tokens + 2 * tokens * text_tokens * width
    ffn = tokens * (2 * hidden * width + 9 * 2 * hidden + hidden * width + 3 * width**2)
    ends = tokens * 2 * config.latent_channels * width + frames * (TIME_CHANNELS + 7 * width) * width
    multiply_adds = {
        "attention projections": config.num_blocks * linear * tokens,
        "gated delta": num_delta * delta,
        "softmax": num_softmax * softmax,
        "cross-attention": config.num_blocks * cross,
        "feed-forward": config.num_blocks * ffn,
        "Pluecker": (config.num_blocks * width**2 + 6 * config.camera_grid.time_stride * width) * tokens
        if config.plucker
        else 0,
        "ends": ends,
    }
    return {name: 2 * int(count) for name, count in multiply_adds.items()}


def _kept_bytes(config: ModelConfig, grid: Grid, *, is_softmax: bool) -> int:
    """Bytes one block keeps for backward."""
    frames, tokens = grid.num_frames, grid.num_frames * grid.num_tokens
    row = 2 * tokens * config.width  # one bfloat16 tensor of the stream's width
    branches = 1 if config.camera == "none" else 2
    # Inputs of: two norms, q k v and gate, their norms, the sum, out; cross-attention; Pluecker;
    # feed-forward.
    kept = row * (6 + branches * 6 + 6 + (1 if config.plucker else 0) + 2)
    kept += row * config.ffn_ratio * (2 + 2 + 3)
    if not is_softmax:
        kept += 2 * row * branches * 5  # q, k, v, written keys, output in float32
        # Transitions, updates and both scans' states of each stream, and of the normaliser its transitions.
        kept += 4 * frames * config.num_heads * config.head_dim**2 * (4 * branches + 1)
    return kept


def report(config: ModelConfig, grid: Grid) -> str:
    """The tables of `cost` as text."""
    total = cost(config, grid)
    count = sum(total.parameters.values())
    width2 = config.width**2
    lines = [f"parameters {count:,}; in diffusers' format {total.released_parameters or 0:,}"]
    lines.append(f"{'part of a block':<26}{'delta':>14}{'in d^2':>8}{'softmax':>14}")
    for part in sorted({*total.delta_block, *total.softmax_block}):
        delta, softmax = total.delta_block.get(part, 0), total.softmax_block.get(part, 0)
        lines.append(f"{part:<26}{delta:>14,}{delta / width2:>8.2f}{softmax:>14,}")
    tokens = grid.num_frames * grid.num_tokens
    lines.append(
        f"one forward pass of {grid.num_frames} x {grid.height} x {grid.width} = {tokens:,} tokens, TFLOP:"
    )
    lines += [f"  {name:<24}{flops / 1e12:>10.1f}" for name, flops in total.flops.items()]
    lines.append(f"  {'sum':<24}{sum(total.flops.values()) / 1e12:>10.1f}")
    gib = 2**30
    lines.append(
        f"activations kept for backward {total.activation_bytes / gib:.0f} GiB, "
        f"with checkpointed blocks {total.checkpointed_bytes / gib:.0f} GiB"
    )
    return "\n".join(lines)
