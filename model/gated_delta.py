"""Frame-wise gated delta rule: queries, keys, values of a clip in, attention outputs and the carried state
out.

All tokens of a latent frame update one state together and read the same state (SANA-WM, arXiv 2605.15178,
Eq. 2-5):

    S_t = gamma_t S_{t-1} (I - K_t B_t K_t^T) + V_t B_t K_t^T        O_t = S_t Q_t

with the frame's tokens as columns. At one token a frame it is the gated delta rule of arXiv 2412.06464.
Frames of a chunk see each other in both directions and all earlier chunks: a forward scan over the whole
clip, inclusive of t, plus a reverse scan over the later frames of t's chunk. One chunk is the bidirectional
model, one frame a chunk the causal one.

Forms of one function, equal to rounding:
- `delta_recurrent`: the equation, frame by frame; the reference.
- `delta_chunked`: for training. Transitions and updates of all frames as batched products, then a scan over
  D x D matrices, then outputs of all frames (`delta_ops`). Both directions share the first and last step.
- either with `state`: streaming, chunk after chunk.
- `delta_chunked` with `group`: context parallel, exact.

`gated_delta` adds the normaliser, the same rule with the constant 1 as value and un-rotated queries and keys.

Departures from the paper: none in the equations. The recurrence contracts only while |K B K^T| <= 1, which
the paper's full-width key norm does not ensure when one head dominates; `guarded_beta` restores it.

Letters: B batch, T latent frames, S tokens a frame, H heads, D key dim, E value dim, N = H B.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from worldline.model.context_parallel import carried_state
from worldline.model.delta_ops import frame_steps, read_states, state_scan

FORMS = ("chunked", "recurrent")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeltaInputs:
    """What one attention call reads; half precision is raised to float32 inside."""

    queries: Tensor
    """[B, T, S, H, D], rotated."""
    keys: Tensor
    """[B, T, S, H, D], rotated and scaled."""
    values: Tensor
    """[B, T, S, H, E]"""
    beta: Tensor
    """[B, T, S, H] in [0, 1]: how far a token's value is written."""
    gamma: Tensor
    """[B, T, H] in [0, 1]: what is left of the state after a frame."""
    plain_queries: Tensor | None = None
    """[B, T, S, H, D] before rotation; None leaves out the normaliser."""
    plain_keys: Tensor | None = None
    """[B, T, S, H, D]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeltaState:
    """What a stream carries from chunk to chunk; its size does not depend on the frames seen."""

    memory: Tensor
    """[B, H, E, D]"""
    normaliser: Tensor | None = None
    """[B, H, 1, D]"""


def gated_delta(
    inputs: DeltaInputs,
    *,
    chunks: Sequence[int] | None,
    state: DeltaState | None = None,
    form: str = "chunked",
    group: dist.ProcessGroup | None = None,
    eps: float = 1e-8,
) -> tuple[Tensor, DeltaState]:
    """Attention output [B, T, S, H, E] and the state after the last frame.

    Args:
        inputs: tensors of this call's frames; with `group`, of this rank's frames.
        chunks: chunk index of each frame of the call (of all ranks with `group`); None is causal, frame by
            frame.
        state: what an earlier call returned. A chunk never spans two calls.
        form: "chunked" or "recurrent".
        group: ranks that share the clip in time order, "chunked" only.
        eps: added to the normaliser.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r}: known are {FORMS}")
    if form == "recurrent" and group is not None:
        raise ValueError("the recurrent form runs on one rank")

    def rule(queries: Tensor, keys: Tensor, values: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
        beta, gamma = inputs.beta, inputs.gamma
        if form == "recurrent":
            return delta_recurrent(queries, keys, values, beta=beta, gamma=gamma, state=start, chunks=chunks)
        return delta_chunked(
            queries, keys, values, beta=beta, gamma=gamma, state=start, chunks=chunks, group=group
        )

    numerator, memory = rule(inputs.queries, inputs.keys, inputs.values, state.memory if state else None)
    if inputs.plain_queries is None or inputs.plain_keys is None:
        return numerator, DeltaState(memory=memory)
    ones = torch.ones_like(inputs.values[..., :1])
    denominator, normaliser = rule(
        inputs.plain_queries, inputs.plain_keys, ones, state.normaliser if state else None
    )
    return numerator / (denominator + eps), DeltaState(memory=memory, normaliser=normaliser)


# The reference


def delta_recurrent(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    beta: Tensor,
    gamma: Tensor,
    state: Tensor | None = None,
    chunks: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """The rule frame by frame; shapes as in DeltaInputs, state [B, H, E, D]."""
    queries, keys, values, beta, gamma = _as_float(queries, keys, values, beta, gamma)
    num_frames = keys.shape[1]
    zero = _zero_state(keys, values)
    chunks = range(num_frames) if chunks is None else chunks

    # Unbound once: a slice per frame would cost its backward a tensor of the clip's size each.
    q, k, v, b, g = (x.unbind(dim=1) for x in (queries, keys, values, beta, gamma))

    def step(state: Tensor, t: int) -> Tensor:
        decayed = g[t][..., None, None] * state
        recalled = torch.einsum("bhed,bshd->bshe", decayed, k[t])
        error = b[t][..., None] * (v[t] - recalled)
        return decayed + torch.einsum("bshe,bshd->bhed", error, k[t])

    def read(state: Tensor, t: int) -> Tensor:
        return torch.einsum("bhed,bshd->bshe", state, q[t])

    state = zero if state is None else state
    outputs = []
    for t in range(num_frames):
        state = step(state, t)
        outputs.append(read(state, t))
    later = zero
    for t in reversed(range(num_frames - 1)):
        if chunks[t] == chunks[t + 1]:
            later = step(later, t + 1)
            outputs[t] = outputs[t] + read(later, t)
        else:
            later = zero
    return torch.stack(outputs, dim=1), state


# The training form


def delta_chunked(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    beta: Tensor,
    gamma: Tensor,
    state: Tensor | None = None,
    chunks: Sequence[int] | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """The rule over all frames at once; shapes as in DeltaInputs, state [B, H, E, D].

    Memory beyond the inputs is O(T D (D + E)) a head, and what the tokens of one head take. With `group`,
    `state` must be None: the carried state is made by the ranks themselves.
    """
    with torch.autocast(device_type=keys.device.type, enabled=False):
        queries, keys, values, beta, gamma = _as_float(queries, keys, values, beta, gamma)
        transition, update = frame_steps(keys, values, beta, gamma)
        start = _zero_state(keys, values) if state is None else state
        read, final = _forward_states(transition, update, start.transpose(0, 1).flatten(0, 1), group)
        if chunks is not None and len(chunks) > 1:
            read = read + _later_states(transition, update, chunks, group)
        final = final.unflatten(0, (keys.shape[3], keys.shape[0])).transpose(0, 1)
        return read_states(queries, read), final


def _forward_states(
    transition: Tensor, update: Tensor, start: Tensor, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """State after each frame [N, T, E, D], and after the clip's last frame [N, E, D]."""
    if group is None:
        states = state_scan(transition, update, start, False)
        return states, states[:, -1]
    local, product = _scan_with_product(transition, update, reverse=False)
    entering, final = carried_state(product[:, -1], local[:, -1], group, reverse=False)
    return local + entering[:, None] @ product, final


def _later_states(
    transition: Tensor, update: Tensor, chunks: Sequence[int], group: dist.ProcessGroup | None
) -> Tensor:
    """State of the frames after t in t's chunk, for each frame t: [N, T, E, D]."""
    num_frames = transition.shape[1]
    rank, num_ranks = (0, 1) if group is None else (group.rank(), group.size())
    if len(chunks) != num_frames * num_ranks:
        raise ValueError(f"chunks has {len(chunks)} entries for {num_frames * num_ranks} frames")
    same = [a == b for a, b in itertools.pairwise(chunks)]
    keep = transition.new_tensor([*same, False][rank * num_frames : (rank + 1) * num_frames])
    keep = keep[:, None, None]
    # With one chunk nothing is cut, and what enters at the end is zero.
    if not all(same):
        transition = keep * transition
    if group is None:
        entering = torch.zeros_like(update[:, 0])
        states = state_scan(transition, update, entering, True)
    else:
        local, product = _scan_with_product(transition, update, reverse=True)
        entering, _ = carried_state(product[:, 0], local[:, 0], group, reverse=True)
        states = local + entering[:, None] @ product
    later = torch.cat([states[:, 1:], entering[:, None]], dim=1)
    return later if all(same) else keep * later


def _scan_with_product(transition: Tensor, update: Tensor, *, reverse: bool) -> tuple[Tensor, Tensor]:
    """States from zero [N, T, E, D], and the products of the transitions so far [N, T, D, D], in one scan.

    The rows of the product obey the same recurrence, with no update and the identity as start.
    """
    num_rows = update.shape[-2]
    eye = torch.eye(transition.shape[-1], dtype=update.dtype, device=update.device).expand_as(
        transition[:, 0]
    )
    start = torch.cat([torch.zeros_like(update[:, 0]), eye], dim=-2)
    padded = torch.cat([update, torch.zeros_like(transition)], dim=-2)
    states = state_scan(transition, padded, start, reverse)
    return states[..., :num_rows, :], states[..., num_rows:, :]


# The contraction bound


def guarded_beta(keys: Tensor, beta: Tensor, *, limit: float = 1.0) -> Tensor:
    """beta [B, T, S, H] lowered per frame and head where |K B K^T| might exceed `limit`, so that |M_t| <=
    gamma_t.

    The bound used is the Frobenius norm, at least the spectral norm and at most the trace: frames of varied
    keys are left alone that the trace would damp. keys [B, T, S, H, D].
    """
    keys, beta_float = _as_float(keys.transpose(2, 3), beta.transpose(2, 3))  # [B, T, H, S, D], [B, T, H, S]
    if keys.shape[-2] < keys.shape[-1]:
        product = (keys @ keys.mT).square() * beta_float[..., None, :] * beta_float[..., :, None]
    else:
        product = (keys.mT @ (beta_float[..., None] * keys)).square()
    norm2 = product.sum(dim=(-2, -1))  # [B, T, H]
    return beta * (limit * norm2.clamp_min(limit**2).rsqrt()).to(beta.dtype)[:, :, None]


def transition_norm(keys: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """Spectral norm [B, T, H] of each transition gamma (I - K B K^T); above 1 the state can grow without
    limit.
    """
    keys, beta, gamma = _as_float(keys.transpose(2, 3), beta.transpose(2, 3), gamma)
    eye = torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
    return gamma * torch.linalg.matrix_norm(eye - keys.mT @ (beta[..., None] * keys), ord=2)


def _as_float(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Half precision raised to float32: the recurrence loses too much in it."""
    return tuple(x if x.dtype == torch.float64 else x.float() for x in tensors)


def _zero_state(keys: Tensor, values: Tensor) -> Tensor:
    batch, _, _, num_heads, key_dim = keys.shape
    return keys.new_zeros(batch, num_heads, values.shape[-1], key_dim)
