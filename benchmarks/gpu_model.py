"""A whole model on a GPU: forward passes, training steps, streaming and FP8; rows for `benchmarks.gpu`."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_timing import DEVICE, milliseconds, peak_gib
from worldline.annotate.camera import Intrinsics
from worldline.model.accounting import forward_flops
from worldline.model.config import ModelConfig
from worldline.model.quantize import QuantizeConfig, quantize, relative_error
from worldline.model.rope import Grid
from worldline.model.softmax_attention import AttentionSpan
from worldline.model.world_model import StreamState, WorldModel, conditions

TEXT_TOKENS = 300

Row = dict[str, Any]
Clip = tuple[Any, ...]


def clip(config: ModelConfig, grid: Grid, device: str, *, dtype: torch.dtype = torch.float32) -> Clip:
    """Random latents, timesteps, text and its mask, and the cameras of a clip that moves on."""
    generator = torch.Generator().manual_seed(1)
    shape = (1, config.latent_channels, grid.num_frames, grid.height, grid.width)
    latents = torch.randn(shape, generator=generator).to(device, dtype)
    text = torch.randn(1, TEXT_TOKENS, config.text_channels, generator=generator).to(device, dtype)
    mask = torch.ones(1, TEXT_TOKENS, dtype=torch.bool, device=device)
    time = torch.full((1,), 500.0, device=device)
    return latents, time, text, mask, cameras_of(config, grid, device)


def cameras_of(config: ModelConfig, grid: Grid, device: str) -> Any:
    """A camera that goes 5 cm a frame, from the frame the grid begins with."""
    stride = config.camera_grid.time_stride
    first = 0 if grid.first_frame == 0 else stride * (grid.first_frame - 1) + 1
    last = stride * (grid.first_frame + grid.num_frames - 1) + 1
    poses = torch.eye(3, 4).repeat(1, last - first, 1, 1)
    poses[0, :, 2, 3] = 0.05 * torch.arange(first, last)
    pixels = (grid.width * 32, grid.height * 32)
    lens = torch.tensor([0.8 * pixels[0], 0.8 * pixels[0], pixels[0] / 2, pixels[1] / 2])
    intrinsics = Intrinsics(fxfycxcy_px=lens.to(device), width=pixels[0], height=pixels[1])
    return conditions(config, poses.to(device), intrinsics, grid)


def run(model: torch.nn.Module, inputs: Clip, dtype: torch.dtype) -> Tensor:
    latents, time, text, mask, cameras = inputs
    out: Tensor = model(latents.to(dtype), time, text.to(dtype), mask, cameras)
    return out


def size_rows(model_config: ModelConfig, grids: Sequence[Grid]) -> Iterator[Row]:
    """Forward passes in bfloat16, and training steps with autocast, AdamW and checkpointed blocks."""
    for grid in grids:
        flops = forward_flops(model_config, grid, text_tokens=TEXT_TOKENS)
        num_tokens = grid.num_frames * grid.num_tokens
        row: Row = {"latent frames": grid.num_frames, "tokens": num_tokens, "TFLOP": flops / 1e12}
        with torch.device(DEVICE):
            model = WorldModel(model_config).bfloat16()
        inputs = clip(model_config, grid, DEVICE, dtype=torch.bfloat16)
        with torch.no_grad():
            ms = milliseconds(lambda m=model, x=inputs: run(m, x, torch.bfloat16), repeats=2, warm_up=1)
            row["forward GiB"] = peak_gib(lambda m=model, x=inputs: run(m, x, torch.bfloat16))
        row |= {"forward ms": ms, "forward TFLOP/s": flops / ms / 1e9}
        del model, inputs
        row |= training_row(model_config, grid, flops)
        yield row


def training_row(model_config: ModelConfig, grid: Grid, flops: int) -> Row:
    torch.cuda.reset_peak_memory_stats()
    try:
        ms = milliseconds(training_step(model_config, grid), repeats=2, warm_up=1)
    except torch.OutOfMemoryError:
        return {"step ms": None, "step GiB, with weights and AdamW": "does not fit"}
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    return {
        "step ms": ms,
        "step TFLOP/s, of 3 passes": 3 * flops / ms / 1e9,
        "tokens/s": grid.num_frames * grid.num_tokens * 1000 / ms,
        "step GiB, with weights and AdamW": torch.cuda.max_memory_allocated() / 2**30,
    }


def training_step(model_config: ModelConfig, grid: Grid) -> Callable[[], None]:
    """One step of a new model on a clip."""
    with torch.device(DEVICE):
        model = WorldModel(model_config)
    model.checkpoint_blocks = True
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    inputs = clip(model_config, grid, DEVICE)
    target = torch.randn_like(inputs[0])

    def step() -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = (run(model, inputs, torch.float32) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def stream_rows(model_config: ModelConfig, grid: Grid, lengths_s: Sequence[int]) -> Iterator[Row]:
    """A stream, one pass a chunk of 3 latent frames, softmax blocks with a sink and a window."""
    span = AttentionSpan(sink_frames=1, window_frames=9)
    model_config = replace(model_config, span=span)
    with torch.device(DEVICE):
        model = WorldModel(model_config).bfloat16()
    for seconds in lengths_s:
        state: StreamState | None = None
        first, times = 0, []
        torch.cuda.reset_peak_memory_stats()
        while first < 2 * seconds:
            count = 4 if first == 0 else 3
            chunk = replace(grid, num_frames=count, first_frame=first)
            inputs = clip(model_config, chunk, DEVICE, dtype=torch.bfloat16)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            with torch.no_grad():
                _, state = model.stream(*inputs, state)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
            first += count
        yield {
            "video s": seconds,
            "chunks": len(times),
            "ms a chunk, median": statistics.median(times),
            "first ten": statistics.median(times[1:11]),
            "last ten": statistics.median(times[-10:]),
            "passes a second of video": 2 / 3,
            "peak GiB, with weights": torch.cuda.max_memory_allocated() / 2**30,
        }


def fp8_rows(model_config: ModelConfig, grids: Sequence[Grid]) -> Iterator[Row]:
    """The linear layers in FP8 by torchao's kernels beside bfloat16, on random weights."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = WorldModel(model_config).bfloat16()
        for name, parameter in model.named_parameters():
            if name.startswith("final."):
                torch.nn.init.normal_(parameter, std=0.02)
    packed = quantize(model, QuantizeConfig(format="fp8"))
    for grid in grids:
        inputs = clip(model_config, grid, DEVICE, dtype=torch.bfloat16)
        with torch.no_grad():
            out = {name: run(m, inputs, torch.bfloat16) for name, m in (("true", model), ("fp8", packed))}
            times = {
                name: milliseconds(lambda m=m, x=inputs: run(m, x, torch.bfloat16), repeats=2, warm_up=1)
                for name, m in (("bfloat16", model), ("fp8", packed))
            }
        yield {
            "latent frames": grid.num_frames,
            "bfloat16 ms": times["bfloat16"],
            "fp8 ms": times["fp8"],
            "faster x": times["bfloat16"] / times["fp8"],
            "output off by": relative_error(out["fp8"], out["true"]),
        }
