"""What the depth networks share: device, batches of frames in, depth maps at the frames' size out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from worldline.annotate.camera import Intrinsics
from worldline.annotate.depth import DepthKind, DepthMap, FrameSource
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.view_selection import frame_camera


def pick_device(name: str | None) -> torch.device:
    """The device named, else cuda where torch finds one, else cpu."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def weights_or_published(weights: str | None, published: str) -> str:
    """A folder or hub name for from_pretrained. Raises ValueError for a path that is not there, before any
    network access."""
    if weights is None:
        return published
    path = Path(weights).expanduser()
    if path.exists():
        return str(path)
    if weights.startswith((".", "/", "~")):
        raise ValueError(f"no weights at {weights}")
    return weights


def batches(
    frames: FrameSource, frame_idx: Sequence[int], batch_size: int
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """(frame indices, their images [H, W, 3] uint8) of at most `batch_size`."""
    for start in range(0, len(frame_idx), batch_size):
        chosen = list(frame_idx[start : start + batch_size])
        yield chosen, [np.asarray(frames[i]) for i in chosen]


def unit_tensor(images: Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
    """[N, 3, H, W] float32 in [0, 1] on `device`."""
    stacked = torch.from_numpy(np.stack(images)).to(device)
    return stacked.permute(0, 3, 1, 2).float() / 255


def resized(values: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """[N, h, w] -> [N, height, width]."""
    if values.shape[-2:] == (height, width):
        return values
    corners = None if mode.startswith("nearest") else False
    return functional.interpolate(values[:, None], (height, width), mode=mode, align_corners=corners)[:, 0]


def given_camera(
    reconstruction: Reconstruction | None, frame_idx: int, height: int, width: int
) -> Intrinsics | None:
    """The reconstruction's intrinsics of a frame at the map's size; None without a reconstruction."""
    return None if reconstruction is None else frame_camera(reconstruction, frame_idx).resized(width, height)


def depth_map(
    frame_idx: int,
    z: torch.Tensor,
    kind: DepthKind,
    intrinsics: Intrinsics | None,
    confidence: torch.Tensor | None = None,
) -> DepthMap:
    """A DepthMap of z [H, W], unknown where z is not finite or not positive; confidence 1 where the network
    gives none."""
    depth = z.float().cpu().numpy()
    is_known = np.isfinite(depth) & (depth > 0)
    certainty = np.ones_like(depth) if confidence is None else confidence.float().cpu().numpy()
    return DepthMap(
        frame_idx=frame_idx,
        z=np.where(is_known, depth, np.nan).astype(np.float32),
        confidence=np.where(is_known, np.clip(certainty, 1e-3, 1), 0).astype(np.float32),
        kind=kind,
        intrinsics=intrinsics,
    )
