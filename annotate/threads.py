"""Threads within one clip: work in parts that do not depend on each other in, its results in order out.

As many threads as OpenCV was told to use, which `annotate_clip` does. They pay where the time goes to compiled code
that leaves the interpreter to others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import cv2
import numpy as np

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_threads(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """`function` of each item, in order; an error of one is raised."""
    items = list(items)
    num_threads = min(cv2.getNumThreads(), len(items))
    if num_threads <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(function, items))


def even_parts(ends: Iterable[int], *, min_size: int) -> list[tuple[int, int]]:
    """(first, last + 1) of as many runs of things as there are threads, about as much work in each.

    ends: work up to and including each thing. One run where the work of all is less than `min_size`.
    """
    total = np.asarray(ends)
    if len(total) == 0 or total[-1] < min_size:
        return [(0, len(total))]
    num_parts = cv2.getNumThreads()
    cuts = np.searchsorted(total, total[-1] * np.arange(1, num_parts) / num_parts)
    return list(pairwise([0, *cuts.tolist(), len(total)]))
