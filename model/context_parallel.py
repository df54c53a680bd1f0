"""Context parallelism: each rank holds a slice of a clip's latent frames; exact exchange of what crosses
the cuts.

Rank p of P ranks holds frames [p T, (p + 1) T) of P T frames, so every rank holds the same number T. Three
things cross a cut: the state of a linear recurrence (`carried_state`), the neighbouring frames of a
temporal convolution (`halo`), and the keys and values of softmax attention (`gather_frames`). Each is
differentiable, and needs of the backend only all-gather, all-reduce and send / receive, so it runs on gloo
as on nccl.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_frames(x: Tensor, group: dist.ProcessGroup | None, *, dim: int = 1) -> Tensor:
    """All ranks' slices joined along `dim`, in rank order; x itself where there is no group."""
    if group is None or group.size() == 1:
        return x
    return torch.cat(list(_AllGather.apply(x.contiguous(), group)), dim=dim)


def halo(x: Tensor, group: dist.ProcessGroup | None, *, before: int, after: int) -> tuple[Tensor, Tensor]:
    """The `before` frames ahead of this rank's slice x [B, T, ...] and the `after` frames behind it.

    Frames outside the clip are zero. Raises ValueError where a slice is shorter than the halo, which would
    have to reach past the neighbouring rank.
    """
    batch, num_frames, *rest = x.shape
    if group is None or group.size() == 1:
        return x.new_zeros(batch, before, *rest), x.new_zeros(batch, after, *rest)
    if num_frames < max(before, after):
        raise ValueError(f"a rank holds {num_frames} frames, fewer than the halo of {max(before, after)}")
    return (
        _Shift.apply(x[:, num_frames - before :].contiguous(), group, 1),
        _Shift.apply(x[:, :after].contiguous(), group, -1),
    )


def carried_state(
    total_transition: Tensor, local_state: Tensor, group: dist.ProcessGroup, *, reverse: bool
) -> tuple[Tensor, Tensor]:
    """State that enters this rank's slice, and the one that leaves the last rank, of S' = S C_p + H_p.

    Args:
        total_transition: C_p [N, D, D], product of the slice's transitions.
        local_state: H_p [N, E, D], the slice's final state when it starts from zero.
        group: ranks in time order.
        reverse: the recurrence runs from the last rank to the first.
    """
    num_rows = local_state.shape[-2]
    pairs = _AllGather.apply(torch.cat([local_state, total_transition], dim=-2), group)
    states = [torch.zeros_like(local_state)]
    for rank in reversed(range(group.size())) if reverse else range(group.size()):
        states.append(states[-1] @ pairs[rank][:, num_rows:] + pairs[rank][:, :num_rows])
    place = group.size() - 1 - group.rank() if reverse else group.rank()
    # Indexing a stack keeps the gather in every rank's graph, also where the state that enters is the
    # constant zero: its backward is a collective, which all ranks must reach.
    return torch.stack(states)[place], states[-1]


class _AllGather(torch.autograd.Function):
    """Tuple of every rank's tensor; the gradient is summed over ranks and each keeps the part of its own
    tensor.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, ...]:
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(group.size())]
        dist.all_gather(parts, x, group=group)
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = torch.stack(grads)
        dist.all_reduce(total, group=ctx.group)
        return total[ctx.group.rank()], None


class _Shift(torch.autograd.Function):
    """Sends a tensor `step` ranks up and receives the one from `step` ranks below; zero at the ends."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, step: int) -> Tensor:
        ctx.group, ctx.step = group, step
        return _shift(x, group, step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _shift(grad.contiguous(), ctx.group, -ctx.step), None, None


def _shift(x: Tensor, group: dist.ProcessGroup, step: int) -> Tensor:
    received = torch.zeros_like(x)
    to_rank, from_rank = group.rank() + step, group.rank() - step
    requests = []
    if 0 <= to_rank < group.size():
        requests.append(dist.P2POp(dist.isend, x, group=group, group_peer=to_rank))
    if 0 <= from_rank < group.size():
        requests.append(dist.P2POp(dist.irecv, received, group=group, group_peer=from_rank))
    for work in dist.batch_isend_irecv(requests) if requests else []:
        work.wait()
    return received
