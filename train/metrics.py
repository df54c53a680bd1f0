"""What a stage reports while it trains: RUN/metrics.jsonl, TensorBoard's files beside it, and a line of progress.

`mfu` is model FLOP utilisation (PaLM, arXiv 2204.02311): operations that the forward and backward pass of the step need
(model/accounting.py; activations computed again do not count), over those that the devices could do in its time. The
peak is the data sheet's (dense bfloat16) where the GPU is known, else the rate of a large matrix product measured here.
"""

from __future__ import annotations

import json
import logging
import resource
import time
from typing import Any

import torch

from worldline.datasets.transforms import ClipView
from worldline.model.accounting import forward_flops
from worldline.model.rope import Grid
from worldline.train.config import TrainConfig
from worldline.train.objectives import mixed

logger = logging.getLogger(__name__)

PEAK_TFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "RTX 5090": 210,
    "RTX 4090": 165,
}
"""Dense bfloat16 with float32 sums, by part of the device's name (NVIDIA's data sheets)."""


class MetricsLog:
    """Lines of one run, from step `start` on; what an earlier attempt wrote of later steps is dropped."""

    def __init__(self, config: TrainConfig, start: int, num_processes: int) -> None:
        self._config, self._num_processes = config, num_processes
        self._step, self._at = start, time.monotonic()
        self._flops_per_clip: int | None = None
        self._peak: float | None = None
        self._path = config.out / "metrics.jsonl"
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= start]
            self._path.write_text("".join(kept), encoding="utf-8")
        self._board = _tensorboard(config, start)

    def add(self, step: int, loss: float, norm: float, lr: float, clips: ClipView) -> None:
        """A line for a step; rates are those since the line before."""
        now = time.monotonic()
        done, seconds = step - self._step, max(now - self._at, 1e-9)
        self._step, self._at = step, now
        rate = done * self._config.global_batch / seconds
        line: dict[str, Any] = {
            "step": step,
            "loss": loss,
            "gradient_norm": norm,
            "lr": lr,
            "samples_per_s": rate,
            "peak_memory_gib": peak_memory_bytes(self._config.device) / 2**30,
        }
        if self._config.kind == "flow":
            if self._flops_per_clip is None:
                self._flops_per_clip = 3 * forward_flops(self._config.model, _grid(clips, self._config))
                self._peak = peak_flops(self._config)
            line["tflops_per_s"] = rate * self._flops_per_clip / 1e12
            if self._peak is not None:
                line["mfu"] = rate * self._flops_per_clip / (self._peak * self._num_processes)
        with self._path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in line.items():
                if name != "step":
                    self._board.add_scalar(name, value, step)
            self._board.flush()
        left_s = (self._config.steps - step) * self._config.global_batch / rate
        mfu = f" MFU {100 * line['mfu']:.0f} %," if "mfu" in line else ""
        logger.info(
            "step %d/%d loss %.4f %.2f clips/s,%s %.0f s left",
            step,
            self._config.steps,
            loss,
            rate,
            mfu,
            left_s,
        )


def peak_flops(config: TrainConfig) -> float:
    """Floating-point operations a second that the stage's device can do."""
    device = torch.device(config.device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, tflops in PEAK_TFLOPS.items():
            if part in name:
                return tflops * 1e12
    size = 512 if device.type == "cpu" else 8192
    with mixed(config), torch.no_grad():
        x = torch.randn(size, size, device=device)
        best = float("inf")
        for _ in range(5):
            begin = time.perf_counter()
            float((x @ x)[0, 0])  # waits for the device
            best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def peak_memory_bytes(device: str) -> int:
    """The most this process has held on its GPU, or its resident memory on a CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _grid(clips: ClipView, config: TrainConfig) -> Grid:
    if clips.latent is not None:
        _, _, frames, height, width = clips.latent.shape
    else:
        assert clips.frames is not None
        _, num_frames, _, rows, columns = clips.frames.shape
        stride = config.autoencoder.space_stride
        frames = 1 + (num_frames - 1) // config.view.time_stride
        height, width = rows // stride, columns // stride
    return Grid(num_frames=frames, height=height, width=width)


def _tensorboard(config: TrainConfig, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        logger.info("no TensorBoard files: pip install 'worldline[train]' brings tensorboard")
        return None
    return SummaryWriter(str(config.out / "tensorboard"), purge_step=start + 1)
