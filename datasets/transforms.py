"""A loader's sample in, what training reads of it out: frames or latents, cameras relative to the first frame,
weights of the loss.

A clip is cut to the lengths the autoencoder knows, 8 k + 1 frames for most; its poses become first_from_cam in metres and
its intrinsics follow every resize and crop. A clip whose lengths are not metres is refused unless asked for: read
as metres it would teach that the same motion has any speed. `train/camera_inputs.py` makes the model's ray maps and
per-latent cameras from the result, with the model's own functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldline.annotate.camera import Intrinsics, compose, invert
from worldline.datasets.clip_video import Fit, cover, decode_video
from worldline.datasets.schema import METRIC, ClipRejected
from worldline.datasets.straighten import straighten


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewConfig:
    """Which part of a clip training sees, and how."""

    num_frames: int = 81
    """time_stride k + 1 frames at the shards' 16 a second: 5 s; one minute is 961."""
    time_stride: int = 8
    """Frames a latent frame of the autoencoder. With 1 every frame has its own latents, and windows of cached latents
    may begin anywhere and have any stride; else they are cut at the clip's beginning."""
    width: int | None = None
    """Pixels; None: as written. The picture is scaled to cover the size and cut at the centre."""
    height: int | None = None
    stride: int = 1
    """Every n-th written frame: a slower rate, a longer time."""
    random_start: bool = True
    """Where the window begins: drawn, or at the clip's first posed frame."""
    allow_up_to_scale: bool = False
    """Accept clips whose translation is not in metres. Each is then divided by its path's length over the window, so
    that no unit means anything; a standing camera keeps zero."""
    sigma_translation_m: float = 0.05
    """Error of the camera's place at which a frame's weight is halved: a few percent of the metre that a walking
    camera makes in a second."""
    sigma_rotation_rad: float = 0.01
    """Error of its direction at which the weight is halved; 0.01 rad is some ten pixels of 1280 at 60 degrees."""
    scale_sigma: float = 0.2
    """Relative error of the scale at which the whole clip's weight is halved."""

    def __post_init__(self) -> None:
        if self.time_stride < 1 or self.stride < 1:
            raise ValueError(f"time_stride {self.time_stride} and stride {self.stride} must be positive")
        if self.num_frames < 1 or (self.num_frames - 1) % self.time_stride:
            raise ValueError(f"num_frames {self.num_frames} must be {self.time_stride} k + 1")
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height go together")
        if min(self.sigma_translation_m, self.sigma_rotation_rad, self.scale_sigma) <= 0:
            raise ValueError("sigmas must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipView:
    """One training sample; a batch has a leading dimension B and lists for the strings."""

    clip_id: Any
    frames: Tensor | None
    """[F, 3, H, W] uint8 RGB; None where latents are read instead."""
    latent: Tensor | None
    """The autoencoder's latents of the window, [C, 1 + (F - 1) / time_stride, h, w]; None where frames are read."""
    first_from_cam: Tensor
    """[F, 3, 4] float32, metres unless up to scale; the first is the identity."""
    fxfycxcy_px: Tensor
    """[F, 4] float32 at the size in `size_px`."""
    size_px: tuple[int, int]
    """(width, height)"""
    weight: Tensor
    """[F] float32 in (0, 1]: how far the camera of a frame can be trusted."""
    is_metric: Any
    caption: Any

    def intrinsics(self) -> Intrinsics:
        """The cameras' intrinsics as the model takes them."""
        return Intrinsics(fxfycxcy_px=self.fxfycxcy_px, width=self.size_px[0], height=self.size_px[1])


@dataclass(frozen=True, slots=True)
class TrainingView:
    """A loader's sample -> ClipView; give it to `Loader.map`. What is random follows the sample's seed."""

    config: ViewConfig

    def __call__(self, sample: dict[str, Any]) -> ClipView:
        return training_view(sample, self.config)


def training_view(sample: dict[str, Any], config: ViewConfig) -> ClipView:
    """Cuts one clip to its training window.

    Reads the latents where the sample has them, else the video, whose pictures are straightened where the lens is
    bent. Raises ClipRejected("view", reason): up_to_scale,
    lens_distortion, no_posed_window, and what the decoder says; the loader then takes another sample.
    """
    row = sample["json"]
    is_metric = row.get("scale_status") == METRIC
    if not is_metric and not config.allow_up_to_scale:
        raise ClipRejected(
            "view", "up_to_scale", f"{row['clip_id']}: {row.get('scale_status') or 'no scale'}"
        )
    latent = sample.get("latent.npy")
    if latent is not None and any(row.get("distortion") or ()):
        # Ray maps of the model are of pinholes; a bent picture under straight rays teaches wrong angles, and
        # latents cannot be straightened any more.
        raise ClipRejected("view", "lens_distortion", f"latents of {row['camera_model']} {row['distortion']}")
    rng = np.random.Generator(np.random.Philox(key=sample["__seed__"]))
    posed = _posed(row)
    start = _start(posed, config, rng, is_fixed=latent is not None and config.time_stride > 1)
    frames = start + config.stride * np.arange(config.num_frames)
    lens = _intrinsics(row, frames)
    images = None
    if latent is None:
        images, lens = _images(sample, start, config, lens)
    elif config.width is not None and config.height is not None:
        lens = Fit(lens.width, lens.height, config.width, config.height).camera(lens)
    return ClipView(
        clip_id=row["clip_id"],
        frames=None if images is None else torch.from_numpy(images).permute(0, 3, 1, 2),
        latent=None if latent is None else _latent_window(latent, frames, config),
        first_from_cam=_relative(row, frames, is_metric),
        fxfycxcy_px=torch.from_numpy(lens.fxfycxcy_px.astype(np.float32)),
        size_px=(lens.width, lens.height),
        weight=torch.from_numpy(frame_weights(row, frames, config)),
        is_metric=is_metric,
        caption=row.get("caption"),
    )


def frame_weights(row: dict[str, Any], frames: np.ndarray, config: ViewConfig) -> np.ndarray:
    """[F] float32: 1 / (1 + (sigma / half)^2) of rotation, translation and scale, multiplied.

    Sigmas count relative to the window's first frame, as its poses do. A sigma that is unknown halves the weight:
    unknown is not exact.
    """
    weight = np.ones(len(frames))
    for name, half in (
        ("sigma_translation", config.sigma_translation_m),
        ("sigma_rotation_rad", config.sigma_rotation_rad),
    ):
        if row.get(name) is None:
            weight *= 0.5
            continue
        sigma = np.array(row[name], dtype=np.float64)[frames]
        # Errors grow along the path, so those of two frames share what came before: the difference of variances.
        variance = np.abs(sigma**2 - sigma[0] ** 2)
        weight *= np.where(np.isfinite(variance), 1 / (1 + variance / half**2), 0.5)
    scale_sigma = row.get("scale_sigma")
    weight *= 0.5 if scale_sigma is None else 1 / (1 + (scale_sigma / config.scale_sigma) ** 2)
    return weight.astype(np.float32)


def collate_views(views: Sequence[ClipView]) -> ClipView:
    """[B, ...] of each field; ValueError where sizes differ or some have latents and some frames."""
    if not views:
        raise ValueError("no view to collate")
    if len({view.size_px for view in views}) > 1:
        raise ValueError(f"views of several sizes: {sorted({view.size_px for view in views})}")
    stacked: dict[str, Any] = {}
    for name in ("frames", "latent", "first_from_cam", "fxfycxcy_px", "weight"):
        values = [getattr(view, name) for view in views]
        absent = [value is None for value in values]
        if any(absent) and not all(absent):
            raise ValueError(f"some views have no {name}")
        stacked[name] = None if all(absent) else torch.stack(values)
    listed = {name: [getattr(view, name) for view in views] for name in ("clip_id", "is_metric", "caption")}
    fields: dict[str, Any] = stacked | listed
    return ClipView(**fields, size_px=views[0].size_px)


def _posed(row: dict[str, Any]) -> np.ndarray:
    """[T] bool"""
    if row.get("is_registered") is not None:
        return np.array(row["is_registered"], dtype=bool)
    poses = np.array(row["world_from_cam"], dtype=np.float64).reshape(-1, 12)
    return np.asarray(np.isfinite(poses).all(axis=1))


def _start(posed: np.ndarray, config: ViewConfig, rng: np.random.Generator, *, is_fixed: bool) -> int:
    """First frame of a window that has a pose in every frame.

    Latents are cut at the clip's beginning alone: the autoencoder is causal, so a prefix of its latents is what the
    prefix of the video gives, and no other part is.
    """
    if is_fixed and config.stride != 1:
        raise ValueError("latents have the frame rate they were made at: stride must be 1")
    length = config.stride * (config.num_frames - 1) + 1
    gaps = np.concatenate([[0], np.cumsum(~posed)])
    starts = np.flatnonzero(gaps[length:] == gaps[: max(0, len(gaps) - length)])
    if len(starts) == 0 or (is_fixed and starts[0] != 0):
        raise ClipRejected(
            "view", "no_posed_window", f"{length} frames of {len(posed)}, {int(posed.sum())} posed"
        )
    if is_fixed or not config.random_start:
        return int(starts[0])
    return int(starts[int(rng.random() * len(starts))])


def _relative(row: dict[str, Any], frames: np.ndarray, is_metric: bool) -> Tensor:
    poses = np.array(row["world_from_cam"], dtype=np.float64).reshape(-1, 3, 4)[frames]
    first_from_cam = compose(invert(poses[:1]), poses)
    if not is_metric:
        length = np.linalg.norm(np.diff(first_from_cam[:, :, 3], axis=0), axis=1).sum()
        if length > 0 and math.isfinite(length):
            first_from_cam[:, :, 3] /= length
    return torch.from_numpy(first_from_cam.astype(np.float32))


def _intrinsics(row: dict[str, Any], frames: np.ndarray) -> Intrinsics:
    values = np.array(row["fxfycxcy_px"], dtype=np.float64).reshape(-1, 4)[frames]
    return Intrinsics(
        fxfycxcy_px=values,
        width=row["width"],
        height=row["height"],
        model=row.get("camera_model") or "pinhole",
        distortion=tuple(row.get("distortion") or ()),
    )


def _images(
    sample: dict[str, Any], start: int, config: ViewConfig, lens: Intrinsics
) -> tuple[np.ndarray, Intrinsics]:
    images = decode_video(sample["mp4"], start, config.num_frames, config.stride)
    if images.shape[1:3] != (lens.height, lens.width):
        detail = f"mp4 {images.shape[2]}x{images.shape[1]}, cameras {lens.width}x{lens.height}"
        raise ClipRejected("view", "size_differs", detail)
    if any(lens.distortion):
        images, lens = straighten(images, lens)
    if config.width is None or config.height is None:
        return images, lens
    return cover(images, lens, config.width, config.height)


def _latent_window(latent: np.ndarray, frames: np.ndarray, config: ViewConfig) -> Tensor:
    """The latents of these frames; with a time stride above 1 they begin the clip."""
    wanted = frames if config.time_stride == 1 else np.arange(1 + (len(frames) - 1) // config.time_stride)
    if latent.ndim != 4 or latent.shape[1] <= wanted[-1]:
        raise ClipRejected(
            "view", "latent_too_short", f"latents {latent.shape}, {wanted[-1] + 1} frames wanted"
        )
    return torch.from_numpy(np.ascontiguousarray(latent[:, wanted]))
