"""A list of videos as others publish them in, plain orders out: what to fetch, which span, whose, under which licence.

CSV, TSV or Parquet. Columns are found by their names, whatever their case and separators:

    address   url, video_url, link, webpage_url; or an id of YouTube: video_id, youtube_id, ytid, id_ori
    span      start_frame, end_frame and fps; or start and end (start_s, start_time, begin ...), or timestamp: a pair
              of times; seconds or h:mm:ss.fff. Frames go before times, which lists often round to seconds
    the rest  id (clip_id, name, index), source (dataset), licence (license), sha256 (checksum)

What the publishers' own files say (read in their public repositories):

    MiraData   assets/miradata_v0_100_samples.csv: index, video_id (YouTube), start_frame, end_frame, fps,
               start_timestep, end_timestep (h:mm:ss); download_data.py cuts start_frame / fps to end_frame / fps.
               Later meta files: clip_id, video_url, timestamp (a pair as text); no file of theirs was at hand
    SpatialVID output/meta/clips_info.csv: id, fps, timestamp_start, timestamp_end (hh:mm:ss.fff), frame_start,
               frame_end, id_ori (YouTube in their sample); the lists behind their gated page were not seen
    Sekai      clip_extracting/1_csv_to_clips.py: <youtube id>_<first frame>_<end frame>.<ext> in the first column,
               whatever it is called; 3_nvtranscoding.py: frames counted after sampling down to 30 a second, the end
               frame left out. The lists themselves were not seen
"""

from __future__ import annotations

import ast
import csv
import hashlib
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq

_NAMES = {
    "url": ("url", "videourl", "link", "webpageurl", "downloadurl", "sourceurl"),
    "youtube": ("youtubeid", "ytid", "youtubevideoid", "videoid", "idori"),
    "file": ("videofile", "clipname", "filename"),
    "start": (
        *("starts", "start", "starttime", "startsec", "starttimes", "begin", "spanstart", "trimstart"),
        *("timestampstart", "starttimestep"),
    ),
    "end": (
        *("ends", "end", "endtime", "endsec", "endtimes", "spanend", "trimend"),
        *("timestampend", "endtimestep"),
    ),
    "first_frame": ("startframe", "framestart"),
    "end_frame": ("endframe", "frameend"),
    "fps": ("fps",),
    "span": ("timestamp", "timestamps", "span", "cliptimestamp"),
    "name": ("id", "clipid", "name", "key", "index"),
    "source": ("source", "dataset"),
    "licence": ("licence", "license"),
    "sha256": ("sha256", "checksum"),
}
_YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_SEKAI = re.compile(r"([A-Za-z0-9_-]{11})_(\d{5,9})_(\d{5,9})(\.\w+)?")
_SEKAI_HZ = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One row of a list."""

    name: str
    """Of the file that will be made: the list's id, or a digest of address and span."""
    url: str
    start_s: float | None = None
    """None: from the beginning."""
    end_s: float | None = None
    """None: to the end."""
    source: str | None = None
    licence: str | None = None
    sha256: str | None = None
    """Of the whole file; None: not stated."""
    problem: str | None = None
    """What is wrong with the row; None: nothing."""

    @property
    def has_span(self) -> bool:
        return self.start_s is not None or self.end_s is not None


def read_list(path: Path, source: str | None = None, licence: str | None = None) -> Iterator[Order]:
    """One order a row, in order; a row that makes no sense has its `problem`. `source` and `licence` stand where the
    list has none. Raises ValueError where the file is no list or has no column of addresses."""
    rows = _parquet_rows(path) if path.suffix.lower() in (".parquet", ".pq") else _csv_rows(path)
    columns: dict[str, str] | None = None
    for row in rows:
        if columns is None:
            columns = _columns(row, path)
        found = {kind: row.get(column) for kind, column in columns.items()}
        yield _order(found, source, licence)


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        for batch in pq.ParquetFile(path).iter_batches(1000):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a Parquet file ({error})") from error


def _csv_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    # Captions in the lists are longer than the reader's usual limit.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file ({error})") from error


def _columns(row: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Column by kind, told from a list's first row."""
    names = list(row)
    plain = {re.sub(r"[^a-z0-9]", "", (name or "").lower()): name for name in names}
    found = {
        kind: plain[alias]
        for kind, aliases in _NAMES.items()
        for alias in reversed(aliases)
        if alias in plain
    }
    if not {"url", "youtube", "file"} & set(found) and _SEKAI.fullmatch(_text(row[names[0]]) or ""):
        found["file"] = names[0]
    if not {"url", "youtube", "file"} & set(found):
        raise ValueError(
            f"{path}: no column of addresses (url, video_id, videoFile ...) among {', '.join(map(str, names))}"
        )
    return found


def _order(row: dict[str, Any], source: str | None, licence: str | None) -> Order:
    problem = None
    url, start_s, end_s = _address(row)
    try:
        if all(_text(row.get(key)) for key in ("first_frame", "end_frame", "fps")):
            start_s, end_s = _frame_span(row)
            row = row | {"start": None, "end": None}
        if _text(row.get("span")):
            start_s, end_s = _span(row["span"])
        start_s = _seconds(row["start"]) if _text(row.get("start")) else start_s
        end_s = _seconds(row["end"]) if _text(row.get("end")) else end_s
        if start_s is not None and end_s is not None and not 0 <= start_s < end_s:
            raise ValueError(f"the span {start_s:g} to {end_s:g} s is empty")
    except (ValueError, SyntaxError) as error:
        problem = f"span: {error}"
    if not url:
        problem = "address: none, or not of YouTube's form"
    elif urlsplit(url).scheme not in ("http", "https"):
        problem = f"address: {urlsplit(url).scheme or 'no'} scheme, must be http or https"
    sha256 = _text(row.get("sha256"))
    if sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        problem = problem or "checksum: not 64 hex digits"
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", _text(row.get("name")) or "").strip("._")[:120]
    return Order(
        name=name or hashlib.sha256(f"{url} {start_s} {end_s}".encode()).hexdigest()[:24],
        url=url,
        start_s=start_s,
        end_s=end_s,
        source=_text(row.get("source")) or source,
        licence=_text(row.get("licence")) or licence,
        sha256=sha256.lower() if sha256 else None,
        problem=problem,
    )


def _address(row: dict[str, Any]) -> tuple[str, float | None, float | None]:
    """(address, start, end), the span where the file's name tells it."""
    if url := _text(row.get("url")):
        return (_youtube(url) if _YOUTUBE_ID.fullmatch(url) else url), None, None
    clip = _SEKAI.fullmatch(_text(row.get("file")) or "")
    if clip:
        return _youtube(clip[1]), int(clip[2]) / _SEKAI_HZ, int(clip[3]) / _SEKAI_HZ
    name = _text(row.get("youtube")) or ""
    return (_youtube(name) if _YOUTUBE_ID.fullmatch(name) else ""), None, None


def _frame_span(row: dict[str, Any]) -> tuple[float, float]:
    """The span of frames in seconds: finer than the whole seconds that some lists state beside it."""
    fps = float(row["fps"])
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"not a frame rate: {row['fps']!r}")
    return float(row["first_frame"]) / fps, float(row["end_frame"]) / fps


def _youtube(name: str) -> str:
    return f"https://www.youtube.com/watch?v={name}"


def _span(value: Any) -> tuple[float, float]:
    """A pair of times: a list, its text as Python or JSON, or `start-end`."""
    if isinstance(value, str):
        text = value.strip()
        value = ast.literal_eval(text) if text[:1] in "[(" else re.split(r"\s*(?:-|,|;|\bto\b)\s*", text)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"not a pair of times: {value!r}")
    return _seconds(value[0]), _seconds(value[1])


def _seconds(value: Any) -> float:
    """Seconds as a number or h:mm:ss.fff; ValueError otherwise."""
    seconds = 0.0
    for part in str(value).strip().split(":"):
        seconds = 60 * seconds + float(part.replace(",", "."))
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"not a time: {value!r}")
    return seconds


def _text(value: Any) -> str | None:
    text = "" if value is None or value != value else str(value).strip()
    return text or None
