"""MoGe-2 (Wang et al., 2025; microsoft/MoGe): metric point maps from one image, with a mask for sky and an
intrinsics estimate.

The package is on GitHub only and draws in torchvision. Weights on the hub are MIT. Where the focal length is
known it is given to the network, which then only has to find the depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from moge.model.v2 import MoGeModel

from worldline.annotate.backends.torch_maps import (
    batches,
    depth_map,
    given_camera,
    pick_device,
    unit_tensor,
    weights_or_published,
)
from worldline.annotate.camera import Intrinsics
from worldline.annotate.depth import DepthConfig, DepthKind, DepthMap, FrameSource
from worldline.annotate.reconstruction import Reconstruction

WEIGHTS = "Ruicheng/moge-2-vitl-normal"


class Moge2Depth:
    """`moge2` of annotate/depth.py; `weights` is a hub name or a local model.pt."""

    def __init__(self, config: DepthConfig) -> None:
        self.device, self.batch_size = pick_device(config.device), config.batch_size
        self.model = MoGeModel.from_pretrained(weights_or_published(config.weights, WEIGHTS))
        self.model = self.model.to(self.device).eval()

    @torch.inference_mode()
    def __call__(
        self, frames: FrameSource, frame_idx: Sequence[int], reconstruction: Reconstruction | None
    ) -> Iterator[DepthMap]:
        for chosen, images in batches(frames, frame_idx, self.batch_size):
            height, width = images[0].shape[:2]
            cameras = [given_camera(reconstruction, i, height, width) for i in chosen]
            fov_x_deg = None
            if reconstruction is not None:
                fov = [2 * np.arctan(0.5 * width / c.fxfycxcy_px[0]) for c in cameras if c is not None]
                fov_x_deg = torch.tensor(np.rad2deg(fov), dtype=torch.float32, device=self.device)
            # Half precision is for the GPU; on the CPU it is slower and less exact.
            output = self.model.infer(
                unit_tensor(images, self.device), fov_x=fov_x_deg, use_fp16=self.device.type == "cuda"
            )
            for k, index in enumerate(chosen):
                camera = cameras[k] or pixels_from_normalised(
                    output["intrinsics"][k].cpu().numpy(), height, width
                )
                yield depth_map(index, output["depth"][k], DepthKind.METRIC, camera)


def pixels_from_normalised(matrix: np.ndarray, height: int, width: int) -> Intrinsics:
    """MoGe's K [3, 3] is divided by the image's width (first row) and height (second row)."""
    values = [matrix[0, 0] * width, matrix[1, 1] * height, matrix[0, 2] * width, matrix[1, 2] * height]
    return Intrinsics(fxfycxcy_px=np.array(values, dtype=np.float64), width=width, height=height)
