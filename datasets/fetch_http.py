"""An http(s) address in, the whole file on disk out, or the reason why not.

A transfer that stalls, breaks or ends early is taken up where it stopped, as long as the server still has the same
file (ETag or Last-Modified); what can never work (404, a wrong checksum) is not tried again. A file has its name only
when it is whole.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 1 << 16
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}


class FetchFailed(Exception):
    """This address gave no file; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpConfig:
    """How patient and how polite downloads are."""

    tries: int = 5
    """Tries a file; each goes on where the last one stopped."""
    stall_s: float = 30.0
    """A connection that sends nothing for this long in seconds is given up and tried again."""
    wait_s: float = 1.0
    """Pause in seconds before the second try; doubled for each further one, up to a minute."""
    max_mb_s: float = 0.0
    """Limit in megabytes a second, all transfers together; 0: none."""
    request_gap_s: float = 0.0
    """Least time in seconds between two requests, all transfers together."""
    max_file_gb: float = 50.0
    """A larger file is refused before its bytes are taken."""

    def __post_init__(self) -> None:
        if self.tries < 1 or self.stall_s <= 0 or self.max_file_gb <= 0:
            raise ValueError("tries must be at least 1, stall_s and max_file_gb positive")
        if self.wait_s < 0 or self.max_mb_s < 0 or self.request_gap_s < 0:
            raise ValueError("wait_s, max_mb_s and request_gap_s must not be negative")


class Pace:
    """Shared by all transfers: holds requests and bytes to the config's rates."""

    def __init__(self, config: HttpConfig) -> None:
        self._config, self._lock = config, threading.Lock()
        self._next_request_s = self._next_byte_s = 0.0

    def request(self) -> None:
        """Returns when the next request may go out."""
        with self._lock:
            at_s = max(time.monotonic(), self._next_request_s)
            self._next_request_s = at_s + self._config.request_gap_s
        time.sleep(max(0.0, at_s - time.monotonic()))

    def received(self, num_bytes: int) -> None:
        """Returns when so many bytes were allowed."""
        if self._config.max_mb_s == 0:
            return
        with self._lock:
            start_s = max(time.monotonic() - 0.25, self._next_byte_s)
            self._next_byte_s = start_s + num_bytes / (self._config.max_mb_s * 1e6)
            wait_s = self._next_byte_s - time.monotonic()
        time.sleep(max(0.0, wait_s))


def download(url: str, path: Path, config: HttpConfig, pace: Pace, sha256: str | None = None) -> str:
    """Fetches the file to `path`; its SHA-256. Raises FetchFailed."""
    part, reason = path.with_name(path.name + ".part"), ""
    for attempt in range(config.tries):
        if attempt:
            time.sleep(min(60.0, config.wait_s * 2 ** (attempt - 1)))
        try:
            _transfer(url, part, config, pace)
            break
        except urllib.error.HTTPError as error:
            reason = f"http {error.code} {error.reason}"
            if error.code == 416:  # What is there is not the beginning of this file.
                _forget(part)
            elif error.code not in _TRY_AGAIN:
                raise FetchFailed(reason) from error
            elif (wait_s := _retry_after_s(error.headers.get("Retry-After"))) is not None:
                time.sleep(min(60.0, wait_s))
        except (OSError, http.client.HTTPException) as error:
            reason = f"connection: {getattr(error, 'reason', None) or error or type(error).__name__}"
    else:
        raise FetchFailed(f"{reason}; {config.tries} tries")
    digest = _sha256(part)
    if sha256 and digest != sha256:
        _forget(part)
        raise FetchFailed(f"checksum: {digest}, the list says {sha256}")
    os.replace(part, path)
    _forget(part)
    return digest


def _transfer(url: str, part: Path, config: HttpConfig, pace: Pace) -> None:
    """One try: appends to `part` until it is whole. Raises OSError or HTTPException where it is not."""
    headers = {"User-Agent": "worldline", "Accept-Encoding": "identity"}
    done, known = _state(part)
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": known}
    pace.request()
    with urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=config.stall_s
    ) as answer:
        if answer.status != 206:
            done = 0
        elif not str(answer.headers.get("Content-Range", "")).startswith(f"bytes {done}-"):
            _forget(part)
            raise OSError("the server sent another range than was asked for")
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length is not None else None
        if total is not None and total > config.max_file_gb * 1e9:
            raise FetchFailed(f"too large: {total / 1e9:.1f} GB")
        # A weak tag does not promise equal bytes.
        tag = answer.headers.get("ETag") or ""
        version = answer.headers.get("Last-Modified") if not tag or tag.startswith("W/") else tag
        _note(part).write_text(json.dumps({"version": version or ""}))
        with part.open("ab" if done else "wb") as file:
            while block := answer.read1(_BLOCK_BYTES):  # read() would lose what came before a stall
                file.write(block)
                done += len(block)
                if done > config.max_file_gb * 1e9:
                    raise FetchFailed(f"too large: more than {config.max_file_gb:g} GB")
                pace.received(len(block))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done != total:
        raise OSError(f"ended after {done} of {total} bytes")
    if done == 0:
        raise OSError("an empty file")


def _state(part: Path) -> tuple[int, str]:
    """(bytes there, the version they are of); (0, "") where they cannot be gone on with."""
    try:
        version: Any = json.loads(_note(part).read_text())["version"]
        size = part.stat().st_size
    except (OSError, ValueError, KeyError):
        return 0, ""
    return (size, version) if version else (0, "")


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _forget(part: Path) -> None:
    for path in (part, _note(part)):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _retry_after_s(value: str | None) -> float | None:
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
