"""One shard of videos in, one shard of their latents out: the same clips, `json` and `latent.npy` in place of mp4.

A folder of such shards is a shard folder like any other: the index, queries, the loader, `worldline verify` and plain
webdataset read it. The metadata are those of what was encoded: lens and size after straightening, scaling and cutting,
so that clips of bent lenses can be trained on from latents too.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from worldline.annotate.camera import Intrinsics
from worldline.datasets.clip_video import cover, decode_video
from worldline.datasets.schema import ClipRejected
from worldline.datasets.shard_format import json_bytes, row_from_json, scan_tar, split_member_name
from worldline.datasets.shards import write_tar
from worldline.datasets.straighten import straighten

Row = dict[str, Any]
Encoded = tuple[Row, np.ndarray]
"""Columns of the row that change, and latents [c, T, h, w]."""
Guard = Callable[[Row, Callable[[], Encoded]], Encoded | Row]
"""Runs the encoding of a clip; gives its outcome columns (status, reason, error) where it yields nothing."""

_FRAMES_A_PIECE = 64
"""Frames decoded at a time, whole strides: memory does not grow with the clip's length."""


class PieceEncoder(Protocol):
    """An autoencoder that takes a clip piece by piece; called anew for each clip."""

    time_stride: int

    def __call__(self, pieces: Iterable[np.ndarray]) -> np.ndarray:
        """Pieces [F, H, W, 3] uint8, the first of time_stride k + 1 frames, the others of time_stride k, in;
        latents [c, T, h, w] out.
        """
        ...


def encode_clip(row: Row, mp4: bytes, encoder: PieceEncoder, width: int, height: int) -> Encoded:
    """Decodes, straightens, scales and encodes a clip; frames behind the last whole stride are left out.

    Raises ClipRejected of the decoder, and ("latents", "too_short") for a clip of no frame.
    """
    lens = Intrinsics(
        fxfycxcy_px=np.array(row["fxfycxcy_px"], dtype=np.float64).reshape(-1, 4),
        width=row["width"],
        height=row["height"],
        model=row.get("camera_model") or "pinhole",
        distortion=tuple(row.get("distortion") or ()),
    )
    count = int(row["num_frames"])
    if count < 1:
        raise ClipRejected("latents", "too_short", f"{count} frames")
    count = 1 + (count - 1) // encoder.time_stride * encoder.time_stride
    ends = [1, *range(1 + _FRAMES_A_PIECE, count, _FRAMES_A_PIECE), count] if count > 1 else [1]
    starts = [0, *ends[:-1]]
    spans = [(start, end) for start, end in zip(starts, ends, strict=True) if end > start]
    fitted: list[Intrinsics] = []

    def pieces() -> Iterator[np.ndarray]:
        for start, end in spans:
            images = decode_video(mp4, start, end - start, 1)
            part = _part(lens, start, end)
            if any(lens.distortion):
                images, part = straighten(images, part)
            images, part = cover(images, part, width, height)
            fitted.append(part)
            yield images

    latents = encoder(pieces())
    fxfycxcy_px = np.concatenate(
        [
            np.broadcast_to(part.fxfycxcy_px, (end - start, 4))
            for part, (start, end) in zip(fitted, spans, strict=True)
        ]
    )
    # Frames that were left out keep a lens, as every other column keeps its length.
    missing = int(row["num_frames"]) - len(fxfycxcy_px)
    fxfycxcy_px = np.concatenate([fxfycxcy_px, np.repeat(fxfycxcy_px[-1:], missing, axis=0)])
    columns: Row = {"fxfycxcy_px": fxfycxcy_px.reshape(-1).tolist(), "width": width, "height": height}
    if any(lens.distortion):
        columns |= {"camera_model": fitted[0].model, "distortion": list(fitted[0].distortion)}
    return columns, latents


def encode_shard(
    source: Path,
    target: Path,
    encode: Callable[[Row, bytes], Encoded],
    *,
    guard: Guard,
) -> list[Row]:
    """Writes `target` under a temporary name, then renames it; one index row a clip of `source`, in its order.

    Raises OSError naming the file, ClipRejected where the source is no whole shard.
    """

    def outcomes() -> Iterator[list[tuple[str, bytes]] | Row]:
        for row, mp4 in _clips(source):
            outcome = guard(row, functools.partial(encode, row, mp4))
            if isinstance(outcome, dict):
                yield row | outcome
                continue
            columns, latents = outcome
            buffer = io.BytesIO()
            np.save(buffer, latents, allow_pickle=False)
            name = row["clip_id"]
            yield [(f"{name}.json", json_bytes(row | columns)), (f"{name}.latent.npy", buffer.getvalue())]

    return write_tar(target, outcomes())


def _clips(source: Path) -> Iterator[tuple[Row, bytes]]:
    row: Row = {}
    for member, data in scan_tar(source):
        suffix = split_member_name(member.name)[1]
        if suffix == "json":
            row = row_from_json(data)
        elif suffix == "mp4":
            yield row, bytes(data)


def _part(lens: Intrinsics, start: int, end: int) -> Intrinsics:
    values = lens.fxfycxcy_px if len(lens.fxfycxcy_px) == 1 else lens.fxfycxcy_px[start:end]
    return Intrinsics(
        fxfycxcy_px=values, width=lens.width, height=lens.height, model=lens.model, distortion=lens.distortion
    )
