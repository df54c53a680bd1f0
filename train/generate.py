"""`worldline generate`: first image, caption and camera path in, a video with its cameras out.

The backend "diffusers" runs the released SANA-WM through diffusers' SanaWMPipeline, or any folder saved in
its format, which `worldline.model.exchange.to_diffusers` writes; `--run` takes a run folder of `worldline
train`. The video is stored with a .json of the resolved settings and versions and a .npy of the poses that
were really used.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np

from worldline.annotate.backends import load_backend
from worldline.datasets.clip_video import x264_params
from worldline.train.actions import ActionConfig, parse_actions, poses_of_actions
from worldline.train.overlay import with_control

logger = logging.getLogger(__name__)

BACKENDS = {
    "diffusers": "worldline.train.generate_diffusers:DiffusersGenerator",
    "run": "worldline.train.generate_run:RunBackend",
}
HOW_TO_INSTALL = {"diffusers": "pip install 'worldline[diffusers]'"}
RELEASE = "Efficient-Large-Model/SANA-WM_bidirectional-diffusers"
FOV_RANGE_DEG = (25.0, 120.0)
"""Fields of view the released model was trained on; others are refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig:
    """One video."""

    image: Path
    """The first frame, any size; it is resized and cut at the middle to height x width."""
    out: Path
    """The .mp4 to write; .json and .npy go beside it."""
    prompt: str = ""
    """What is seen, without words for the camera."""
    poses: Path | None = None
    """.npy (F, 4, 4) or (F, 3, 4): world_from_cam, OpenCV axes, metres. Either this or `action`."""
    action: str | None = None
    """Keys held and frames, "w-80,dw-40,none-8": w/s forward and back, a/d turn, i/k look up and down, j/l step
    sideways, none holds still. The released pipeline's own strings turn with j/l and step with a/d."""
    speed: ActionConfig = field(default_factory=ActionConfig)
    """How fast the keys of `action` move the camera."""
    intrinsics: Path | None = None
    """.npy (4,), (F, 4), (3, 3) or (F, 3, 3) in pixels of `image`. Either this or `fov_deg`."""
    fov_deg: float | None = None
    """Horizontal field of view of `image`, with square pixels and the principal point in the middle."""
    backend: str | None = None
    """"diffusers" or "run"; None: run where `run` is given, else diffusers."""
    run: Path | None = None
    """Folder of one of our own training runs, which then makes the video at the size it was trained with."""
    refine: Path | None = None
    """Folder of a refiner's run, which goes over the latents of `run` once more; with the backend diffusers the folder
    of a SanaWMLTX2Refiner, whose video begins with the second pose."""
    staggered: bool = False
    """Denoise the chunks of a chunk-causal run together, window by window, each a share of the schedule behind the one
    before; else one after the other, with carried state."""
    model: str = RELEASE
    """Repository or folder of the weights, without `run`."""
    num_frames: int | None = None
    """At most this many frames. None: 161 of the released model, which cuts to 8 k + 1; the whole path of a run."""
    overlay: bool = False
    """Draw keys and path onto the frames."""
    height: int = 704
    """Pixels; the released model knows 704 x 1280 only, a run its own size only."""
    width: int = 1280
    """Pixels."""
    fps: int = 16
    """Poses a second; 16 is the rate of training. A run that was trained on every n-th frame writes fps / n."""
    steps: int = 60
    """Denoising steps."""
    guidance: float | None = None
    """Classifier-free guidance; 1 is none and twice as fast. None: 5 for the released model, 1 for a run."""
    seed: int = 0
    """Of the noise."""
    device: str | None = None
    """torch device; None: "cuda" where there is one, else "cpu", which is for small sizes."""
    dtype: str | None = None
    """"bfloat16" or "float32"; None: bfloat16 on GPUs. With `run` also "fp8" or "nvfp4", its linear layers alone."""

    def __post_init__(self) -> None:
        if (self.poses is None) == (self.action is None):
            raise ValueError("give the camera path as either --poses FILE.npy or --action TEXT")
        if self.action is not None:
            parse_actions(self.action)
        if (self.intrinsics is None) == (self.fov_deg is None):
            raise ValueError("give the lens as either --intrinsics FILE.npy or --fov-deg DEGREES")
        if self.out.suffix != ".mp4":
            raise ValueError(f"--out must end in .mp4, got {self.out}")
        known = ("bfloat16", "float32") + (("fp8", "nvfp4") if self.run is not None else ())
        if self.dtype not in (None, *known):
            raise ValueError(f"dtype {self.dtype!r}: known are {', '.join(known)}")
        if self.staggered and self.run is None:
            raise ValueError("--staggered is for a chunk-causal --run")
        if self.backend == "run" and self.run is None:
            raise ValueError("the backend run needs --run FOLDER")
        for name in ("num_frames", "height", "width", "fps", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """What a backend returns."""

    frames: Iterable[np.ndarray]
    """F frames [H, W, 3] uint8; may be made while they are read."""
    world_from_cam: np.ndarray
    """[F, 3, 4], the poses of the frames."""
    fps: float
    """Frames a second of the video."""
    how: str
    """How a path longer than one pass of the model was made; goes into the record."""


class Generator(Protocol):
    """A backend: built with (model, device, dtype), called with one video's inputs."""

    def __call__(
        self,
        config: GenerateConfig,
        image_rgb: np.ndarray,
        world_from_cam: np.ndarray,
        fxfycxcy_px: np.ndarray,
    ) -> Generated:
        """image_rgb [h, w, 3] uint8, world_from_cam [F, 3, 4], fxfycxcy_px [4] or [F, 4]."""
        ...


def generate(config: GenerateConfig) -> Path:
    """Makes the video and returns its path. Raises ValueError for inputs that do not fit, MissingBackend."""
    name = config.backend or ("diffusers" if config.run is None else "run")
    backend = load_backend(name, BACKENDS, HOW_TO_INSTALL)
    image = read_image(config.image)
    world_from_cam = camera_path(config)
    fxfycxcy_px = read_intrinsics(config, image.shape[1], image.shape[0])
    device = config.device or ("cuda" if has_gpu() else "cpu")
    dtype = config.dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    source = config.model if config.run is None else str(config.run)
    generator: Generator = backend(source, device=device, dtype=dtype)
    logger.info("generating with %s from %s", name, source)
    made = generator(config, image, world_from_cam, fxfycxcy_px)
    frames = made.frames
    if config.overlay:
        keys = _keys(config, len(made.world_from_cam), round(config.fps / made.fps))
        frames = with_control(frames, made.world_from_cam, keys)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    np.save(config.out.with_suffix(".npy"), made.world_from_cam)
    record = _record(config, name, made)
    config.out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    write_video(config.out, frames, fps=made.fps)
    return config.out


def has_gpu() -> bool:
    """Whether torch sees one."""
    import torch

    return torch.cuda.is_available()


def _keys(config: GenerateConfig, num_frames: int, step: int) -> list[str] | None:
    """Keys held at each of the frames that were made, every `step`-th pose of the action; None without one."""
    if config.action is None:
        return None
    held = parse_actions(config.action)
    return [held[min(len(held) - 1, step * i)] for i in range(num_frames)]


def read_image(path: Path) -> np.ndarray:
    """An image file as [h, w, 3] uint8 RGB."""
    try:
        with av.open(str(path)) as container:
            return next(container.decode(video=0)).to_ndarray(format="rgb24")
    except (OSError, av.error.FFmpegError, StopIteration, IndexError) as error:
        raise ValueError(f"{path} is not a readable image: {error}") from error


def camera_path(config: GenerateConfig) -> np.ndarray:
    """world_from_cam [F, 3, 4] of the poses file or of the action string."""
    if config.poses is not None:
        return read_poses(config.poses)
    assert config.action is not None
    return poses_of_actions(config.action, config.speed)


def read_poses(path: Path) -> np.ndarray:
    """world_from_cam [F, 3, 4] of a .npy; raises ValueError unless they are rigid transforms."""
    poses = np.load(path, allow_pickle=False)
    if poses.ndim != 3 or poses.shape[1:] not in ((4, 4), (3, 4)) or len(poses) == 0:
        raise ValueError(f"{path}: poses are (F, 4, 4) or (F, 3, 4), got {poses.shape}")
    poses = poses[:, :3].astype(np.float64)
    rotation = poses[:, :, :3]
    error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max()
    if not (np.isfinite(poses).all() and error < 1e-3 and (np.linalg.det(rotation) > 0).all()):
        raise ValueError(f"{path}: not rigid transforms (rotation off by {error:.2g}); is it world_from_cam?")
    return poses


class LensChoice(Protocol):
    """A config that states the lens in one of two ways."""

    @property
    def fov_deg(self) -> float | None: ...

    @property
    def intrinsics(self) -> Path | None: ...


def read_intrinsics(config: LensChoice, width: int, height: int) -> np.ndarray:
    """fxfycxcy_px [4] or [F, 4] for an image of this size; raises ValueError outside FOV_RANGE_DEG."""
    if config.fov_deg is not None:
        focal_px = 0.5 * width / math.tan(0.5 * math.radians(config.fov_deg))
        values = np.array([focal_px, focal_px, 0.5 * width, 0.5 * height])
    else:
        assert config.intrinsics is not None
        values = np.load(config.intrinsics, allow_pickle=False).astype(np.float64)
        if values.shape[-2:] == (3, 3):
            values = np.stack(
                [values[..., 0, 0], values[..., 1, 1], values[..., 0, 2], values[..., 1, 2]], axis=-1
            )
        if values.ndim not in (1, 2) or values.shape[-1] != 4:
            raise ValueError(f"{config.intrinsics}: intrinsics of shape {values.shape}")
    fov_deg = np.degrees(2 * np.arctan(np.array([width, height]) / (2 * values[..., :2])))
    low, high = FOV_RANGE_DEG
    if not ((fov_deg >= low) & (fov_deg <= high)).all():
        raise ValueError(
            f"field of view {fov_deg.min():.0f} ... {fov_deg.max():.0f} deg is not in {low} ... {high}"
        )
    return values


def write_video(path: Path, frames: Iterable[np.ndarray], *, fps: float) -> None:
    """[H, W, 3] uint8 frames as H.264 while they come; the file has its name once it is whole.

    What there was when an exception came, Ctrl-C for one, stays playable under NAME.partial.mp4. Raises ValueError
    without any frame.
    """
    temporary = partial_path(path)
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError(f"{path}: no frame was made")
    height, width = first.shape[0] // 2 * 2, first.shape[1] // 2 * 2  # 4:2:0 needs even sizes
    with av.open(str(temporary), "w") as container:
        options = {"crf": "16", "x264-params": x264_params()}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        try:
            for frame in itertools.chain([first], iterator):
                cut = np.ascontiguousarray(frame[:height, :width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(cut, format="rgb24")))
        finally:
            container.mux(stream.encode())
    os.replace(temporary, path)


def partial_path(path: Path) -> Path:
    """Where the frames of a video go until it is whole."""
    return path.with_name(path.stem + ".partial.mp4")


def _record(config: GenerateConfig, backend: str, made: Generated) -> dict[str, Any]:
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(config).items()
    }
    packages = ("torch", "diffusers", "transformers")
    installed = {dist.metadata["Name"].lower() for dist in metadata.distributions() if dist.metadata["Name"]}
    versions = {name: metadata.version(name) for name in packages if name in installed}
    facts = {"backend": backend, "fps": made.fps, "num_frames": len(made.world_from_cam), "how": made.how}
    return facts | {"config": settings, "versions": versions}


def main(config: GenerateConfig) -> int:
    """Exit status 0 with the video's path printed, 2 for inputs that do not fit, 130 Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        print(generate(config))
    except ValueError as error:
        logger.error("%s", error)
        return 2
    except KeyboardInterrupt:
        partial = partial_path(config.out)
        kept = f"the frames made so far are in {partial}" if partial.exists() else "no frame was made yet"
        logger.error("stopped; %s", kept)
        return 130
    return 0
