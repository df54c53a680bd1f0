"""Records of a selection in, the checked bytes of their members out; in other threads where that saves time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from isal.isal_zlib import crc32

from worldline.datasets.byte_ranges import ByteRange, RangeReader
from worldline.datasets.schema import ClipRejected
from worldline.datasets.shard_index import RECORD, members_of, shard_location

Record = tuple[Any, ...]
"""One of shard_index.RECORD as plain numbers."""
Fetched = dict[str, memoryview] | ClipRejected
"""Members as they lie in the shard, or why they cannot be had."""

_MERGE_GAP_BYTES = 4096
"""Members nearer than this are read in one go: the gap is a tar header and padding."""


class SampleBytes:
    """Reads from one shard folder. For one thread."""

    def __init__(self, location: str, members: tuple[str, ...], *, check: bool, is_mapped: bool) -> None:
        self._location, self._members, self._check = location, frozenset(members), check
        self._ranges = RangeReader(is_mapped=is_mapped)
        names = RECORD.names or ()
        self._size_columns = [names.index(f"{member}_size") for member in members]

    def size(self, record: Record) -> int:
        """Bytes that one sample costs."""
        return sum(record[at] for at in self._size_columns)

    def fetch_one(self, record: Record) -> Fetched:
        return self.fetch([record])[0]

    def fetch(self, records: list[Record]) -> list[Fetched]:
        """The members of samples, all their ranges asked for at once; raises OSError as RangeReader."""
        wanted: list[ByteRange] = []
        plans: list[list[tuple[int, str, int, int, int]]] = []
        for record in records:
            location = shard_location(self._location, record[1])
            plan: list[tuple[int, str, int, int, int]] = []
            for member, offset, size, stated in members_of(record):
                if member not in self._members:
                    continue
                last = wanted[-1] if plan else None
                if last is not None and 0 <= offset - (last.start + last.size) <= _MERGE_GAP_BYTES:
                    wanted[-1] = ByteRange(location, last.start, offset + size - last.start)
                else:
                    wanted.append(ByteRange(location, offset, size))
                plan.append((len(wanted) - 1, member, offset, size, stated))
            plans.append(plan)
        found = self._ranges.read(wanted)
        return [self._checked(plan, wanted, found) for plan in plans]

    def close(self) -> None:
        """Closes every file."""
        self._ranges.close()

    def _checked(
        self,
        plan: list[tuple[int, str, int, int, int]],
        wanted: list[ByteRange],
        found: list[memoryview | ClipRejected],
    ) -> Fetched:
        parts: dict[str, memoryview] = {}
        for at, member, offset, size, stated in plan:
            data = found[at]
            if isinstance(data, ClipRejected):
                return data
            start = offset - wanted[at].start
            part = data[start : start + size]
            if self._check and crc32(part) != stated:
                detail = f"{wanted[at].location}: .{member} at byte {offset}"
                return ClipRejected("loader", "checksum", detail)
            parts[member] = part
        if len(parts) < len(self._members):
            absent = ", ".join(sorted(self._members - parts.keys()))
            return ClipRejected("loader", "member_missing", absent)
        return parts


class ReadAhead:
    """Threads that each fetch samples one after the other; what was put in comes out in the order it was put in."""

    def __init__(self, make: Callable[[], SampleBytes], num_threads: int) -> None:
        self._lanes = [_Lane(make()) for _ in range(num_threads)]
        self._num_put = self._num_got = 0

    def put(self, record: Record) -> None:
        self._lanes[self._num_put % len(self._lanes)].records.put(record)
        self._num_put += 1

    def get(self) -> Fetched:
        """The next sample; raises what its fetching raised."""
        found = self._lanes[self._num_got % len(self._lanes)].fetched.get()
        self._num_got += 1
        if isinstance(found, Exception) and not isinstance(found, ClipRejected):
            raise found
        return found

    def close(self) -> None:
        """Ends the threads once they have done what they were given."""
        for lane in self._lanes:
            lane.records.put(None)


class _Lane:
    """One thread and what goes in and out. In turn over lanes the order needs no other bookkeeping."""

    def __init__(self, source: SampleBytes) -> None:
        self.records: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self.fetched: queue.SimpleQueue[Fetched | Exception] = queue.SimpleQueue()
        # A daemon: a process that ends with an iterator half used must not wait for a hanging disk.
        threading.Thread(target=self._run, args=(source,), name="worldline-read", daemon=True).start()

    def _run(self, source: SampleBytes) -> None:
        while (record := self.records.get()) is not None:
            try:
                self.fetched.put(source.fetch_one(record))
            except Exception as error:
                # Raised where the sample is asked for.
                self.fetched.put(error)
        source.close()
