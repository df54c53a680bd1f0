"""Does a chunk-causal stream cost the same after ten minutes as after one? Latency and memory of long videos.

Models of random weights are driven by keys as `worldline drive` drives a run, as fast as they go, each length in a
process of its own: state of the gated delta rule and tails of the convolutions carried over, softmax blocks with a
sink and a window, frames decoded chunk by chunk and written into an mp4 while they come. One row has no window, to
show what the window is for; two have a refiner, which goes over the stream block by block.
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
from worldline.train.presets import tiny_chunk_causal, walk_model, walk_refiner

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
    endless_s: float = 240.0
    """Of the stream without a window, whose chunks take longer and longer."""
    tiny_s: float = 90.0
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
    is_refined: bool = False

    def generator(self) -> RunGenerator:
        """Of runs with random weights."""
        refiner = None
        if self.is_refined:
            refiner = random_run(walk_refiner("none", Path("none"), Path("none")))
        return RunGenerator(random_run(config_of(self)), refiner=refiner)


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
    """Drives for `video_s` seconds of video and says what each chunk took.

    During its last minute another stream begins and is driven in turn with it: the machine does the same for both, so
    that a difference between them is one of length.
    """
    torch.set_num_threads(1)
    generator = stream.generator()
    size = CHUNKS[1] if generator.refiner is None else generator.refiner.chunks[1]
    fps = POSES_PER_S / generator.frame_step
    num_frames = round(stream.video_s * fps)
    num_chunks = 1 + round(num_frames / (size * generator.autoencoder.time_stride))
    minute = round(num_chunks * 60 / stream.video_s)
    process = psutil.Process()
    latencies_s, young_s, memory_mib = list[float](), list[float](), list[float]()

    def frames() -> Iterator[np.ndarray]:
        old, young = driven(generator, stream.steps), driven(generator, stream.steps)
        for index in range(num_chunks):
            has_two = index >= num_chunks - minute
            # Whoever comes first runs beside the encoder of the mp4, so they take turns in that too.
            if has_two and index % 2:
                young_s.append(next(young)[1])
            made, latency_s = next(old)
            latencies_s.append(latency_s)
            memory_mib.append(process.memory_info().rss / 2**20)
            if has_two and not index % 2:
                young_s.append(next(young)[1])
            yield from made

    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder) / "stream.mp4", itertools.islice(frames(), num_frames), fps=fps)
    latencies_ms, young_ms = 1e3 * np.array(latencies_s), 1e3 * np.array(young_s)
    half = minute // 2  # by then the young stream's window is full
    window = stream.span.window_frames
    return {
        "model": stream.model + (" + refiner" if stream.is_refined else ""),
        "looks back": "without end" if window is None else f"{stream.span.sink_frames} + {window}",
        "video [s]": stream.video_s,
        "shown [frames/s]": fps,
        "made [frames/s]": num_frames / sum(latencies_s),
        "chunks": num_chunks,
        "first minute: latency, median [ms]": float(np.median(latencies_ms[1:minute])),
        "95 % [ms]": float(np.quantile(latencies_ms[1:minute], 0.95)),
        "last half minute: median [ms]": float(np.median(latencies_ms[-half:])),
        "95 % of it [ms]": float(np.quantile(latencies_ms[-half:], 0.95)),
        "in turn with it, half a minute old: median [ms]": float(np.median(young_ms[-half:])),
        "memory after a minute [MiB]": memory_mib[minute - 1],
        "peak memory [MiB]": max(memory_mib),
    }


def driven(generator: RunGenerator, steps: int) -> Iterator[tuple[np.ndarray, float]]:
    """Frames [n, H, W, 3] of each chunk and the seconds it took, without end."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (generator.height, generator.width, 3), dtype=np.uint8)
    focal_px = 0.7 * generator.width
    lens = Intrinsics(
        fxfycxcy_px=np.array([focal_px, focal_px, 0.5 * generator.width, 0.5 * generator.height]),
        width=generator.width,
        height=generator.height,
    )
    stepper, keys, asked_s = ActionStepper(), itertools.cycle(KEYS), 0.0

    def next_poses(count: int) -> list[np.ndarray]:
        nonlocal asked_s
        asked_s = time.perf_counter()
        held, poses = next(keys), []
        for _ in range(count):
            for _ in range(generator.frame_step):
                stepper.step(held)
            poses.append(stepper.pose)
        return poses

    for frames in generator.stream_live(image, lens, next_poses, steps=steps):
        yield frames, time.perf_counter() - asked_s


def main(job: Job) -> int:
    """Exit status 0, the report written."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    streams = [
        Stream(model="walk", span=WINDOWED, video_s=job.short_s, steps=job.steps),
        Stream(model="walk", span=WINDOWED, video_s=job.long_s, steps=job.steps),
        Stream(model="walk", span=AttentionSpan(), video_s=job.endless_s, steps=job.steps),
        Stream(model="walk", span=WINDOWED, video_s=job.short_s, steps=job.steps, is_refined=True),
        Stream(model="walk", span=WINDOWED, video_s=job.long_s, steps=job.steps, is_refined=True),
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
latency goes from asking for the keys to having decoded frames. During the last minute a second stream begins and takes
turns with the first: the load of the machine is the same for both, which it was not for the first and the last minute.
With the refiner frames come in blocks of three latent frames, three more steps and a clean pass each; the latency is from
the last keys asked for before a block.
"Looks back": latent frames of the sink and of the window that softmax blocks read before the chunk.
Memory is the process's resident set, with the interpreter and torch.
Frames/s made are frames over the sum of latencies.
The encoder of the mp4 is in the memory, not in the latency.""",
        packages=("torch", "av"),
        results_dir=job.out,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Job)))
