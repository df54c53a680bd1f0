"""A size in, writable memory out that is used again once nothing looks at it any more.

Memory that is new to a process costs a page fault every 4 KiB, for members of megabytes twenty times what copying them
from the page cache costs. What a sample's arrays lie in is theirs for as long as any view of it lives.
"""

from __future__ import annotations

import collections
import weakref

import numpy as np

_GRAIN_BYTES = 1 << 18
"""Buffers are multiples of this, so that members of nearly one size share them."""
_MAX_IDLE_BYTES = 1 << 28
"""Kept for later in a process; two batches of 50 latents of a five second clip."""


class BufferPool:
    """Memory of one process. One thread takes from it; views may die in any."""

    def __init__(self) -> None:
        self._idle: list[np.ndarray] = []
        self._returned: collections.deque[np.ndarray] = collections.deque()

    def take(self, size: int) -> memoryview:
        """`size` writable bytes of unknown content. They come back when the last view of them is gone."""
        buffer = self._fitting(size)
        # The view's own death is the signal. Arrays made of a memoryview keep that, and it keeps its exporter.
        exporter = buffer[:size]
        # Nothing but an append, which any thread may do at any time.
        weakref.finalize(exporter, self._returned.append, buffer).atexit = False
        return exporter.data

    def _fitting(self, size: int) -> np.ndarray:
        while self._returned:
            self._idle.append(self._returned.popleft())
        while sum(map(len, self._idle)) > _MAX_IDLE_BYTES:
            self._idle.pop(0)
        # The latest to come back first: it may still be in the processor's cache.
        for at in range(len(self._idle) - 1, -1, -1):
            if size <= len(self._idle[at]) <= 2 * size + _GRAIN_BYTES:
                return self._idle.pop(at)
        return np.empty(max(1, -(-size // _GRAIN_BYTES)) * _GRAIN_BYTES, dtype=np.uint8)
