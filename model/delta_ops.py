"""The three steps of the gated delta rule's training form, as operators with their own gradients.

    frame_steps: M_t = gamma_t (I - K_t B_t K_t^T), U_t = V_t B_t K_t^T        for all frames at once
    state_scan:  S_t = S_{t-1} M_t + U_t                                       frame after frame
    read_states: O_t = S_t Q_t                                                 for all frames at once

Registered operators, so that torch.compile sees three nodes and not unrolled loops, and so that nothing of
the size of the clip is kept for the backward pass but the inputs. The steps over all frames go head by head, or
frame by frame where those are fewer: there the matrix products read a clip's tensors where they lie,
[B, T, S, H, D], and what is made on the way has the size of one piece. The scan is one kernel on a GPU that has
Triton (`delta_kernels`) and a loop of products elsewhere; `scan_name` says which runs. Gradients are of first
order: a gradient of a gradient raises.

Letters: B batch, T latent frames, S tokens a frame, H heads, D key dim, E value dim, N = H B.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_MAX_KERNEL_DIM = 128
"""Key dims up to here have the kernel: a frame's transition has to fit the shared memory of a multiprocessor."""


def _by_frame(batch: int, num_frames: int, num_heads: int) -> bool:
    """Whether the steps over all frames go frame by frame: fewer products than head by head in a short chunk."""
    return batch * num_frames < num_heads


def _pieces(x: Tensor) -> list[Tensor]:
    """Tokens [B, T, S, H, .] of each head, [B T, S, .], or of each frame, [H, S, .]; views of a contiguous tensor."""
    batch, num_frames, _, num_heads, _ = x.shape
    frames = x.flatten(0, 1)
    if _by_frame(batch, num_frames, num_heads):
        return list(frames.transpose(1, 2).unbind(dim=0))
    return list(frames.unbind(dim=2))


def _state_pieces(x: Tensor, num_heads: int) -> list[Tensor]:
    """States [N, T, E, D] likewise, [B T, E, D] or [H, E, D]; views of a contiguous tensor."""
    heads = x.unflatten(0, (num_heads, -1))  # [H, B, T, E, D]
    if _by_frame(heads.shape[1], heads.shape[2], num_heads):
        return list(heads.flatten(1, 2).unbind(dim=1))
    return list(heads.flatten(1, 2).unbind(dim=0))


def _gate_pieces(beta: Tensor, gamma: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """beta [B, T, S, H] and gamma [B, T, H] likewise, [., S, 1] and [., 1, 1]."""
    return _pieces(beta[..., None]), _pieces(gamma[:, :, None, :, None])


def _empty_states(like: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """[N, T, rows, columns] for tokens [B, T, S, H, .]."""
    batch, num_frames, _, num_heads, _ = like.shape
    return like.new_empty(num_heads * batch, num_frames, num_rows, num_columns)


# Transitions and updates


@torch.library.custom_op("worldline::frame_steps", mutates_args=())
def frame_steps(keys: Tensor, values: Tensor, beta: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Transition M [N, T, D, D] and update U [N, T, E, D] of each frame.

    keys [B, T, S, H, D], values [B, T, S, H, E], beta [B, T, S, H], gamma [B, T, H].
    """
    num_heads = keys.shape[3]
    transition = _empty_states(keys, keys.shape[-1], keys.shape[-1])
    update = _empty_states(keys, values.shape[-1], keys.shape[-1])
    tokens = (_pieces(keys), _pieces(values), *_gate_pieces(beta, gamma))
    states = (_state_pieces(transition, num_heads), _state_pieces(update, num_heads))
    for k, v, b, g, m, u in zip(*tokens, *states, strict=True):
        written = b * k
        torch.bmm(v.mT, written, out=u)
        torch.bmm(k.mT, written.mul_(-g), out=m)
        m.diagonal(dim1=-2, dim2=-1).add_(g[..., 0])
    return transition, update


@frame_steps.register_fake
def _(keys: Tensor, values: Tensor, beta: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    key_dim, value_dim = keys.shape[-1], values.shape[-1]
    return _empty_states(keys, key_dim, key_dim), _empty_states(keys, value_dim, key_dim)


@torch.library.custom_op("worldline::frame_steps_backward", mutates_args=())
def frame_steps_backward(
    grad_transition: Tensor, grad_update: Tensor, keys: Tensor, values: Tensor, beta: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of keys, values, beta and gamma.

    K B K^T is symmetric, so one product with G + G^T, G the transition's gradient, serves both its factors.
    """
    grad_keys, grad_values, grad_beta, grad_gamma = (
        x.new_empty(x.shape) for x in (keys, values, beta, gamma)
    )
    tokens = (_pieces(keys), _pieces(values), *_gate_pieces(beta, gamma))
    grads = (_pieces(grad_keys), _pieces(grad_values), *_gate_pieces(grad_beta, grad_gamma))
    states = (_state_pieces(x, keys.shape[3]) for x in (grad_transition, grad_update))
    for k, v, b, g, grad_k, grad_v, grad_b, grad_g, grad_m, grad_u in zip(
        *tokens, *grads, *states, strict=True
    ):
        torch.bmm(k, grad_u.mT, out=grad_v)
        from_update = (v * grad_v).sum(dim=-1, keepdim=True)  # [B T, S, 1]
        grad_v.mul_(b)
        both_sides = torch.bmm(k, grad_m + grad_m.mT)  # [B T, S, D]
        from_transition = (k * both_sides).sum(dim=-1, keepdim=True) / 2  # [B T, S, 1]
        torch.bmm(v, grad_u, out=grad_k).sub_(both_sides.mul_(g)).mul_(b)
        torch.sub(from_update, g * from_transition, out=grad_b)
        trace = grad_m.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[:, None, None]
        torch.sub(trace, (b * from_transition).sum(dim=1, keepdim=True), out=grad_g)
    return grad_keys, grad_values, grad_beta, grad_gamma


@frame_steps_backward.register_fake
def _(
    grad_transition: Tensor, grad_update: Tensor, keys: Tensor, values: Tensor, beta: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_keys, grad_values, grad_beta, grad_gamma = (
        x.new_empty(x.shape) for x in (keys, values, beta, gamma)
    )
    return grad_keys, grad_values, grad_beta, grad_gamma


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _frame_steps_backward(ctx: Any, grad_transition: Tensor, grad_update: Tensor) -> tuple[Tensor, ...]:
    return frame_steps_backward(grad_transition, grad_update, *ctx.saved_tensors)


frame_steps.register_autograd(_frame_steps_backward, setup_context=_keep_inputs)


# Reading


@torch.library.custom_op("worldline::read_states", mutates_args=())
def read_states(queries: Tensor, states: Tensor) -> Tensor:
    """Outputs [B, T, S, H, E] of queries [B, T, S, H, D], states [N, T, E, D]."""
    outputs = queries.new_empty(*queries.shape[:-1], states.shape[-2])
    heads = (_pieces(queries), _pieces(outputs), _state_pieces(states, queries.shape[3]))
    for q, out, state in zip(*heads, strict=True):
        torch.bmm(q, state.mT, out=out)
    return outputs


@read_states.register_fake
def _(queries: Tensor, states: Tensor) -> Tensor:
    return queries.new_empty(*queries.shape[:-1], states.shape[-2])


@torch.library.custom_op("worldline::read_states_backward", mutates_args=())
def read_states_backward(grad: Tensor, queries: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of queries and states."""
    grad_queries = queries.new_empty(queries.shape)
    grad_states = states.new_empty(states.shape)
    tokens = (_pieces(grad), _pieces(queries), _pieces(grad_queries))
    by_head = (_state_pieces(x, queries.shape[3]) for x in (states, grad_states))
    for g, q, grad_q, state, grad_state in zip(*tokens, *by_head, strict=True):
        torch.bmm(g, state, out=grad_q)
        torch.bmm(g.mT, q, out=grad_state)
    return grad_queries, grad_states


@read_states_backward.register_fake
def _(grad: Tensor, queries: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    return queries.new_empty(queries.shape), states.new_empty(states.shape)


def _read_states_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return read_states_backward(grad, *ctx.saved_tensors)


read_states.register_autograd(_read_states_backward, setup_context=_keep_inputs)


# The scan


@functools.cache
def scan_name(device_type: str, dtype: torch.dtype, key_dim: int) -> str:
    """Which implementation of the scan runs, "triton" or "torch"; logged once for each kind of input."""
    fits = device_type == "cuda" and dtype == torch.float32 and key_dim <= _MAX_KERNEL_DIM
    has_kernel = fits and importlib.util.find_spec("triton") is not None and _has_tensor_cores()
    name = "triton" if has_kernel else "torch"
    logger.info("scan of the gated delta rule on %s, %s, %d channels: %s", device_type, dtype, key_dim, name)
    return name


def _has_tensor_cores() -> bool:
    """Those that take tf32, and with them the shared memory that a transition needs: from Ampere on."""
    return torch.cuda.get_device_capability() >= (8, 0)


def _has_kernel(x: Tensor) -> bool:
    return scan_name(x.device.type, x.dtype, x.shape[-1]) == "triton"


@torch.library.custom_op("worldline::state_scan", mutates_args=())
def state_scan(transition: Tensor, update: Tensor, start: Tensor, reverse: bool) -> Tensor:
    """S_t = S_{t-1} transition_t + update_t, or from the last frame to the first with `reverse`.

    transition [N, T, D, D], update [N, T, E, D], start [N, E, D] -> [N, T, E, D].
    """
    if _has_kernel(update):
        from worldline.model.delta_kernels import scan

        return scan(transition, update, start, reverse=reverse)
    states = update.new_empty(update.shape)
    steps = list(zip(transition.unbind(dim=1), update.unbind(dim=1), states.unbind(dim=1), strict=True))
    state = start
    for matrix, added, out in reversed(steps) if reverse else steps:
        state = torch.baddbmm(added, state, matrix)
        out.copy_(state)
    return states


@state_scan.register_fake
def _(transition: Tensor, update: Tensor, start: Tensor, reverse: bool) -> Tensor:
    return update.new_empty(update.shape)


@torch.library.custom_op("worldline::state_scan_backward", mutates_args=())
def state_scan_backward(
    grad: Tensor, transition: Tensor, start: Tensor, states: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of transition, update and start.

    The update's is a scan the other way: A_t = A_{t+1} transition_{t+1}^T + grad_t.
    """
    adjoint = _adjoint_scan(transition, grad, torch.zeros_like(start), not reverse)
    grad_transition = transition.new_empty(transition.shape)
    first, later = (-1, slice(None, -1)) if reverse else (0, slice(1, None))
    before = states[:, 1:] if reverse else states[:, :-1]
    torch.bmm(start.mT, adjoint[:, first], out=grad_transition[:, first])
    for state, adjoint_n, out in zip(before, adjoint[:, later], grad_transition[:, later], strict=True):
        torch.bmm(state.mT, adjoint_n, out=out)
    return grad_transition, adjoint, torch.bmm(adjoint[:, first], transition[:, first].mT)


def _adjoint_scan(transition: Tensor, grad: Tensor, zero: Tensor, reverse: bool) -> Tensor:
    """A_t = A_s transition_s^T + grad_t, s the frame the scan comes from."""
    if _has_kernel(grad):
        from worldline.model.delta_kernels import scan

        return scan(transition, grad, zero, reverse=reverse, adjoint=True)
    adjoint = grad.new_empty(grad.shape)
    matrices = transition.mT.unbind(dim=1)
    steps = list(zip(matrices, grad.unbind(dim=1), adjoint.unbind(dim=1), strict=True))
    carried, previous = zero, matrices[0]
    for matrix, added, out in reversed(steps) if reverse else steps:
        carried = torch.baddbmm(added, carried, previous)
        out.copy_(carried)
        previous = matrix
    return adjoint


@state_scan_backward.register_fake
def _(
    grad: Tensor, transition: Tensor, start: Tensor, states: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return transition.new_empty(transition.shape), grad.new_empty(grad.shape), start.new_empty(start.shape)


def _keep_scan(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
    transition, _, start, reverse = inputs
    ctx.save_for_backward(transition, start, output)
    ctx.reverse = reverse


def _state_scan_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *state_scan_backward(grad, *ctx.saved_tensors, ctx.reverse), None


state_scan.register_autograd(_state_scan_backward, setup_context=_keep_scan)
