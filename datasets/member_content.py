"""A member's bytes in, its content out; only formats that cannot run code."""

from __future__ import annotations

import functools
import io
import math
from typing import Any

import numpy as np

from worldline.datasets.schema import ClipRejected
from worldline.datasets.shard_format import row_from_json

_MAX_HEADER_BYTES = 10_000
"""numpy's own limit for headers that nobody vouches for."""


def member_content(member: str, data: memoryview, key: str) -> Any:
    """The row of a .json, the array of a .npy over the bytes given, the bytes of an .mp4.

    Raises ClipRejected where it does not decode or is of another clip.
    """
    try:
        if member == "json":
            row = row_from_json(bytes(data))
            if row["clip_id"] != key:
                raise ValueError(f"is of clip {row['clip_id']}")
            return row
        return bytes(data) if member == "mp4" else array_view(data)
    except ValueError as error:
        raise ClipRejected("loader", "undecodable", f"{key}.{member}: {error}") from error


def array_view(data: memoryview) -> np.ndarray:
    """The array of a .npy file over the file's own bytes; ValueError for anything else, pickled objects too."""
    lead = bytes(data[:12])
    length = int.from_bytes(lead[8:10] if lead[6:7] == b"\x01" else lead[8:12], "little")
    start = (10 if lead[6:7] == b"\x01" else 12) + length
    shape, is_fortran, dtype = _npy_header(bytes(data[: min(start, _MAX_HEADER_BYTES)]))
    flat = np.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=start)
    return flat.reshape(shape, order="F" if is_fortran else "C")


@functools.lru_cache(maxsize=64)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type; remembered, as a folder's arrays are alike and parsing takes
    as long as copying a tenth of a megabyte."""
    head = io.BytesIO(header)
    version = np.lib.format.read_magic(head)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(head)
    elif version == (2, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(head)
    else:
        raise ValueError(f".npy version {version}")
    if dtype.hasobject:
        raise ValueError("an array of objects, which only unpickling could read")
    return shape, is_fortran, dtype
