"""A position in the training stream in, the sample that stands there out: a pure function of (seed, position).

The stream is epoch after epoch without a gap, each a permutation of all N samples, so position p lies in epoch
p // N. The permutation is a keyed Feistel network over the next power of two, walked until it lands below N (Black
and Rogaway 2002): nothing of size N is stored, any position costs the same, and resuming is setting a number. An
explicit permutation would be as exact but costs 8 N bytes a rank and a second a 10^7 samples at every start; both
are gone here, for about a millisecond a batch. numpy's own generators are not used, because numpy may change their output.

With weights an epoch is N draws by systematic resampling: sample i appears floor or ceil of N w_i / sum(w) times,
that share on average over epochs, and the draws are permuted as above.

With `window` set neighbours in the shards stay near in time: windows of that many samples are permuted, and
`windows_mixed` of them at a time are shuffled together, so disks and caches see few hot places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ROUNDS = 8
_MAX_TABLE = 1024
"""Up to here the permutation is sorted out of hashes: small Feistel networks are few and alike."""
_ALL = 2**64 - 1
_EPOCH, _OFFSET, _WINDOW, _REPLACEMENT, _SEED = range(1, 6)
"""What a key is for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderConfig:
    """What decides the order of samples."""

    seed: int = 0
    """Another seed, another order."""
    window: int = 0
    """Samples that stay together, in number; 0 shuffles everything with everything, right for members of a megabyte
    and more, where reading anywhere costs the same."""
    windows_mixed: int = 64
    """Windows that are open at a time."""

    def __post_init__(self) -> None:
        if self.window < 0 or self.windows_mixed < 1 or not 0 <= self.seed < 2**63:
            raise ValueError(f"window {self.window}, windows_mixed {self.windows_mixed}, seed {self.seed}")


class SampleOrder:
    """The order of `num_samples` samples, weighted where `cumulative_weight` [N] is given."""

    def __init__(
        self, num_samples: int, config: OrderConfig, cumulative_weight: np.ndarray | None = None
    ) -> None:
        if num_samples < 1:
            raise ValueError("an order needs at least one sample")
        self.num_samples, self._config = num_samples, config
        self._cumulative_weight = cumulative_weight

    def samples(self, positions: np.ndarray) -> np.ndarray:
        """Sample numbers [n] int64 at stream positions [n]."""
        positions = np.asarray(positions, dtype=np.int64)
        out = np.empty(len(positions), dtype=np.int64)
        epochs = positions // self.num_samples
        for epoch in np.unique(epochs).tolist():
            at = epochs == epoch
            out[at] = self._in_epoch(positions[at] - epoch * self.num_samples, epoch)
        return out

    def replacement(self, position: int, attempt: int) -> int:
        """The sample that stands in at `position` when those before it cannot be read; attempts count from 1."""
        number = int(_hash(self._config.seed, _REPLACEMENT, position, attempt)) % self.num_samples
        epoch = position // self.num_samples
        return int(self._of_slots(np.array([number]), epoch)[0])

    def seed_of(self, position: int) -> int:
        """The seed of whatever is random about the sample at a position."""
        return int(_hash(self._config.seed, _SEED, position))

    def _in_epoch(self, places: np.ndarray, epoch: int) -> np.ndarray:
        key = _hash(self._config.seed, _EPOCH, epoch)
        if self._config.window:
            slots = self._windowed(places, key)
        else:
            slots = permute(places, self.num_samples, key)
        return self._of_slots(slots, epoch)

    def _of_slots(self, slots: np.ndarray, epoch: int) -> np.ndarray:
        if self._cumulative_weight is None:
            return slots
        offset = float(_hash(self._config.seed, _OFFSET, epoch) >> np.uint64(11)) / 2**53
        total = float(self._cumulative_weight[-1])
        points = (slots + offset) / self.num_samples * total
        # Rounding may reach the total itself, which lies beyond the last sample.
        points = np.minimum(points, np.nextafter(total, 0))
        return np.searchsorted(self._cumulative_weight, points, side="right")

    def _windowed(self, places: np.ndarray, key: np.uint64) -> np.ndarray:
        """Slots at places, where permuted windows are shuffled in groups."""
        size, mixed = self._config.window, self._config.windows_mixed
        num_windows = -(-self.num_samples // size)
        short = num_windows * size - self.num_samples  # what the last window lacks
        # Where the last window, the short one, stands among the permuted ones.
        short_at = int(permute(np.array([num_windows - 1]), num_windows, key, inverse=True)[0])

        def start_of(rank: np.ndarray) -> np.ndarray:
            return rank * size - short * (rank > short_at)

        # A place before the short window's end counts full windows; behind it, everything is `short` earlier.
        group_size = size * mixed
        group = places // group_size
        group = np.where(start_of((group + 1) * mixed) <= places, group + 1, group)
        out = np.empty_like(places)
        for number in np.unique(group).tolist():
            at = group == number
            first, last = number * mixed, min((number + 1) * mixed, num_windows)
            start, end = (int(start_of(np.array(rank))) for rank in (first, last))
            inside = permute(places[at] - start, end - start, _hash(int(key), _WINDOW, number)) + start
            rank = np.minimum(inside // size, num_windows - 1)
            rank = np.where(start_of(rank + 1) <= inside, rank + 1, rank)
            out[at] = permute(rank, num_windows, key) * size + (inside - start_of(rank))
        return out


def permute(index: np.ndarray, size: int, key: np.uint64 | int, *, inverse: bool = False) -> np.ndarray:
    """Image [n] int64 of indices [n] in 0 ... size - 1 under the permutation of that range that `key` picks."""
    if size <= _MAX_TABLE:
        table = np.argsort(_mix(_mix(np.arange(size, dtype=np.uint64)) ^ np.uint64(key)), kind="stable")
        return (np.argsort(table) if inverse else table)[index]
    bits = (size - 1).bit_length()
    out = np.asarray(index, dtype=np.int64).astype(np.uint64)
    rounds = [_hash(int(key), number) for number in range(_ROUNDS)]
    todo = np.ones(len(out), dtype=bool)
    while todo.any():
        out[todo] = _feistel(out[todo], bits, rounds, inverse)
        todo &= out >= np.uint64(size)
    return out.astype(np.int64)


def _feistel(x: np.ndarray, bits: int, rounds: list[np.uint64], inverse: bool) -> np.ndarray:
    low = np.uint64(bits // 2)
    low_mask = (np.uint64(1) << low) - np.uint64(1)
    high_mask = (np.uint64(1) << np.uint64(bits - bits // 2)) - np.uint64(1)
    left, right = x >> low, x & low_mask
    numbered = list(enumerate(rounds))
    for number, key in reversed(numbered) if inverse else numbered:
        if number % 2:
            right = right ^ (_mix(left ^ key) & low_mask)
        else:
            left = left ^ (_mix(right ^ key) & high_mask)
    return (left << low) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every bit of the input reaches every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hash(*numbers: int) -> np.uint64:
    """64 bits from whole numbers, each taken modulo 2^64; `_mix` in Python's integers, quicker for one number."""
    state = 0
    for number in numbers:
        x = (state + number + 0x9E3779B97F4A7C15) & _ALL
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _ALL
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _ALL
        state = x ^ (x >> 31)
    return np.uint64(state)
