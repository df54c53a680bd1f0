"""How a clip's latent frames are grouped into chunks: frames of a chunk see each other and all earlier
chunks.
"""

from __future__ import annotations

from collections.abc import Sequence


def one_chunk(num_frames: int) -> list[int]:
    """Bidirectional: every frame sees every frame."""
    return [0] * num_frames


def chunk_causal(num_frames: int, *, first: int = 4, rest: int = 3) -> list[int]:
    """Chunk index of each frame: a first chunk of `first` frames, then chunks of `rest`, the last perhaps
    shorter.

    The defaults are SANA-WM's: one minute is 121 = 4 + 39 * 3 latent frames.
    """
    if first < 1 or rest < 1:
        raise ValueError(f"chunks hold at least one frame, got first {first}, rest {rest}")
    return [0 if t < first else 1 + (t - first) // rest for t in range(num_frames)]


def chunk_spans(chunks: Sequence[int]) -> list[tuple[int, int]]:
    """(first frame, one past the last) of each run of equal chunk indices."""
    starts = [t for t in range(len(chunks)) if t == 0 or chunks[t] != chunks[t - 1]]
    return list(zip(starts, [*starts[1:], len(chunks)], strict=True))
