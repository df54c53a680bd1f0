"""Token-wise gated delta rule over the frames of a clip, in raster order; the attention kind that has fused
kernels.

    S_i = alpha_i S_{i-1} (I - beta_i k_i k_i^T) + beta_i v_i k_i^T        o_i = S_i q_i     (arXiv
    2412.06464)

Tokens of a frame write one after another, so each reads the ones before it, where the frame-wise rule
writes all at once. Keys and queries are made unit vectors and a frame's decay is spread evenly over its
tokens. The plain form works on blocks of tokens: inside a block the rule is a triangular system, between
blocks a state is carried. On CUDA with flash-linear-attention installed its kernel takes over;
`fla_kernels.kernels_name` says which one runs.

Letters: B batch, T latent frames, S tokens a frame, N tokens, H heads, D key dim, E value dim, C tokens a
    block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from worldline.model.chunks import chunk_spans
from worldline.model.fla_kernels import FLA, kernels_name
from worldline.model.gated_delta import DeltaInputs, DeltaState

BLOCK_TOKENS = 64


def token_delta(
    inputs: DeltaInputs, *, chunks: Sequence[int] | None, state: DeltaState | None = None
) -> tuple[Tensor, DeltaState]:
    """Attention output [B, T, S, H, E] and the state; arguments as in `gated_delta`, the normaliser is not
    used.

    Every token reads all earlier tokens of the clip, and with `chunks` the later ones of its own chunk.
    """
    batch, num_frames, num_tokens, num_heads, _ = inputs.keys.shape
    queries = F.normalize(inputs.queries, dim=-1).flatten(1, 2)  # [B, N, H, D]
    keys = F.normalize(inputs.keys, dim=-1).flatten(1, 2)
    values, beta = inputs.values.flatten(1, 2), inputs.beta.flatten(1, 2)
    log_alpha = (inputs.gamma.log() / num_tokens).repeat_interleave(num_tokens, dim=1)  # [B, N, H]
    out, memory = token_rule(
        queries, keys, values, beta=beta, log_alpha=log_alpha, state=state.memory if state else None
    )
    if chunks is not None:
        later = []
        for start, stop in chunk_spans(chunks):
            part = slice(start * num_tokens, stop * num_tokens)
            later.append(_from_later_tokens(*(x[:, part] for x in (queries, keys, values, beta, log_alpha))))
        out = out + torch.cat(later, dim=1)
    out = out.reshape(batch, num_frames, num_tokens, num_heads, -1)
    return out, DeltaState(memory=memory)


def token_rule(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    beta: Tensor,
    log_alpha: Tensor,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal outputs [B, N, H, E] and final state [B, H, E, D].

    queries, keys [B, N, H, D], values [B, N, H, E], beta and log_alpha [B, N, H].
    """
    if _has_kernel(queries.device.type):
        return _fla_rule(queries, keys, values, beta=beta, log_alpha=log_alpha, state=state)
    return blocked_rule(queries, keys, values, beta=beta, log_alpha=log_alpha, state=state)


@torch.compiler.assume_constant_result
def _has_kernel(device_type: str) -> bool:
    """Asked once for each graph that torch.compile traces, which cannot follow the search for a package."""
    return kernels_name(device_type) == FLA


def blocked_rule(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    beta: Tensor,
    log_alpha: Tensor,
    state: Tensor | None = None,
    block_tokens: int = BLOCK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """`token_rule` in plain torch, at least in float32.

    In a block, with G the cumulated log decay, the written values V' solve (I + A) V' = beta (V - e^G K
    S^T) where A = beta e^{G_i - G_j} k_i k_j^T below the diagonal.
    """
    working = queries.dtype if queries.dtype == torch.float64 else torch.float32
    num_tokens = queries.shape[1]
    padding = -num_tokens % block_tokens

    def blocks(x: Tensor) -> Tensor:
        x = F.pad(x.to(working).transpose(1, 2), (0, 0, 0, padding))
        return x.unflatten(2, (-1, block_tokens))  # [B, H, N / C, C, .]

    q, k, v = blocks(queries), blocks(keys), blocks(values)
    b, log_decay = blocks(beta[..., None]), blocks(log_alpha[..., None]).cumsum(dim=-2)
    ratio = (log_decay - log_decay.mT).tril().exp().tril()  # e^{G_i - G_j}, [B, H, N / C, C, C]
    system = (b * ratio * (k @ k.mT)).tril(-1)
    right = torch.cat([b * v, b * log_decay.exp() * k], dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    fresh, erased = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    scores = ratio * (q @ k.mT)
    q_decayed, last = log_decay.exp() * q, log_decay[..., -1:, :]
    k_decayed = (last - log_decay).exp() * k

    batch, _, num_heads, _ = keys.shape
    if state is None:
        state = q.new_zeros(batch, num_heads, v.shape[-1], k.shape[-1])
    # Unbound once: a slice per block would cost its backward a tensor of the sequence's size each.
    per_block = (fresh, erased, scores, q_decayed, k_decayed, last.exp())
    outputs = []
    for new, old, weights, q_block, k_block, decay in zip(*(x.unbind(dim=2) for x in per_block), strict=True):
        written = new - old @ state.mT  # [B, H, C, E]
        outputs.append(q_block @ state.mT + weights @ written)
        state = decay * state + written.mT @ k_block
    return torch.cat(outputs, dim=2)[:, :, :num_tokens].transpose(1, 2), state


def _fla_rule(
    queries: Tensor, keys: Tensor, values: Tensor, *, beta: Tensor, log_alpha: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    # It multiplies operands of one dtype: under autocast the normalised ones come in float32, the others do not.
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else values.dtype
    # Its state is [B, H, D, E] and its default scale 1 / sqrt(D).
    out, final = chunk_gated_delta_rule(
        q=queries.to(dtype),
        k=keys.to(dtype),
        v=values.to(dtype),
        g=log_alpha.float(),
        beta=beta.to(dtype),
        scale=1.0,
        initial_state=None if state is None else state.mT.contiguous(),
        output_final_state=True,
    )
    return out, final.mT


def _from_later_tokens(
    queries: Tensor, keys: Tensor, values: Tensor, beta: Tensor, log_alpha: Tensor
) -> Tensor:
    """What each token reads from the tokens after it: the rule on the flipped sequence, one token late."""

    def late(x: Tensor) -> Tensor:
        flipped = x.flip(1)
        return torch.cat([torch.zeros_like(flipped[:, :1]), flipped[:, :-1]], dim=1)

    out, _ = token_rule(queries.flip(1), late(keys), late(values), beta=late(beta), log_alpha=late(log_alpha))
    return out.flip(1)
