"""Depth Anything 3, metric weights (Lin et al., 2025; ByteDance-Seed/Depth-Anything-3): canonical depth times
focal length.

metres = focal length in pixels of the processed image * output / 300, as its authors state, so the focal
length must be known. The published package asks for numpy<2, hence no extra of ours can name it; see
docs/depth.md. Needs a GPU: its forward pass asks CUDA for its number format. Weights DA3METRIC-LARGE are
Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from depth_anything_3.api import DepthAnything3

from worldline.annotate.backends.torch_maps import (
    batches,
    depth_map,
    given_camera,
    pick_device,
    resized,
    weights_or_published,
)
from worldline.annotate.depth import DepthConfig, DepthKind, DepthMap, FrameSource
from worldline.annotate.reconstruction import Reconstruction

WEIGHTS = "depth-anything/DA3METRIC-LARGE"
_CANONICAL_FOCAL_PX = 300.0


class DepthAnything3Depth:
    """`depth_anything_3` of annotate/depth.py."""

    def __init__(self, config: DepthConfig) -> None:
        self.batch_size = config.batch_size
        model = DepthAnything3.from_pretrained(weights_or_published(config.weights, WEIGHTS))
        self.model = model.to(device=pick_device(config.device))

    def __call__(
        self, frames: FrameSource, frame_idx: Sequence[int], reconstruction: Reconstruction | None
    ) -> Iterator[DepthMap]:
        if reconstruction is None:
            raise ValueError("depth_anything_3 needs the focal length: give the clip's reconstruction")
        return self._maps(frames, frame_idx, reconstruction)

    def _maps(
        self, frames: FrameSource, frame_idx: Sequence[int], reconstruction: Reconstruction
    ) -> Iterator[DepthMap]:
        for chosen, images in batches(frames, frame_idx, self.batch_size):
            height, width = images[0].shape[:2]
            prediction = self.model.inference(images)
            # Sky is filled with the farthest depth of the rest; it is unknown.
            sky = np.zeros(prediction.depth.shape, bool) if prediction.sky is None else prediction.sky
            output = torch.from_numpy(np.where(sky, np.nan, prediction.depth).astype(np.float32))
            shrink = output.shape[-1] / width
            # Nearest neighbour keeps the unknown sky from spreading.
            output = resized(output, height, width, "nearest-exact")
            for index, one in zip(chosen, output, strict=True):
                camera = given_camera(reconstruction, index, height, width)
                assert camera is not None
                focal_px = float(camera.fxfycxcy_px[:2].mean()) * shrink
                yield depth_map(index, one * (focal_px / _CANONICAL_FOCAL_PX), DepthKind.METRIC, camera)
