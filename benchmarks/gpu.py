"""The world model on one GPU: its forms against the CPU, its attention against length, its full size in training
and streaming.

    python -m benchmarks.gpu

Needs a CUDA device; the full size (2.66 B parameters) wants 140 GB for training on a minute of video, and what does not
fit is shown as such. Times are of CUDA events, medians after a warm-up. Writes docs/results/gpu.md. `--size small` is
for a small GPU.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from benchmarks.attention_lengths import DIM, HEADS, TOKENS
from benchmarks.gpu_forms import form_rows, fused_rows, length_rows, model_rows, token_rows
from benchmarks.gpu_model import fp8_rows, size_rows, stream_rows
from benchmarks.report import RESULTS_DIR, write_report
from worldline.model.config import SIZES
from worldline.model.rope import Grid

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuBenchmark:
    """What to measure."""

    size: Literal["tiny", "small", "base", "2p6b"] = "2p6b"
    """Of the model that is trained and streamed."""
    height: int = 22
    """Latent rows; 22 x 40 is 704 x 1280 pixels."""
    width: int = 40
    """Latent columns."""
    lengths: tuple[int, ...] = (11, 41, 121)
    """Latent frames of the clips that the model reads; 121 is a minute of video."""
    stream_s: tuple[int, ...] = (60, 600)
    """Seconds of video that are streamed."""
    parts: tuple[Literal["forms", "attention", "kernels", "model", "stream", "fp8"], ...] = (
        "forms",
        "attention",
        "model",
        "stream",
        "fp8",
    )
    """"kernels", not among the defaults, compares with flash-linear-attention, whose first run tries many settings of
    each kernel for minutes."""
    out: Path = RESULTS_DIR
    """Folder of the report."""


def main(config: GpuBenchmark) -> int:
    """Exit status 1 if a limit is passed, 2 without a GPU."""
    if not torch.cuda.is_available():
        print(
            "benchmarks.gpu needs a CUDA device; benchmarks.attention has the CPU's figures", file=sys.stderr
        )
        return 2
    model_config = SIZES[config.size]()
    grids = [Grid(num_frames=count, height=config.height, width=config.width) for count in config.lengths]
    parts: dict[str, dict[str, Callable[[], Iterator[Row]]]] = {
        "forms": {
            "Forms of the gated delta rule in float32, error relative to the recurrence in float64": form_rows,
            "A small model, error relative to the CPU in float64": lambda: model_rows(
                ("hybrid", "frame_delta")
            ),
        },
        "attention": {
            f"Bidirectional attention against length (S = {TOKENS}, D = {DIM}, {HEADS} heads)": length_rows
        },
        "kernels": {
            "A small token-wise model, error relative to the CPU in float64": lambda: model_rows(
                ("token-wise", "token_delta")
            ),
            "Token-wise rule, error relative to float64": token_rows,
            "Elementwise parts at 41 x 880 tokens of 2240 channels, bfloat16": fused_rows,
        },
        "model": {
            f"The model `{config.size}` on {config.height} x {config.width} latents": lambda: size_rows(
                model_config, grids
            )
        },
        "stream": {
            f"Streaming `{config.size}`": lambda: stream_rows(model_config, grids[0], config.stream_s)
        },
        "fp8": {f"`{config.size}` in FP8": lambda: fp8_rows(model_config, grids[:2])},
    }
    tables: dict[str, list[Row]] = {}
    for part in config.parts:
        for title, rows in parts[part].items():
            tables[title] = []
            for row in rows():
                print(row, flush=True)
                tables[title].append(row)
            gc.collect()
            torch.cuda.empty_cache()
    properties = torch.cuda.get_device_properties(0)
    is_ok = all(row.get("ok", True) for rows in tables.values() for row in rows)
    notes = f"Device: {properties.name}, {properties.total_memory / 2**30:.0f} GiB. "
    notes += "All errors are within their limits." if is_ok else "SOME LIMITS WERE PASSED."
    write_report(
        "gpu",
        "The world model on a GPU",
        "python -m benchmarks.gpu",
        tables,
        notes,
        packages=["triton", "flash-linear-attention", "torchao"],
        results_dir=config.out,
    )
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(GpuBenchmark)))
