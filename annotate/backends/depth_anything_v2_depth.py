"""Depth Anything V2, metric heads (Yang et al., 2024), through transformers.

The published weights come in an indoor (up to 20 m) and an outdoor (up to 80 m) kind and in three sizes, of
which Small is Apache-2.0 and the larger are CC-BY-NC:
`depth-anything/Depth-Anything-V2-Metric-{Indoor,Outdoor}-{Small,Base,Large}-hf`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import DepthAnythingForDepthEstimation

# The PIL version of the processor: the default one needs torchvision.
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

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

WEIGHTS = "depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf"


class DepthAnythingV2Depth:
    """`depth_anything_v2_metric` of annotate/depth.py."""

    def __init__(self, config: DepthConfig) -> None:
        self.device, self.batch_size = pick_device(config.device), config.batch_size
        weights = weights_or_published(config.weights, WEIGHTS)
        self.model = DepthAnythingForDepthEstimation.from_pretrained(weights).eval()
        torch.nn.Module.to(self.model, self.device)
        if self.model.config.depth_estimation_type != "metric":
            raise ValueError(
                f"{weights} estimates relative depth; metric weights have '-Metric-' in their name"
            )
        self.processor = DPTImageProcessorPil.from_pretrained(weights)

    @torch.inference_mode()
    def __call__(
        self, frames: FrameSource, frame_idx: Sequence[int], reconstruction: Reconstruction | None
    ) -> Iterator[DepthMap]:
        for chosen, images in batches(frames, frame_idx, self.batch_size):
            height, width = images[0].shape[:2]
            inputs = self.processor(images=images, return_tensors="pt").to(self.device)
            z = resized(self.model(**inputs).predicted_depth, height, width, "bicubic")
            for index, one in zip(chosen, z, strict=True):
                camera = given_camera(reconstruction, index, height, width)
                yield depth_map(index, one, DepthKind.METRIC, camera)
