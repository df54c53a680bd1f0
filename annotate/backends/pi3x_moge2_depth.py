"""Pi3X depth in MoGe-2 metres, fused frame by frame: the pair SANA-WM anchors its trajectories with.

Pi3X (yyfz/Pi3; code BSD-3, weights CC-BY-NC 4.0) sees a chunk of frames at once and so agrees with itself
from frame to frame; MoGe-2 gives each frame metres. Both are on GitHub only. Pi3X is run without its optional
conditioning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from pi3.models.pi3x import Pi3X
from torch.nn import functional

from worldline.annotate.backends.moge2_depth import Moge2Depth
from worldline.annotate.backends.torch_maps import (
    depth_map,
    pick_device,
    resized,
    unit_tensor,
    weights_or_published,
)
from worldline.annotate.depth import DepthConfig, DepthKind, DepthMap, FrameSource
from worldline.annotate.depth_fusion import RunningScale, frame_scale
from worldline.annotate.reconstruction import Reconstruction

WEIGHTS = "yyfz233/Pi3X"
_PATCH_PX = 14
_MAX_PIXELS = 255_000
"""Pi3's own example keeps its input below this."""
_CHUNK, _OVERLAP = 16, 8
"""Frames Pi3X sees at once, and those it has seen in the chunk before: their depth ties the chunks' scales
together."""


class Pi3xMoge2Depth:
    """`pi3x_moge2` of annotate/depth.py; `weights` are those of Pi3X, MoGe-2 takes its published ones."""

    def __init__(self, config: DepthConfig) -> None:
        self.device = pick_device(config.device)
        self.model = Pi3X.from_pretrained(weights_or_published(config.weights, WEIGHTS)).eval()
        self.model.disable_multimodal()
        self.model = self.model.to(self.device)
        self.metric = Moge2Depth(
            DepthConfig(backend="moge2", device=config.device, batch_size=config.batch_size)
        )

    @torch.inference_mode()
    def __call__(
        self, frames: FrameSource, frame_idx: Sequence[int], reconstruction: Reconstruction | None
    ) -> Iterator[DepthMap]:
        running = RunningScale()
        before: dict[int, np.ndarray] = {}
        for start in range(0, max(1, len(frame_idx) - _OVERLAP), _CHUNK - _OVERLAP):
            chosen = list(frame_idx[start : start + _CHUNK])
            images = [np.asarray(frames[i]) for i in chosen]
            z, confidence = self._consistent(unit_tensor(images, self.device))
            z = z * chunk_factor(before, dict(zip(chosen, z.cpu().numpy(), strict=True)))
            fresh = [k for k, index in enumerate(chosen) if index not in before]
            before = dict(zip(chosen, z.cpu().numpy(), strict=True))
            height, width = images[0].shape[:2]
            z, confidence = (resized(values, height, width, "bilinear") for values in (z, confidence))
            metric_maps = self.metric(frames, [chosen[k] for k in fresh], reconstruction)
            for k, metric in zip(fresh, metric_maps, strict=True):
                scale = running.update(frame_scale(z[k].cpu().numpy(), metric.z))
                yield depth_map(chosen[k], z[k] * scale, DepthKind.METRIC, metric.intrinsics, confidence[k])

    def _consistent(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Depth and confidence [N, h, w] of one chunk [N, 3, H, W] in the unit of this chunk."""
        small = functional.interpolate(
            images, input_size(*images.shape[-2:]), mode="bilinear", antialias=True
        )
        half = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        with torch.autocast(self.device.type, dtype=half, enabled=self.device.type == "cuda"):
            output = self.model(imgs=small[None])
        return output["local_points"][0, ..., 2].float(), torch.sigmoid(output["conf"][0, ..., 0].float())


def chunk_factor(before: dict[int, np.ndarray], now: dict[int, np.ndarray]) -> float:
    """What to multiply this chunk's depth by so that it agrees with the last one on the frames both hold; 1
    for the first."""
    shared = [i for i in now if i in before]
    if not shared:
        return 1.0
    return frame_scale(np.stack([now[i] for i in shared]), np.stack([before[i] for i in shared]))


def input_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) in multiples of the patch, near the frame's aspect, with at most _MAX_PIXELS pixels."""
    scale = math.sqrt(_MAX_PIXELS / (height * width))
    columns, rows = round(width * scale / _PATCH_PX), round(height * scale / _PATCH_PX)
    while columns * rows * _PATCH_PX**2 > _MAX_PIXELS:
        if columns * height > width * rows:
            columns -= 1
        else:
            rows -= 1
    return max(1, rows) * _PATCH_PX, max(1, columns) * _PATCH_PX
