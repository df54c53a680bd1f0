"""A drone's position beside a GoPro's video: media file in, rows of its GLPI stream out.

`telemetry-parser` reads the camera's own streams and leaves those of a Karma drone, which carries the GPS, undecoded.
GPMF is a tree of (four-letter key, type, size, count, data) padded to four bytes; a structure's members are spelled by
the TYPE beside it and divided by SCAL (https://github.com/gopro/gpmf-parser).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import av.stream
import numpy as np

from worldline.annotate.container import open_container, seconds

_STRUCT_OF_GPMF = str.maketrans({"l": "i", "L": "I", "s": "h", "S": "H", "j": "q", "J": "Q"})
"""Type letters that have another name in Python's struct."""
_GLPI_COLUMNS = 9
"""Time [s], latitude, longitude [deg], altitude, height above start [m], velocity north, east, down [m/s], heading."""


def drone_rows(path: Path) -> list[tuple[float, ...]]:
    """Rows (time, latitude, longitude, altitude, 3D speed, NaN) of a drone's position; none where there is no such
    stream. Times are on the video's clock, to the quarter of a second between samples."""
    rows: list[np.ndarray] = []
    offsets_s = []
    with open_container(str(path), for_packets=True) as container:
        for stream in container.streams:
            if "GoPro MET" not in stream.metadata.get("handler_name", ""):
                stream.discard = av.stream.Discard.all
        for packet in container.demux():
            time_s, found = seconds(packet.pts, packet.time_base), position_rows(bytes(packet))
            if time_s is not None and len(found):
                rows.append(found)
                offsets_s.append(time_s - found[0, 0])
    if not rows:
        return []
    table = np.concatenate(rows)
    # No sample is older than the payload that holds it.
    times_s = table[:, 0] + max(offsets_s)
    speed = np.linalg.norm(table[:, 5:8], axis=1)
    return list(
        zip(times_s, table[:, 1], table[:, 2], table[:, 3], speed, np.full(len(table), np.nan), strict=True)
    )


def position_rows(payload: bytes) -> np.ndarray:
    """[N, 9] scaled GLPI rows of one GPMF payload."""
    scale, letters = np.ones(1), ""
    rows: list[np.ndarray] = []
    for key, size, count, data in _walk(payload):
        if key == "STRM":
            scale, letters = np.ones(1), ""
        elif key == "SCAL" and size == 4:
            scale = np.array(struct.unpack(f">{count}i", data), dtype=np.float64)
        elif key == "TYPE":
            letters = data.decode("ascii", "replace").strip("\0")
        elif key == "GLPI" and len(letters) == len(scale) == _GLPI_COLUMNS:
            layout = struct.Struct(">" + letters.translate(_STRUCT_OF_GPMF))
            if layout.size == size:
                rows += [np.array(row) / scale for row in layout.iter_unpack(data)]
    return np.array(rows).reshape(-1, _GLPI_COLUMNS)


def _walk(data: bytes) -> Iterator[tuple[str, int, int, bytes]]:
    """(key, size, count, data) of every element, containers before what they hold."""
    at = 0
    while at + 8 <= len(data):
        key, kind, size, count = struct.unpack_from(">4scBH", data, at)
        content = data[at + 8 : at + 8 + size * count]
        if len(content) < size * count:
            return
        yield key.decode("latin1"), size, count, content
        if kind == b"\0":
            yield from _walk(content)
        at += 8 + -(-size * count // 4) * 4
