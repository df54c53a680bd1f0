"""`worldline drive`: a run is driven by keys in the browser; or a recorded drive is made into its video again.

The page is served to this machine alone unless `--host` says otherwise. What happens to the world is in
drive_session.py, what is kept of it in drive_recording.py, the web server in drive_server.py.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from worldline.annotate.backends import load_backend
from worldline.annotate.camera import Intrinsics
from worldline.datasets.clip_video import cover
from worldline.datasets.schema import MissingBackend
from worldline.model.softmax_attention import AttentionSpan
from worldline.train.actions import ActionConfig
from worldline.train.checkpoint import load_run
from worldline.train.drive_recording import (
    Head,
    pixels_key,
    poses_of,
    read_recording,
    refuse_another,
    run_key,
)
from worldline.train.drive_session import World, free_take
from worldline.train.generate import has_gpu, partial_path, read_image, read_intrinsics, write_video
from worldline.train.generate_run import RunGenerator

logger = logging.getLogger(__name__)

SERVERS = {"aiohttp": "worldline.train.drive_server:serve"}
HOW_TO_INSTALL = {"aiohttp": "pip install 'worldline[drive]'"}
POSES_PER_S = 16
"""Frames a second of the paths that models are trained on; a run that takes every n-th makes 16 / n frames/s."""
LIVE_WINDOW = 24
"""Latent frames looked back by a run that was trained to look back without end, which no memory holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriveConfig:
    """Drive a run live, or make the video of a recorded drive."""

    run: Path | None = None
    """Run folder of `worldline train`. With `replay`: where it is now, if it was moved."""
    image: Path | None = None
    """The first frame, any size. With `replay`: where it is now, if it was moved."""
    out: Path = Path("drive.mp4")
    """The video; the recording goes beside it as .jsonl. A drive takes the next free name: drive-2.mp4, ..."""
    replay: Path | None = None
    """A recording, whose video is made again as `out`, bit for bit, and not driven."""
    intrinsics: Path | None = None
    """.npy (4,) or (3, 3) in pixels of `image`. Either this or `fov_deg`."""
    fov_deg: float | None = None
    """Horizontal field of view of `image`, with square pixels and the principal point in the middle."""
    prompt: str = ""
    """What is seen, without words for the camera."""
    speed: ActionConfig = field(default_factory=ActionConfig)
    """How fast keys move the camera."""
    steps: int = 6
    """Denoising steps; fewer answer sooner."""
    seed: int = 0
    """Of the noise."""
    window_frames: int | None = None
    """Latent frames the softmax blocks of a chunk-causal run look back, beside the first. None: as trained, or 24
    if that was without end."""
    host: str = "127.0.0.1"
    """Address to serve at. Another than this machine's own lets everyone who reaches it drive."""
    port: int = 8765
    """0 takes a free one."""
    device: str | None = None
    """torch device; None: "cuda" where there is one, else "cpu"."""
    dtype: str | None = None
    """"bfloat16" or "float32"; None: bfloat16 on GPUs."""

    def __post_init__(self) -> None:
        if self.replay is None:
            if self.run is None or self.image is None:
                raise ValueError("give --run FOLDER and --image FILE, or --replay FILE")
            if (self.intrinsics is None) == (self.fov_deg is None):
                raise ValueError("give the lens as either --intrinsics FILE.npy or --fov-deg DEGREES")
        if self.out.suffix != ".mp4":
            raise ValueError(f"--out must end in .mp4, got {self.out}")
        if self.dtype not in (None, "bfloat16", "float32"):
            raise ValueError(f"dtype {self.dtype!r}: known are bfloat16, float32")
        if self.steps < 1 or not 0 <= self.port < 65536:
            raise ValueError(f"steps must be positive and port a port, got {self.steps} and {self.port}")


def open_world(config: DriveConfig) -> World:
    """The run and first frame of a drive. Raises ValueError for what does not fit."""
    assert config.run is not None
    assert config.image is not None
    image = read_image(config.image)
    device = config.device or ("cuda" if has_gpu() else "cpu")
    lens = read_intrinsics(config, image.shape[1], image.shape[0])
    if lens.ndim != 1:
        raise ValueError("a drive takes one lens for the whole video: intrinsics of one frame")
    head = Head(
        run=str(config.run),
        run_key="",
        step=0,
        image=str(config.image),
        image_sha256="",
        fxfycxcy_px=tuple(lens.tolist()),
        prompt=config.prompt,
        seed=config.seed,
        steps=config.steps,
        window_frames=config.window_frames,
        speed=config.speed,
        fps=0.0,
        device=device,
        dtype=config.dtype or ("bfloat16" if device.startswith("cuda") else "float32"),
        num_threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    return _world(head)


def reopen_world(config: DriveConfig, recording: Path, recorded: Head) -> World:
    """The world of a recording. Raises ValueError where run or image is another than the recorded one."""
    torch.set_num_threads(recorded.num_threads)
    now = replace(
        recorded,
        run=str(config.run or recorded.run),
        image=str(config.image or recorded.image),
        torch=torch.__version__,
    )
    world = _world(now)
    refuse_another(recording, recorded, world.head)
    return world


def _world(head: Head) -> World:
    """The world that a head asks for, with what run and image say filled in."""
    run = load_run(Path(head.run))
    image = read_image(Path(head.image))
    generator = RunGenerator(run, device=head.device, dtype=head.dtype)
    if generator.num_frames == 1:
        raise ValueError(f"{head.run} was trained on single frames and cannot be driven")
    window = None
    if generator.chunks is None and head.window_frames is not None:
        raise ValueError("window_frames is for chunk-causal runs; this one is made window by window")
    if generator.chunks is not None:
        span = generator.model.config.span
        window = next(w for w in (head.window_frames, span.window_frames, LIVE_WINDOW) if w is not None)
        generator.model.read_span(AttentionSpan(sink_frames=span.sink_frames, window_frames=window))
    lens = Intrinsics(fxfycxcy_px=np.array(head.fxfycxcy_px), width=image.shape[1], height=image.shape[0])
    images, lens = cover(image[None], lens, generator.width or lens.width, generator.height or lens.height)
    found = replace(
        head,
        run_key=run_key(run),
        step=run.step,
        image_sha256=pixels_key(image),
        window_frames=window,
        fps=POSES_PER_S / generator.frame_step,
    )
    return World(generator=generator, image_rgb=images[0], lens=lens, head=found)


def replay(config: DriveConfig) -> int:
    """Writes the video of `config.replay` to `config.out`; the number of its chunks that differ from the recording.

    Raises ValueError for another run or image than the recording's and for a file that is no recording.
    """
    assert config.replay is not None
    recorded, chunks = read_recording(config.replay)
    world = reopen_world(config, config.replay, recorded)
    poses = poses_of(chunks)
    num_different = 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal num_different
        made = world.generator.stream_live(
            world.image_rgb,
            world.lens,
            lambda count: list(itertools.islice(poses, count)),
            steps=recorded.steps,
            seed=recorded.seed,
            prompt=recorded.prompt,
        )
        for chunk, pixels in zip(chunks, made, strict=True):
            num_different += pixels_key(pixels) != chunk.frames_sha256
            yield from pixels

    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_video(config.out, frames(), fps=recorded.fps)
    return num_different


def main(config: DriveConfig) -> int:
    """Exit status 0; 1 for a replay that differs from its recording, 2 for inputs that do not fit, 130 Ctrl-C.

    Ctrl-C is how a live drive ends, with 0.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if config.replay is not None:
            different = replay(config)
            print(config.out)
            if different:
                logger.error("%d chunks differ from the recording: another device or library?", different)
            return 1 if different else 0
        serve = load_backend("aiohttp", SERVERS, HOW_TO_INSTALL)
        world = open_world(config)
        takes = serve(
            world,
            lambda: free_take(config.out),
            host=config.host,
            port=config.port,
            on_ready=lambda address: print(f"drive at {address} ; Ctrl-C ends it", flush=True),
        )
        for take in takes:
            print(take)
    except (ValueError, MissingBackend) as error:
        logger.error("%s", error)
        return 2
    except KeyboardInterrupt:
        partial = partial_path(config.out)
        logger.error("stopped; %s", f"frames so far are in {partial}" if partial.exists() else "no frame yet")
        return 130
    return 0
