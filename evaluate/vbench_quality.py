"""VBench's imaging quality (Huang et al. 2024): MUSIQ trained on SPAQ, frame by frame, as its own script scores a video.

Frames whose longer side is above 512 pixels are made smaller, as there. VBench fetches the weights by `wget` where they
are missing; here that is an error which says where they belong.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from pyiqa.archs.musiq_arch import MUSIQ
from vbench.imaging_quality import transform

from worldline.datasets.schema import MissingBackend

WEIGHTS = "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth"
"""Below VBench's cache."""
ADDRESS = (
    "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth"
)


class VBenchQuality:
    """0 worst, 100 best, which VBench's tables divide by 100."""

    name = "imaging quality (VBench)"
    higher_is_better = True

    def __init__(self, weights: Path | None = None) -> None:
        """`weights`: None looks where VBench does, in VBENCH_CACHE_DIR or ~/.cache/vbench. Raises MissingBackend."""
        cache = Path(os.environ.get("VBENCH_CACHE_DIR") or Path.home() / ".cache" / "vbench")
        path = cache / WEIGHTS if weights is None else weights
        if not path.is_file():
            raise MissingBackend(f"backend 'vbench' needs weights: fetch {ADDRESS} to {path}")
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = MUSIQ(pretrained_model_path=str(path)).to(self._device).eval()

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """See `ImageQuality`."""
        images = transform(torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2), "longer")
        return np.array([float(self._model(image[None].to(self._device))) for image in images])
