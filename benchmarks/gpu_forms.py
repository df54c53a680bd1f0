"""The model's parts on a GPU: every form against the CPU in float64, attention against length, and kernels beside
each other; rows for `benchmarks.gpu`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import attention
from benchmarks.attention_lengths import DIM, HEADS, LENGTHS, RULES, TOKENS, delta_call
from benchmarks.gpu_model import clip, run
from benchmarks.gpu_timing import DEVICE, milliseconds, peak_gib
from worldline.model import fla_kernels
from worldline.model.chunks import chunk_causal, one_chunk
from worldline.model.config import SIZES
from worldline.model.delta_ops import scan_name
from worldline.model.fla_kernels import FLA, kernels_name
from worldline.model.gated_delta import DeltaInputs, gated_delta
from worldline.model.quantize import relative_error
from worldline.model.rope import Grid
from worldline.model.temporal import mirrored_sum
from worldline.model.token_delta import blocked_rule, token_rule
from worldline.model.world_model import WorldModel

Row = dict[str, Any]


# Equality


def moved(inputs: DeltaInputs, dtype: torch.dtype) -> DeltaInputs:
    """Leaves of the same values on the GPU."""
    values = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    return DeltaInputs(**{k: x.detach().to(DEVICE, dtype).requires_grad_() for k, x in values.items()})


def form_rows() -> Iterator[Row]:
    """Each form in float32 on the GPU against the recurrence in float64 on the CPU, forward and gradients."""
    num_frames = 24
    forms: dict[str, tuple[list[int] | None, Callable[[DeltaInputs], Tensor]]] = {
        "chunked, causal": (None, lambda x: gated_delta(x, chunks=None)[0]),
        "chunked, bidirectional": (
            one_chunk(num_frames),
            lambda x: gated_delta(x, chunks=one_chunk(num_frames))[0],
        ),
        "chunked, chunk-causal": (
            chunk_causal(num_frames),
            lambda x: gated_delta(x, chunks=chunk_causal(num_frames))[0],
        ),
        "streaming": (
            chunk_causal(num_frames),
            lambda x: attention.streamed(x, chunk_causal(num_frames)),
        ),
    }
    for shape in [(1, num_frames, 220, 2, 112), (2, num_frames, 33, 3, 24)]:
        truth = attention.random_inputs(shape, torch.float64)
        given = moved(truth, torch.float32)
        for name, (chunks, form) in forms.items():
            reference = gated_delta(truth, chunks=chunks, form="recurrent")[0]
            expected = attention.with_gradients(reference, attention.tensors_of(truth))
            got = attention.with_gradients(form(given), attention.tensors_of(given))
            output, gradients = attention.worst([x.cpu().double() for x in got], expected)
            yield {
                "form": name,
                "B, T, S, H, D": str(shape),
                "scan": scan_name(DEVICE, torch.float32, shape[-1]),
                "output": output,
                "gradients": gradients,
                "limit": 2e-5,
                "ok": max(output, gradients) <= 2e-5,
            }


def model_rows(*kinds: tuple[str, str]) -> Iterator[Row]:
    """A small model of each kind of attention on the GPU against the same on the CPU in float64."""
    for name, attention_kind in kinds:
        config = replace(SIZES["tiny"](), softmax_every=2, attention=attention_kind)
        torch.manual_seed(0)
        model = WorldModel(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        grid = Grid(num_frames=9, height=4, width=6)
        inputs = clip(config, grid, "cpu")
        truth = run(model.double(), inputs, torch.float64)
        model = model.float().to(DEVICE)
        on_gpu = tuple(None if x is None else x.to(DEVICE) for x in inputs[:4])
        given = (*on_gpu, clip(config, grid, DEVICE)[4])
        eager = run(model, given, torch.float32)
        with torch.autocast(DEVICE, torch.bfloat16):
            half = run(model, given, torch.float32)
        compiled = run(torch.compile(model), given, torch.float32)
        for form, out, limit in [
            ("float32", eager, 1e-4),
            ("float32, torch.compile", compiled, 1e-4),
            ("bfloat16 autocast", half, 5e-2),
        ]:
            error = float((out.detach().cpu().double() - truth).norm() / truth.norm())
            yield {"model": name, "form": form, "output": error, "limit": limit, "ok": error <= limit}


# Attention against length


def length_rows() -> Iterator[Row]:
    """The chunked form beside the recurrence and softmax, as benchmarks.attention has them on the CPU."""
    for num_frames in LENGTHS:
        row: Row = {"latent frames": num_frames, "tokens": TOKENS * num_frames}
        for kind, with_gradients in [(k, g) for k in RULES for g in (False, True)]:
            call = delta_call(kind, num_frames, with_gradients=with_gradients, device=DEVICE)
            row[f"{kind} {'with gradients' if with_gradients else 'forward'} ms"] = milliseconds(call)
            if with_gradients:
                row[f"{kind} MB"] = 1024 * peak_gib(call)
        for part in ("forward", "with gradients"):
            row[f"{part} x"] = row[f"recurrence {part} ms"] / row[f"chunked {part} ms"]
        shape = (1, HEADS, TOKENS * num_frames, DIM)
        for dtype in (torch.float32, torch.bfloat16):
            q, k, v = (torch.randn(shape, device=DEVICE, dtype=dtype) for _ in range(3))
            label = f"softmax {str(dtype).removeprefix('torch.')} forward ms"
            row[label] = milliseconds(functools.partial(F.scaled_dot_product_attention, q, k, v))
        yield row


# Kernels of flash-linear-attention beside torch's


def token_rows() -> Iterator[Row]:
    """The token-wise rule: what `token_delta` chooses on this device beside its blocks in torch."""
    for num_frames in (8, 32):
        shape = (1, num_frames * TOKENS, HEADS)

        def leaves(dtype: torch.dtype, shape: tuple[int, ...] = shape) -> list[Tensor]:
            torch.manual_seed(0)
            q, k = (F.normalize(torch.randn(*shape, DIM, device=DEVICE), dim=-1) for _ in range(2))
            rest = [torch.randn(*shape, DIM, device=DEVICE), torch.rand(shape, device=DEVICE)]
            made = [q, k, *rest, -torch.rand(shape, device=DEVICE) / 99]
            return [x.to(dtype).requires_grad_() for x in made]

        def call(rule: Callable[..., tuple[Tensor, Tensor]], x: list[Tensor]) -> Tensor:
            return rule(x[0], x[1], x[2], beta=x[3], log_alpha=x[4], state=None)[0]

        def backward(rule: Callable[..., tuple[Tensor, Tensor]], x: list[Tensor]) -> list[Tensor]:
            out = call(rule, x)
            weights = torch.randn(out.shape, generator=torch.Generator(DEVICE).manual_seed(0), device=DEVICE)
            return [out, *torch.autograd.grad((out * weights).sum(), x)]

        truth = backward(blocked_rule, leaves(torch.float64))
        row: Row = {"latent frames": num_frames, "tokens": shape[1], "chosen": kernels_name(DEVICE)}
        for name, rule, dtype in [
            ("blocks, float32", blocked_rule, torch.float32),
            ("chosen, float32", token_rule, torch.float32),
            ("chosen, bfloat16", token_rule, torch.bfloat16),
        ]:
            x = leaves(dtype)
            got = backward(rule, x)
            errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, truth, strict=True)]
            row |= {f"{name}: output off": errors[0], "gradients off": max(errors[1:])}
            row[f"{name}: gradients off"] = row.pop("gradients off")
            row[f"{name}: ms with gradients"] = milliseconds(functools.partial(backward, rule, x))
        yield row


def fused_rows() -> Iterator[Row]:
    """The key's short convolution and the norms in torch, compiled, and by flash-linear-attention's kernels."""
    channels, taps, frames, tokens = 2240, 4, 41, 880
    x = torch.randn(1, frames, tokens, channels, device=DEVICE, dtype=torch.bfloat16)
    weight = torch.randn(channels, taps, device=DEVICE, dtype=torch.bfloat16)
    gain = torch.ones(channels, device=DEVICE, dtype=torch.bfloat16)
    before, around = F.pad(x, (0, 0, 0, 0, 3, 0)), F.pad(x, (0, 0, 0, 0, 3, 3))
    same = [[t + d < frames for t in range(frames)] for d in range(1, taps)]

    def norm() -> Tensor:
        return F.rms_norm(x, (channels,), eps=1e-5) * gain

    calls: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "causal convolution": (
            functools.partial(mirrored_sum, before, weight, None),
            functools.partial(fla_kernels.mirrored_conv, before, weight, None),
        ),
        "mirrored convolution": (
            functools.partial(mirrored_sum, around, weight, same),
            functools.partial(fla_kernels.mirrored_conv, around, weight, same),
        ),
        "RMS norm": (norm, functools.partial(fla_kernels.rms_norm, x, gain, 1e-5)),
    }
    for name, (plain, fused) in calls.items():
        row: Row = {"what": name, "torch ms": milliseconds(plain)}
        row["torch.compile ms"] = milliseconds(torch.compile(plain))
        if kernels_name(DEVICE) == FLA:
            row[f"{FLA} ms"] = milliseconds(fused)
            row["off by"] = relative_error(fused(), plain())
        row["read and written once, ms"] = milliseconds(functools.partial(torch.clone, x))
        yield row
