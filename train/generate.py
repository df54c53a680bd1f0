"""`worldline generate`: first image, caption and camera path in, a video with its cameras out.

The backend "diffusers" runs the released SANA-WM through diffusers' SanaWMPipeline, or any folder saved in
its format, which `worldline.model.exchange.to_diffusers` writes. The video is stored with a .json of the
resolved settings and versions and a .npy of the poses that were really used.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np

from worldline.annotate.backends import load_backend
from worldline.train.actions import ActionConfig, parse_actions, poses_of_actions

logger = logging.getLogger(__name__)

BACKENDS = {"diffusers": "worldline.train.generate_diffusers:DiffusersGenerator"}
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
    backend: str = "diffusers"
    """Which generator."""
    model: str = RELEASE
    """Repository or folder of the weights."""
    num_frames: int = 161
    """At most this many frames; cut to 8 k + 1 and to the path's length."""
    height: int = 704
    """Pixels; the released model knows 704 x 1280 only."""
    width: int = 1280
    """Pixels."""
    fps: int = 16
    """Of the written video; 16 is the rate of the released model's training."""
    steps: int = 60
    """Denoising steps."""
    guidance: float = 5.0
    """Classifier-free guidance; 1 is none and twice as fast."""
    seed: int = 0
    """Of the noise."""
    device: str = "cuda"
    """torch device; "cpu" works at small sizes."""
    dtype: str = "bfloat16"
    """"bfloat16" or "float32"."""

    def __post_init__(self) -> None:
        if (self.poses is None) == (self.action is None):
            raise ValueError("give the camera path as either --poses FILE.npy or --action TEXT")
        if self.action is not None:
            parse_actions(self.action)
        if (self.intrinsics is None) == (self.fov_deg is None):
            raise ValueError("give the lens as either --intrinsics FILE.npy or --fov-deg DEGREES")
        if self.out.suffix != ".mp4":
            raise ValueError(f"--out must end in .mp4, got {self.out}")
        if self.dtype not in ("bfloat16", "float32"):
            raise ValueError(f"dtype {self.dtype!r}: known are bfloat16, float32")
        for name in ("num_frames", "height", "width", "fps", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """What a backend returns."""

    frames: np.ndarray
    """[F, H, W, 3] uint8"""
    world_from_cam: np.ndarray
    """[F, 3, 4], the poses of the frames."""


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
    backend = load_backend(config.backend, BACKENDS, HOW_TO_INSTALL)
    image = read_image(config.image)
    world_from_cam = camera_path(config)
    fxfycxcy_px = read_intrinsics(config, image.shape[1], image.shape[0])
    generator: Generator = backend(config.model, device=config.device, dtype=config.dtype)
    logger.info("generating with %s from %s", config.backend, config.model)
    made = generator(config, image, world_from_cam, fxfycxcy_px)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_video(config.out, made.frames, fps=config.fps)
    np.save(config.out.with_suffix(".npy"), made.world_from_cam)
    config.out.with_suffix(".json").write_text(json.dumps(_record(config), indent=2) + "\n", encoding="utf-8")
    return config.out


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


def read_intrinsics(config: GenerateConfig, width: int, height: int) -> np.ndarray:
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


def write_video(path: Path, frames: np.ndarray, *, fps: int) -> None:
    """[F, H, W, 3] uint8 as H.264, written under a temporary name and renamed."""
    temporary = path.with_name(path.stem + ".partial.mp4")
    height, width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2  # 4:2:0 needs even sizes
    with av.open(str(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    os.replace(temporary, path)


def _record(config: GenerateConfig) -> dict[str, Any]:
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(config).items()
    }
    packages = ("torch", "diffusers", "transformers")
    installed = {dist.metadata["Name"].lower() for dist in metadata.distributions() if dist.metadata["Name"]}
    versions = {name: metadata.version(name) for name in packages if name in installed}
    return {"config": settings, "versions": versions}


def main(config: GenerateConfig) -> int:
    """Exit status 0 with the video's path printed, 2 for inputs that do not fit."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        print(generate(config))
    except ValueError as error:
        logger.error("%s", error)
        return 2
    return 0
