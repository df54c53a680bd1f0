"""flash-linear-attention's Triton kernels on CUDA: whether they are used, its short convolution and its RMS norm.

The package is optional, and what it computes is what the plain forms beside it compute: `temporal.short_conv`
and `attention.WidthNorm` ask here, `token_delta.token_rule` asks as well and calls its own kernel. Under
torch.compile the plain forms run: the compiler fuses them, and would have to stop at these calls.
The output gate has no norm in this architecture, so the package's gated norm has no place.

Letters: B batch, T latent frames, S tokens a frame, C channels, K taps.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Sequence
from importlib import metadata

import torch
import torch.nn.functional as F
from packaging.version import Version
from torch import Tensor

logger = logging.getLogger(__name__)

FLA = "flash-linear-attention"


@functools.cache
def kernels_name(device_type: str) -> str:
    """Whose kernels run on a device, `flash-linear-attention` or `torch`; logged once per device."""
    has_kernels = device_type == "cuda" and importlib.util.find_spec("fla") is not None
    if has_kernels and _miscompiles():
        logger.warning("%s needs Triton 3.7.1 on Hopper: earlier ones make wrong gradients", FLA)
        has_kernels = False
    name = FLA if has_kernels else "torch"
    logger.info("token-wise gated delta rule, short convolution and RMS norm on %s: %s", device_type, name)
    return name


def _miscompiles() -> bool:
    """Triton that flash-linear-attention refuses on Hopper GPUs (its issue 640)."""
    is_affected = Version("3.4") <= Version(metadata.version("triton")) < Version("3.7.1")
    return is_affected and torch.cuda.get_device_capability()[0] == 9


def are_used(x: Tensor) -> bool:
    """Whether the kernels of this module take x: they work in float32 inside, so not in float64."""
    if torch.compiler.is_compiling() or x.dtype == torch.float64:
        return False
    return kernels_name(x.device.type) == FLA


def mirrored_conv(padded: Tensor, weight: Tensor, in_chunk: Sequence[Sequence[bool]] | None) -> Tensor:
    """`temporal.mirrored_sum` by the package's causal convolution: once over the frames as they are, once over each
    chunk backwards without the tap of the frame itself.

    padded [B, K - 1 + T (+ K - 1), S, C], weight [C, K] and in_chunk as there. Returns [B, T, S, C].
    """
    reach = weight.shape[1] - 1
    num_frames = padded.shape[1] - reach * (1 if in_chunk is None else 2)
    dtype = torch.promote_types(padded.dtype, weight.dtype)
    by_token, weight = padded.to(dtype).transpose(1, 2), weight.to(dtype)  # [B, S, ., C]
    y = _causal(by_token[:, :, : reach + num_frames], weight)[:, :, reach:]
    if in_chunk is not None and reach > 0:
        order, place = _backwards(in_chunk)
        # One frame of zeros in front: where a chunk, read backwards, has nothing before it.
        later = F.pad(by_token[:, :, reach:], (0, 0, 1, 0))
        index = torch.tensor(order, device=padded.device)
        weight = torch.cat([weight[:, :-1], torch.zeros_like(weight[:, -1:])], dim=1)
        backwards = _causal(later.index_select(2, index), weight)
        y = y + backwards.index_select(2, torch.tensor(place, device=padded.device))
    return y.transpose(1, 2).contiguous()


def _backwards(in_chunk: Sequence[Sequence[bool]]) -> tuple[list[int], list[int]]:
    """Frames (from 1; 0 is the frame of zeros) in the order that reads each chunk backwards, as many zeros between two
    chunks as a convolution reaches, and the place of each of the T frames in it."""
    reach, num_frames = len(in_chunk), len(in_chunk[0])
    ends = [t + 1 for t in range(num_frames) if t + 1 == num_frames or not in_chunk[0][t]]
    order: list[int] = []
    place = [0] * num_frames
    start = 0
    for end in ends:
        # The last chunk may go on among the frames after these.
        more = sum(bool(same[num_frames - 1]) for same in in_chunk) if end == num_frames else 0
        order += [0] * reach
        for t in reversed(range(start, end + more)):
            if t < num_frames:
                place[t] = len(order)
            order.append(t + 1)
        start = end
    return order, place


def _causal(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise causal convolution of x [B, S, T, C] over T with weight [C, K]."""
    from fla.modules.causal_conv1d import causal_conv1d

    rows = x.flatten(0, 1).contiguous()
    y: Tensor = causal_conv1d(rows, weight.contiguous())[0]
    return y.unflatten(0, x.shape[:2])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of x over its last dimension times weight, in the wider of their dtypes; under autocast in float32, as
    torch's."""
    from fla.modules.norm.layernorm import rms_norm

    x = x.to(torch.promote_types(x.dtype, weight.dtype))
    if torch.is_autocast_enabled(x.device.type):
        x = x.float()
    y: Tensor = rms_norm(x, weight, None, eps=eps)
    return y
