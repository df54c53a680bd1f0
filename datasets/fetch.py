"""`worldline fetch`: a list of addresses in, videos with sidecars for the annotator out, and a row for every order.

    OUT/videos/<name>.mp4        what `worldline annotate OUT/videos` reads: a whole file, or its span
    OUT/videos/<name>.mp4.json   source and licence, as the annotator reads them
    OUT/sources/                 whole files, each address once
    OUT/fetched.parquet          one row an order: ok or failed, and why

Spans are cut by copying packets: nothing is encoded again, so a cut begins at the key frame before its start. The
same command again does only what is missing.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import av
import pyarrow as pa
import tyro

from worldline.datasets.commit_log import parquet_bytes, replace_file
from worldline.datasets.fetch_http import FetchFailed, HttpConfig, Pace, download
from worldline.datasets.fetch_list import Order, read_list
from worldline.datasets.schema import MissingBackend

logger = logging.getLogger(__name__)

FETCHED = pa.schema(
    [
        ("name", pa.string()),
        ("url", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)
"""`path`: relative to OUT. `sha256`: of the whole file that the address gave."""

_MEDIA = {
    ".mp4",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".m4v",
    ".ts",
    ".mpg",
    ".mpeg",
    ".mts",
    ".mxf",
    ".ogv",
    ".flv",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchConfig:
    """Download the videos of a list, with their licence and source."""

    list: tyro.conf.Positional[Path]
    """CSV, TSV or Parquet of addresses (docs/curation.md): your own, or as SpatialVID, Sekai and MiraData publish."""
    out: Path
    """Folder for the videos; the same command again does only what is missing."""
    source: str | None = None
    """Source of rows that state none; such as sekai_walking, by which rules know their ranges."""
    licence: str | None = None
    """Licence of rows that state none."""
    backend: str = "auto"
    """http, yt-dlp, or auto: http for addresses that end like a media file, yt-dlp for the others."""
    workers: int = 4
    """Transfers at a time."""
    limit: int = 0
    """Stop after this many rows of the list; 0: all."""
    http: HttpConfig = field(default_factory=HttpConfig)

    def __post_init__(self) -> None:
        if self.backend not in ("auto", "http", "yt-dlp"):
            raise ValueError(f"backend {self.backend!r}: http, yt-dlp or auto")
        if self.workers < 1 or self.limit < 0:
            raise ValueError("workers must be at least 1 and limit not negative")


def main(config: FetchConfig) -> int:
    """Exit status: 0 all there, 3 some failed (see fetched.parquet), 1 not a list."""
    try:
        rows = fetch(config)
    except (ValueError, MissingBackend, OSError) as error:
        print(f"worldline fetch: {error}", file=sys.stderr)
        return 1
    failed = [row for row in rows if row["status"] != "ok"]
    for row in failed[:20]:
        print(f"{row['name']}: {row['reason']}", file=sys.stderr)
    print(
        f"{len(rows) - len(failed)} of {len(rows)} there, {config.out / 'videos'}; rows: {config.out / 'fetched.parquet'}"
    )
    return 3 if failed else 0


def fetch(config: FetchConfig) -> list[dict[str, Any]]:
    """Does every order of the list; one row of FETCHED each, in the list's order."""
    orders = list(read_list(config.list, config.source, config.licence))[: config.limit or None]
    for folder in ("videos", "sources"):
        (config.out / folder).mkdir(parents=True, exist_ok=True)
    orders = _with_distinct_names(orders)
    work = _Work(config)
    with concurrent.futures.ThreadPoolExecutor(config.workers) as pool:
        futures = [pool.submit(work.row, order) for order in orders]
        try:
            rows = [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    replace_file(config.out / "fetched.parquet", parquet_bytes(pa.Table.from_pylist(rows, schema=FETCHED)))
    return rows


def _with_distinct_names(orders: list[Order]) -> list[Order]:
    """A name that comes twice for different things gets a problem: one file must not stand for two orders."""
    first: dict[str, Order] = {}
    found = []
    for order in orders:
        known = first.setdefault(order.name, order)
        is_other = (known.url, known.start_s, known.end_s) != (order.url, order.start_s, order.end_s)
        found.append(_replaced(order, "name: used by another row of the list") if is_other else order)
    return found


def _replaced(order: Order, problem: str) -> Order:
    return dataclasses.replace(order, problem=order.problem or problem)


class _Work:
    """What the transfers of one run share."""

    def __init__(self, config: FetchConfig) -> None:
        self.config, self.pace = config, Pace(config.http)
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def row(self, order: Order) -> dict[str, Any]:
        """One order done; never raises for what lies in the order or the network."""
        row = {
            name: getattr(order, name) for name in ("name", "url", "start_s", "end_s", "source", "licence")
        }
        try:
            if order.problem:
                raise FetchFailed(order.problem)
            whole, facts = self._whole(order)
            path = self.config.out / "videos" / (order.name + whole.suffix)
            if not path.exists():
                _cut(whole, path, order) if order.has_span else _link(whole, path)
            licence = order.licence or facts.get("licence")
            replace_file(
                path.with_name(path.name + ".json"),
                json.dumps({"source": order.source, "licence": licence}).encode() + b"\n",
            )
            done = {
                "path": f"videos/{path.name}",
                "size_bytes": path.stat().st_size,
                "sha256": facts["sha256"],
            }
            return row | done | {"status": "ok", "licence": licence}
        except (FetchFailed, OSError, av.FFmpegError) as error:
            logger.warning("%s: %s", order.url, error)
            return row | {"status": "failed", "reason": str(error)}

    def _whole(self, order: Order) -> tuple[Path, dict[str, Any]]:
        """The address's whole file and what is known of it; fetched once however many rows want it."""
        key = hashlib.sha256(order.url.encode()).hexdigest()[:24]
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            note = self.config.out / "sources" / f"{key}.json"
            if note.exists():
                facts = json.loads(note.read_text())
                whole = self.config.out / "sources" / facts["file"]
                if whole.exists():
                    if order.sha256 and order.sha256 != facts["sha256"]:
                        raise FetchFailed(f"checksum: {facts['sha256']}, the list says {order.sha256}")
                    return whole, facts
            suffix = Path(unquote(urlsplit(order.url).path)).suffix.lower()
            is_http = self.config.backend == "http" or (self.config.backend == "auto" and suffix in _MEDIA)
            if is_http:
                whole = note.with_name(key + (suffix if suffix in _MEDIA else ".mp4"))
                facts = {"sha256": download(order.url, whole, self.config.http, self.pace, order.sha256)}
            else:
                self.pace.request()
                whole, facts = _with_yt_dlp(order, note.with_name(key), self.config.http)
            facts |= {"file": whole.name, "url": order.url, "fetched_at": time.time()}
            replace_file(note, json.dumps(facts).encode() + b"\n")
            return whole, facts


def _with_yt_dlp(order: Order, stem: Path, config: HttpConfig) -> tuple[Path, dict[str, Any]]:
    """The same through yt-dlp, which knows the pages of video sites."""
    try:
        import yt_dlp
    except ImportError as error:
        raise MissingBackend("this address needs yt-dlp: pip install 'worldline[fetch]'") from error
    options = {
        "outtmpl": f"{stem}.%(ext)s",
        "quiet": True,
        "no_warnings": True,
        "noprogress": True,
        "noplaylist": True,
        "continuedl": True,
        "retries": config.tries - 1,
        "fragment_retries": config.tries - 1,
        "socket_timeout": config.stall_s,
        "max_filesize": int(config.max_file_gb * 1e9),
        # Pictures alone: the annotator hears nothing, and nothing has to be merged.
        "format": "bestvideo[height<=1080]/best[height<=1080]/best",
        "logger": logger,
    }
    if config.max_mb_s:
        options["ratelimit"] = config.max_mb_s * 1e6
    try:
        with yt_dlp.YoutubeDL(options) as ydl:
            info: dict[str, Any] = dict(ydl.extract_info(order.url) or {})
            whole = Path(info["requested_downloads"][0]["filepath"])
    except (yt_dlp.utils.YoutubeDLError, KeyError, IndexError) as error:
        raise FetchFailed(f"yt-dlp: {error}") from error
    with whole.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if order.sha256 and digest != order.sha256:
        whole.unlink()
        raise FetchFailed(f"checksum: {digest}, the list says {order.sha256}")
    return whole, {"sha256": digest, "licence": info.get("license")}


def _link(whole: Path, path: Path) -> None:
    """The file under a second name; a link where the disk can, so that it takes no room."""
    try:
        os.link(whole, path)
    except OSError:
        os.symlink(os.path.relpath(whole, path.parent), path)


def _cut(whole: Path, path: Path, order: Order) -> None:
    """The span's packets, from the key frame at or before its start; timestamps begin at 0. Raises FetchFailed where
    the span lies outside the file."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    start_s, end_s = order.start_s or 0.0, order.end_s
    try:
        with av.open(str(whole)) as source, av.open(str(temporary), "w") as target:
            stream = source.streams.video[0]
            copied = target.add_stream_from_template(stream)
            base = float(stream.time_base or 1)
            source.seek(int(start_s / base), stream=stream, backward=True)
            first, num_packets = None, 0
            for packet in source.demux(stream):
                if packet.dts is None or packet.pts is None:
                    continue
                if first is None:
                    first = packet.dts
                if end_s is not None and packet.dts * base >= end_s:
                    break
                packet.pts, packet.dts = packet.pts - first, packet.dts - first
                packet.stream = copied
                target.mux(packet)
                num_packets += 1
        length_s = None if stream.duration is None else stream.duration * base
        if num_packets < 2 or (length_s is not None and start_s >= length_s):
            raise FetchFailed(f"span: {start_s:g} s and on is outside the file")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(FetchConfig)))
