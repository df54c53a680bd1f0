"""The scan of the gated delta rule as one Triton kernel, for GPUs: transitions and updates of a clip in, its
states out.

A scan in torch launches two small kernels a frame, which a GPU spends most of its time waiting for. The rows of
a state do not mix, so here each program carries some rows of one head's state through the whole clip, in float32
and without a launch in between.

Letters: N heads times batch, T latent frames, E value dim, D key dim.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 16
"""Of the state a program; the least that `tl.dot` takes."""
_MATRIX_BYTES = 4 * 128**2
"""Of a frame's transition in shared memory."""


@triton.jit
def _scan(
    transition,
    added,
    start,
    states,
    num_frames,
    num_rows,
    key_dim: tl.constexpr,
    reverse: tl.constexpr,
    adjoint: tl.constexpr,
    block_rows: tl.constexpr,
    block_keys: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    keys = tl.arange(0, block_keys)
    in_matrix = (keys[:, None] < key_dim) & (keys[None, :] < key_dim)
    in_state = (rows[:, None] < num_rows) & (keys[None, :] < key_dim)
    at = rows[:, None] * key_dim + keys[None, :]
    # The adjoint scan multiplies by the transpose of the frame it comes from.
    entry = keys[None, :] * key_dim + keys[:, None] if adjoint else keys[:, None] * key_dim + keys[None, :]
    state = tl.load(start + head * num_rows * key_dim + at, mask=in_state, other=0.0)
    for step in range(num_frames):
        frame = num_frames - 1 - step if reverse else step
        source = frame
        if adjoint:
            source = tl.minimum(frame + 1, num_frames - 1) if reverse else tl.maximum(frame - 1, 0)
        place = (head * num_frames + frame) * num_rows * key_dim + at
        matrix = tl.load(
            transition + (head * num_frames + source) * key_dim * key_dim + entry, mask=in_matrix, other=0.0
        )
        plus = tl.load(added + place, mask=in_state, other=0.0)
        # Three products of tf32 halves on the tensor cores: the error of float32 at a tenth of its time.
        state = tl.dot(state, matrix, acc=plus, input_precision="tf32x3")
        tl.store(states + place, state, mask=in_state)


@functools.cache
def _stages(device: torch.device) -> int:
    """Transitions that are on their way to a multiprocessor at once."""
    if device.type != "cuda":
        return 1
    properties = torch.cuda.get_device_properties(device)
    shared = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]  # not in torch's stubs
    return max(1, min(3, (shared - 16384) // _MATRIX_BYTES))


def scan(transition: Tensor, added: Tensor, start: Tensor, *, reverse: bool, adjoint: bool = False) -> Tensor:
    """X_t = X_{t-1} transition_t + added_t from `start`, or from the last frame to the first with `reverse`.

    With `adjoint` the matrix of a step is transition_s^T, s the frame the step comes from; `start` must then be
    zero, since the first step comes from none. float32: transition [N, T, D, D], added [N, T, E, D], start
    [N, E, D] -> [N, T, E, D].
    """
    transition, added, start = transition.contiguous(), added.contiguous(), start.contiguous()
    num_heads, num_frames, num_rows, key_dim = added.shape
    states = added.new_empty(added.shape)
    _scan[(num_heads, triton.cdiv(num_rows, _ROWS))](
        transition,
        added,
        start,
        states,
        num_frames,
        num_rows,
        key_dim=key_dim,
        reverse=reverse,
        adjoint=adjoint,
        block_rows=_ROWS,
        block_keys=max(16, triton.next_power_of_2(key_dim)),
        num_warps=8,
        num_stages=_stages(added.device),
    )
    return states
