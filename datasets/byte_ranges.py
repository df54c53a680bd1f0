"""Byte ranges of files in, their bytes out: pread for local files, range requests through fsspec for URIs.

A range that is not there in full is the file's fault and said as a value, so that one torn shard costs one
sample. Trouble of the network or the disk is tried again and then raised: replacing samples because a server is
down would train on something else in silence.
"""

from __future__ import annotations

import collections
import errno
import mmap
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import fsspec

from worldline.datasets.buffer_pool import BufferPool
from worldline.datasets.schema import ClipRejected

_MAX_OPEN_FILES = 128
_TRIES = 4
_FIRST_PAUSE_S = 0.2
_MIN_POOLED_BYTES = 1 << 16
"""Below this the system's allocator has warm memory at hand."""


class ByteRange(NamedTuple):
    """Bytes [start, start + size) of a file."""

    location: str
    """Local path or fsspec URI."""
    start: int
    size: int


def is_remote(location: str) -> bool:
    """Whether reading several ranges at once saves time: an fsspec URI, no local path."""
    return "://" in location


class RangeReader:
    """Reads ranges; opens files as it meets them and keeps the most recent ones open. For one thread.

    `is_mapped`: ranges of local files are read-only views of the page cache in place of copies. Should the disk fail or
    the file be cut short while such a view is used, the process dies of SIGBUS.
    """

    def __init__(self, *, is_mapped: bool = False) -> None:
        self._open: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._mapped: collections.OrderedDict[str, mmap.mmap] = collections.OrderedDict()
        self._pool = BufferPool()
        self._read_one = self._map_local if is_mapped else self._read_local

    def read(self, ranges: Sequence[ByteRange]) -> list[memoryview | ClipRejected]:
        """The bytes of each range, writable unless mapped, or why it cannot be had: shard missing or too short.

        Raises OSError for anything that is not the file's fault.
        """
        if ranges and is_remote(ranges[0].location):
            return self._read_remote(ranges)
        return [self._read_one(item) for item in ranges]

    def close(self) -> None:
        """Closes every file; mapped ones when the last view of them is gone."""
        while self._open:
            os.close(self._open.popitem()[1])
        self._mapped.clear()

    def _read_local(self, item: ByteRange) -> memoryview | ClipRejected:
        try:
            fd = self._fd(item.location)
        except FileNotFoundError:
            return _missing(item)
        is_pooled = item.size >= _MIN_POOLED_BYTES
        buffer = self._pool.take(item.size) if is_pooled else memoryview(bytearray(item.size))
        done = 0
        while done < item.size:
            count = os.preadv(fd, [buffer[done:] if done else buffer], item.start + done)
            if count == 0:
                return _too_short(item, done)
            done += count
        return buffer

    def _map_local(self, item: ByteRange) -> memoryview | ClipRejected:
        try:
            mapped = self._mapping(item.location)
        except FileNotFoundError:
            return _missing(item)
        # Of now too: touching pages behind the end of a file that was cut short since would kill the process.
        size = 0 if mapped is None else min(len(mapped), mapped.size())
        if mapped is None or size < item.start + item.size:
            return _too_short(item, max(0, size - item.start))
        return memoryview(mapped)[item.start : item.start + item.size]

    def _mapping(self, path: str) -> mmap.mmap | None:
        """None for an empty file, which cannot be mapped."""
        if path in self._mapped:
            self._mapped.move_to_end(path)
            return self._mapped[path]
        while len(self._mapped) >= _MAX_OPEN_FILES:
            self._mapped.popitem(last=False)
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return None
            self._mapped[path] = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self._mapped[path].madvise(mmap.MADV_SEQUENTIAL)
        return self._mapped[path]

    def _fd(self, path: str) -> int:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        while len(self._open) >= _MAX_OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[path]

    def _read_remote(self, ranges: Sequence[ByteRange]) -> list[memoryview | ClipRejected]:
        files, _ = fsspec.core.url_to_fs(ranges[0].location)
        out: list[memoryview | ClipRejected | None] = [None] * len(ranges)
        for attempt in range(_TRIES):
            todo = [k for k, found in enumerate(out) if found is None]
            # All at once: a batch costs the latency of one request.
            found = files.cat_ranges(
                [ranges[k].location for k in todo],
                [ranges[k].start for k in todo],
                [ranges[k].start + ranges[k].size for k in todo],
                on_error="return",
            )
            errors: list[Exception] = []
            for k, data in zip(todo, found, strict=True):
                out[k] = _outcome(ranges[k], data)
                if out[k] is None:
                    errors.append(data)
            if not errors:
                break
            if attempt == _TRIES - 1:
                raise OSError(errno.EIO, f"cannot be read: {errors[0]!r}", ranges[0].location) from errors[0]
            time.sleep(_FIRST_PAUSE_S * 2**attempt)
        return [item for item in out if item is not None]


def _outcome(item: ByteRange, data: bytes | Exception) -> memoryview | ClipRejected | None:
    """None: worth another try."""
    if isinstance(data, FileNotFoundError):
        return _missing(item)
    if isinstance(data, Exception):
        return None
    if len(data) != item.size:
        # More than was asked for: a server that knows no ranges sends the whole file.
        return _too_short(item, len(data))
    return memoryview(bytearray(data))


def _missing(item: ByteRange) -> ClipRejected:
    return ClipRejected("loader", "shard_missing", item.location)


def _too_short(item: ByteRange, count: int) -> ClipRejected:
    detail = f"{item.location}: {count} of {item.size} bytes from {item.start}"
    return ClipRejected("loader", "wrong_range", detail)
