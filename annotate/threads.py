"""Threads within one clip: work in parts that do not depend on each other in, its results in order out.

As many threads as OpenCV was told to use, which `annotate_clip` does. They pay where the time goes to compiled code
that leaves the interpreter to others.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import cv2
import numpy as np

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


_here = threading.local()
"""Whether this thread works for `in_threads` already: what it starts itself stays in it."""


def in_threads(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """`function` of each item, in order; an error of one is raised. The calling thread works with the others."""
    items = list(items)
    num_helpers = min(cv2.getNumThreads(), len(items)) - 1
    if num_helpers < 1 or getattr(_here, "is_busy", False):
        return [function(item) for item in items]
    results: dict[int, _Result] = {}
    left = iter(range(len(items)))  # shared: the interpreter gives each index to one thread

    def work() -> None:
        _here.is_busy = True
        try:
            for idx in left:
                results[idx] = function(items[idx])
        finally:
            _here.is_busy = False

    helpers = _helpers(os.getpid())
    running = [helpers.submit(work) for _ in range(num_helpers)]
    try:
        work()
    finally:
        for each in running:
            each.result()
    return [results[idx] for idx in range(len(items))]


@functools.cache
def _helpers(pid: int) -> ThreadPoolExecutor:
    """Threads that wait for work, since starting one takes as long as a small part; anew in a forked process."""
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix=f"worldline-{pid}")


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
