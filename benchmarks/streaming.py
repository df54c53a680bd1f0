"""Does a chunk-causal stream cost the same after ten minutes as after one? Latency and memory of long videos.

Models of random weights are driven by keys as `worldline drive` drives a run, as fast as they go, each length in a
process of its own: state of the gated delta rule and tails of the convolutions carried over, softmax blocks with a
sink and a window, frames decoded chunk by chunk and written into an mp4 while they come. One row has no window, to
show what the window is for.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import tyro

from benchmarks.report import RESULTS_DIR, write_report
from worldline.annotate.camera import Intrinsics
from worldline.model.softmax_attention import AttentionSpan
from worldline.model.world_model import WorldModel
from worldline.train.actions import ActionStepper
from worldline.train.checkpoint import Run, new_autoencoder, plain
from worldline.train.config import TrainConfig
from worldline.train.drive import LIVE_WINDOW, POSES_PER_S
from worldline.train.generate import write_video
from worldline.train.generate_run import RunGenerator
from worldline.train.presets import tiny_chunk_causal, walk_model

logger = logging.getLogger(__name__)

CHUNKS = (1, 2)
"""Latent frames of the first chunk and of the others."""
KEYS = ("w", "wd", "d", "", "wa", "s", "il", "kj")
"""Held in turn, a chunk each."""
WINDOWED = AttentionSpan(sink_frames=1, window_frames=LIVE_WINDOW)

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What to measure."""

    short_s: float = 60.0
    """Seconds of video of the short stream."""
    long_s: float = 600.0
    """And of the long one."""
    endless_s: float = 300.0
    """Of the stream without a window, whose chunks take longer and longer."""
    tiny_s: float = 120.0
    """Of the model with the causal autoencoder, which takes the most time for a second of video."""
    steps: int = 4
    """Of sampling."""
    out: Path = RESULTS_DIR
    """Folder of the report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """One row."""

    model: str
    span: AttentionSpan
    video_s: float
    steps: int


def random_run(config: TrainConfig) -> Run:
    """A run of this config whose weights are random and none of them zero."""
    torch.manual_seed(0)
    model, autoencoder = WorldModel(config.model), new_autoencoder(config.autoencoder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return Run(
        model=model.eval(), autoencoder=autoencoder.eval(), config=plain(config), step=0, path=Path("random")
    )


def config_of(stream: Stream) -> TrainConfig:
    """The recipe's walking model with patches, or the small one with the causal autoencoder."""
    nowhere = Path("none")
    preset = {"walk": walk_model, "tiny": tiny_chunk_causal}[stream.model]
    config = preset("none", nowhere, nowhere)
    return replace(config, chunks=CHUNKS, model=replace(config.model, span=stream.span))


def measured(stream: Stream) -> Row:
    """Drives for `video_s` seconds of video and says what each chunk took."""
    torch.set_num_threads(1)
    generator = RunGenerator(random_run(config_of(stream)))
    fps = POSES_PER_S / generator.frame_step
    num_frames = round(stream.video_s * fps)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (generator.height, generator.width, 3), dtype=np.uint8)
    focal_px = 0.7 * generator.width
    lens = Intrinsics(
        fxfycxcy_px=np.array([focal_px, focal_px, 0.5 * generator.width, 0.5 * generator.height]),
        width=generator.width,
        height=generator.height,
    )
    stepper, keys, process = ActionStepper(), itertools.cycle(KEYS), psutil.Process()
    asked: list[tuple[float, float]] = []
    latencies, memory_mib = list[tuple[float, float]](), list[float]()

    def next_poses(count: int) -> list[np.ndarray]:
        asked.append(_clocks())
        held, poses = next(keys), []
        for _ in range(count):
            for _ in range(generator.frame_step):
                stepper.step(held)
            poses.append(stepper.pose)
        return poses

    def frames() -> Iterator[np.ndarray]:
        for made in generator.stream_live(image, lens, next_poses, steps=stream.steps):
            latencies.append((_clocks()[0] - asked[-1][0], _clocks()[1] - asked[-1][1]))
            memory_mib.append(process.memory_info().rss / 2**20)
            yield from made

    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder) / "stream.mp4", itertools.islice(frames(), num_frames), fps=fps)
    wall_s = time.perf_counter() - started_s
    return _row(stream, num_frames / wall_s, fps, 1e3 * np.array(latencies), np.array(memory_mib))


def _clocks() -> tuple[float, float]:
    """Seconds by the wall, and of this thread on a processor: what others compute meanwhile is in the first alone."""
    return time.perf_counter(), time.thread_time()


def _row(
    stream: Stream, frames_per_s: float, fps: float, latencies_ms: np.ndarray, memory_mib: np.ndarray
) -> Row:
    minute = min(len(latencies_ms), round(len(latencies_ms) * 60 / stream.video_s))
    first, last = latencies_ms[1:minute], latencies_ms[-minute:]  # the first chunk also warms up
    window = stream.span.window_frames
    return {
        "model": stream.model,
        "looks back": "without end" if window is None else f"{stream.span.sink_frames} + {window}",
        "video [s]": stream.video_s,
        "chunks": len(latencies_ms),
        "first minute: latency, median [ms]": float(np.median(first[:, 0])),
        "95 % [ms]": float(np.quantile(first[:, 0], 0.95)),
        "processor [ms]": float(np.median(first[:, 1])),
        "last minute: latency, median [ms]": float(np.median(last[:, 0])),
        "95 % of it [ms]": float(np.quantile(last[:, 0], 0.95)),
        "processor then [ms]": float(np.median(last[:, 1])),
        "made [frames/s]": frames_per_s,
        "shown [frames/s]": fps,
        "memory after a minute [MiB]": float(memory_mib[minute - 1]),
        "peak memory [MiB]": float(memory_mib.max()),
    }


def main(job: Job) -> int:
    """Exit status 0, the report written."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    streams = [
        Stream(model="walk", span=WINDOWED, video_s=job.short_s, steps=job.steps),
        Stream(model="walk", span=WINDOWED, video_s=job.long_s, steps=job.steps),
        Stream(model="walk", span=AttentionSpan(), video_s=job.endless_s, steps=job.steps),
        Stream(model="tiny", span=WINDOWED, video_s=job.tiny_s, steps=job.steps),
    ]
    rows = []
    # A process each: memory that an earlier stream left to the allocator would hide growth.
    context = multiprocessing.get_context("spawn")
    for stream in streams:
        with context.Pool(1) as pool:
            rows.append(pool.apply(measured, (stream,)))
        logger.info("%s", rows[-1])
    write_report(
        "streaming",
        "Streams of a chunk-causal model: latency and memory against length",
        "python -m benchmarks.streaming",
        {"Driven by keys, one thread": rows},
        notes=f"""
Random weights: what is measured is the cost of a chunk, not what is seen. `walk` is the recipe's model with patches
(64 x 48, a frame every half second), `tiny` the small model with the causal autoencoder (96 x 64, 16 frames/s, eight
frames a latent frame). A chunk has {CHUNKS[1]} latent frames and takes {job.steps} sampling steps and one clean pass; its
latency goes from asking for the keys to having decoded frames, by the wall; "processor" is the median time it computed
in, without what the machine did for others meanwhile. "Looks back": latent frames of the sink and of the
window that softmax blocks read before the chunk. Memory is the process's resident set, with the interpreter and torch.
The encoder of the mp4 is in the frame rates and the memory, not in the latency.""",
        packages=("torch", "av"),
        results_dir=job.out,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Job)))
