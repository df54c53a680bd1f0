"""People, vehicles and animals by an object detector of transformers (RT-DETRv2, Apache-2.0, unless told otherwise).

Any model of AutoModelForObjectDetection without a "no object" class of its own convention will do: scores are the
sigmoid of its logits, classes the names in its config, as COCO has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from transformers import AutoModelForObjectDetection

from worldline.annotate.backends.torch_maps import pick_device, unit_tensor, weights_or_published
from worldline.filters.content import ContentConfig

WEIGHTS = "PekingU/rtdetr_v2_r18vd"
SIDE_PX = 640
"""The size it was trained at; pictures are squeezed to a square, as its own processor does."""

KINDS = {
    "num_people": {"person"},
    "num_vehicles": {
        *("bicycle", "car", "motorbike", "motorcycle", "aeroplane", "airplane"),
        *("bus", "train", "truck", "boat"),
    },
    "num_animals": {
        *("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
    },
}


class ObjectCounter:
    """`detr` of filters/content.py."""

    def __init__(self, config: ContentConfig) -> None:
        self._device, self._min_confidence = pick_device(config.device), config.min_confidence
        weights = weights_or_published(config.detector_weights, WEIGHTS)
        self._model = AutoModelForObjectDetection.from_pretrained(weights).eval()
        torch.nn.Module.to(self._model, self._device)
        names = {int(k): name.lower() for k, name in self._model.config.id2label.items()}
        self._classes = {kind: [k for k, name in names.items() if name in KINDS[kind]] for kind in KINDS}
        if not all(self._classes.values()):
            raise ValueError(f"{weights}: its classes are not COCO's: {sorted(names.values())[:8]} ...")

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], times_s: Sequence[float]) -> dict[str, Any]:
        """Pictures [H, W, 3] uint8 RGB -> the 95th percentile of each count over them."""
        counts: dict[str, list[int]] = {kind: [] for kind in (*KINDS, "num_entities")}
        for image in images:
            square = cv2.resize(image, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_LINEAR)
            logits = self._model(pixel_values=unit_tensor([square], self._device)).logits[
                0
            ]  # [queries, classes]
            confidence, label = logits.sigmoid().max(dim=1)
            found = label[confidence >= self._min_confidence].cpu().numpy()
            own = {kind: int(np.isin(found, classes).sum()) for kind, classes in self._classes.items()}
            for kind, count in {**own, "num_entities": sum(own.values())}.items():
                counts[kind].append(count)
        return {kind: float(np.percentile(values, 95)) for kind, values in counts.items()}
