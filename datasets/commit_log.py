"""Finished units of work in, durable files and an append-only journal out: the exactly-once half of a
dataset folder.

A unit's result is written to a temporary name beside its place and flushed to disk; then one line goes to
the writer's journal `DIR/commits/<writer>.jsonl`; then the file is renamed into place. The line comes
before the rename so that a finished file always has its line: whoever finds the file need not search a
journal (which would not scale to 10^8 units), and a follower of the journals misses nothing. A line whose
file is absent belongs to a process that died between the two steps; the unit is then simply not done, and
doing it again is harmless, because equal inputs give equal bytes. Journals have one writing process each,
so nothing here needs a lock, on any file system.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

DISK_FULL_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No space, quota used up, file size limit: conditions of the disk, never of one clip."""


class CommitLog:
    """The journal of one writing process of a dataset folder; the file appears with the first commit."""

    def __init__(self, out_dir: Path, run_id: str = "manual") -> None:
        self._out_dir = out_dir
        # The random part keeps apart two processes that were given the same number one after the other.
        writer = f"{run_id}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._path = out_dir / "commits" / f"{writer}.jsonl"
        self._fd: int | None = None

    def commit(self, path: Path, data: bytes, **facts: Any) -> None:
        """Makes `data` the content of `path` (inside the dataset folder), durably and all at once.

        `facts` (stage, status, num_frames, wall_s ...) go into the journal's line beside the unit's name,
        checksum, host and time. Raises OSError naming the file; nothing finished is touched then.
        """
        line = {
            "unit": path.relative_to(self._out_dir).as_posix(),
            "sha256": hashlib.sha256(data).hexdigest(),
            "size_bytes": len(data),
            **facts,
            "host": socket.gethostname(),
            "finished_unix_s": round(time.time(), 3),
        }
        with _replacing(path) as temporary:
            _write_durably(temporary, data)
            self._append(json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _append(self, line: bytes) -> None:
        if self._fd is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        start = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._fd)
        except OSError as error:
            # A torn line would swallow the next one; this process is the file's only writer.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, start)
            raise OSError(error.errno, error.strerror, str(self._path)) from error


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file durably and all at once, without a journal line; raises OSError naming the file."""
    with _replacing(path) as temporary:
        _write_durably(temporary, data)


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as one Parquet file whose pages carry checksums; equal rows give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def read_unit(path: Path) -> pa.Table | None:
    """A unit's table, or None where it is absent or damaged (then the unit is not done)."""
    try:
        return pq.ParquetFile(path, page_checksum_verification=True).read()
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException):
        # A file that exists but is cut short or altered fails its page checksum, header or footer.
        return None


def commits(out_dir: Path, run_id: str = "") -> Iterator[dict[str, Any]]:
    """Every journal line of a dataset folder (of one run where given), writer by writer, in order of
    writing."""
    for path in sorted((out_dir / "commits").glob(f"{run_id}*.jsonl")):
        with path.open("rb") as lines:
            # A last line without its newline is one that a dying process did not finish.
            yield from (json.loads(line) for line in lines if line.endswith(b"\n"))


def broken_units(out_dir: Path) -> list[str]:
    """Units whose file differs from every checksum that the journals state for it, or that no line vouches
    for.

    An absent file is no damage: its writer died before the rename, and the unit will be done again.
    """
    stated: dict[str, set[str]] = {}
    for line in commits(out_dir):
        stated.setdefault(line["unit"], set()).add(line["sha256"])
    broken = []
    for unit, checksums in sorted(stated.items()):
        path = out_dir / unit
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() not in checksums:
            broken.append(unit)
    files = (out_dir / "stages" / "videos").glob("*/*/*.parquet")
    return broken + sorted(name for f in files if (name := f.relative_to(out_dir).as_posix()) not in stated)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` when the block succeeds and vanishes when it does
    not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:6]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _write_durably(path: Path, data: bytes) -> None:
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _flush_folder(folder: Path) -> None:
    """Makes a rename survive a power cut; some network file systems cannot, and say EINVAL."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)
