"""Depth Pro (Bochkovskii et al., 2024; apple/ml-depth-pro) through transformers: sharp metric depth from one
image.

The network gives inverse depth for a canonical camera; metres follow from the focal length, the
reconstruction's where there is one, else the one the network reads off the image. Input as the published
image processor makes it, whose class needs torchvision: rescale, normalise by 0.5, resize to a square
bilinearly without antialiasing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional
from transformers import DepthProForDepthEstimation

from worldline.annotate.backends.torch_maps import (
    batches,
    depth_map,
    given_camera,
    pick_device,
    resized,
    unit_tensor,
    weights_or_published,
)
from worldline.annotate.camera import Intrinsics
from worldline.annotate.depth import DepthConfig, DepthKind, DepthMap, FrameSource
from worldline.annotate.reconstruction import Reconstruction

WEIGHTS = "apple/DepthPro-hf"
_MIN_INVERSE_DEPTH = 1e-4
"""The published post-processing clamps here (10 km); this far away counts as unknown."""


class DepthProDepth:
    """`depth_pro` of annotate/depth.py."""

    def __init__(self, config: DepthConfig) -> None:
        self.device, self.batch_size = pick_device(config.device), config.batch_size
        weights = weights_or_published(config.weights, WEIGHTS)
        self.model = DepthProForDepthEstimation.from_pretrained(weights).eval()
        torch.nn.Module.to(self.model, self.device)
        settings = self.model.config
        self.side_px = round(settings.patch_size / min(settings.scaled_images_ratios))  # 1536 as published

    @torch.inference_mode()
    def __call__(
        self, frames: FrameSource, frame_idx: Sequence[int], reconstruction: Reconstruction | None
    ) -> Iterator[DepthMap]:
        for chosen, images in batches(frames, frame_idx, self.batch_size):
            height, width = images[0].shape[:2]
            pixels = (unit_tensor(images, self.device) - 0.5) / 0.5
            pixels = functional.interpolate(
                pixels, (self.side_px, self.side_px), mode="bilinear", align_corners=False
            )
            output = self.model(pixel_values=pixels)
            for k, index in enumerate(chosen):
                camera = given_camera(reconstruction, index, height, width)
                if camera is None:
                    camera = self._own_camera(output.field_of_view, k, height, width)
                inverse = output.predicted_depth[k]
                if camera is not None:
                    inverse = inverse * (width / float(camera.fxfycxcy_px[0]))
                inverse = resized(inverse[None], height, width, "bilinear")[0]
                inverse = torch.where(inverse > _MIN_INVERSE_DEPTH, inverse, torch.nan)
                kind = DepthKind.UP_TO_SCALE if camera is None else DepthKind.METRIC
                yield depth_map(index, 1 / inverse, kind, camera)

    @staticmethod
    def _own_camera(fov_deg: torch.Tensor | None, k: int, height: int, width: int) -> Intrinsics | None:
        """The network's own horizontal field of view as intrinsics; None for weights without that head."""
        if fov_deg is None:
            return None
        focal = 0.5 * width / torch.tan(0.5 * torch.deg2rad(fov_deg.reshape(-1)[k].double())).item()
        centre = torch.tensor([focal, focal, width / 2, height / 2], dtype=torch.float64).numpy()
        return Intrinsics(fxfycxcy_px=centre, width=width, height=height)
