"""LAION's aesthetic score: CLIP ViT-L/14 and a small network trained on people's ratings of 1 to 10 (Apache-2.0).

Thresholds of 3.5 (NeMo-Curator) and 4 (SpatialVID) refer to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection

from worldline.annotate.backends.torch_maps import pick_device, unit_tensor, weights_or_published
from worldline.filters.content import ContentConfig

CLIP_WEIGHTS = "openai/clip-vit-large-patch14"
WEIGHTS = "ttj/sac-logos-ava1-l14-linearMSE"
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def rating_head(width: int) -> torch.nn.Sequential:
    """Layers as the published file numbers them; its dropouts do nothing here."""
    sizes = (width, 1024, 128, 64, 16)
    layers: list[torch.nn.Module] = []
    for k, (before, after) in enumerate(itertools.pairwise(sizes)):
        layers += [torch.nn.Linear(before, after)] + ([torch.nn.Dropout()] if k < 3 else [])
    return torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], 1))


class AestheticScorer:
    """`aesthetic` of filters/content.py."""

    def __init__(self, config: ContentConfig) -> None:
        self._device = pick_device(config.device)
        clip = weights_or_published(config.clip_weights, CLIP_WEIGHTS)
        self._clip = CLIPVisionModelWithProjection.from_pretrained(clip).eval()
        torch.nn.Module.to(self._clip, self._device)
        self._head = rating_head(self._clip.config.projection_dim)
        weights = weights_or_published(config.aesthetic_weights, WEIGHTS)
        path = Path(weights) / "model.safetensors"
        if not path.exists():
            path = Path(hf_hub_download(weights, "model.safetensors"))
        state = load_file(str(path))
        self._head.load_state_dict({name.removeprefix("layers."): value for name, value in state.items()})
        self._head.eval().to(self._device)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], times_s: Sequence[float]) -> dict[str, Any]:
        """Pictures [H, W, 3] uint8 RGB -> aesthetic: the mean rating of their middle squares."""
        side = self._clip.config.image_size
        mean, deviation = (torch.tensor(v, device=self._device).view(1, 3, 1, 1) for v in (_MEAN, _DEVIATION))
        pixels = unit_tensor([middle_square(image, side) for image in images], self._device)
        features = self._clip(pixel_values=(pixels - mean) / deviation).image_embeds  # [n, width]
        features = features / features.norm(dim=-1, keepdim=True)
        return {"aesthetic": float(self._head(features).mean())}


def middle_square(image: np.ndarray, side_px: int) -> np.ndarray:
    """Scaled so that the shorter side is side_px, then cut to the middle, as CLIP was trained."""
    height, width = image.shape[:2]
    scale = side_px / min(height, width)
    size = (max(side_px, round(width * scale)), max(side_px, round(height * scale)))
    # Area averaging for CLIP's antialiased bicubic: OpenCV's bicubic has none.
    scaled = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    x, y = (size[0] - side_px) // 2, (size[1] - side_px) // 2
    return scaled[y : y + side_px, x : x + side_px]
