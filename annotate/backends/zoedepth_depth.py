"""ZoeDepth (Bhat et al., 2023) through transformers: metric depth with one head for rooms and one for
streets.

The input is padded by reflection, as in training, and the padding cut off again. The published routine for
that cut needs torchvision; the same arithmetic stands here in torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from transformers import ZoeDepthForDepthEstimation

# The PIL version of the processor: the default one needs torchvision.
from transformers.models.zoedepth.image_processing_pil_zoedepth import ZoeDepthImageProcessorPil

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

WEIGHTS = "Intel/zoedepth-nyu-kitti"


class ZoeDepthDepth:
    """`zoedepth` of annotate/depth.py."""

    def __init__(self, config: DepthConfig) -> None:
        self.device, self.batch_size = pick_device(config.device), config.batch_size
        weights = weights_or_published(config.weights, WEIGHTS)
        self.model = ZoeDepthForDepthEstimation.from_pretrained(weights).eval()
        torch.nn.Module.to(self.model, self.device)
        self.processor = ZoeDepthImageProcessorPil.from_pretrained(weights)

    @torch.inference_mode()
    def __call__(
        self, frames: FrameSource, frame_idx: Sequence[int], reconstruction: Reconstruction | None
    ) -> Iterator[DepthMap]:
        for chosen, images in batches(frames, frame_idx, self.batch_size):
            height, width = images[0].shape[:2]
            inputs = self.processor(images=images, return_tensors="pt").to(self.device)
            z = without_padding(self.model(**inputs).predicted_depth, height, width, self.processor.do_pad)
            for index, one in zip(chosen, z, strict=True):
                camera = given_camera(reconstruction, index, height, width)
                yield depth_map(index, one, DepthKind.METRIC, camera)


def without_padding(z: torch.Tensor, height: int, width: int, is_padded: bool) -> torch.Tensor:
    """[N, h, w] of the padded input -> [N, height, width] of the frame."""
    pad_y = int(math.sqrt(height / 2) * 3) if is_padded else 0
    pad_x = int(math.sqrt(width / 2) * 3) if is_padded else 0
    z = resized(z, height + 2 * pad_y, width + 2 * pad_x, "bicubic")
    return z[:, pad_y : pad_y + height, pad_x : pad_x + width]
