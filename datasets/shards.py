"""Rows of the trajectory table in, one WebDataset tar and its index rows out: the work of one shard.

Frame k of a written mp4 is a frame of the source, the nearest to k / fps after the clip's first; its pose,
intrinsics and sigmas are those of that very frame, with intrinsics and every other quantity in pixels brought to
the written size. Index rows of written clips are read back from the finished tar, so an index cannot state what
the tar does not hold.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldline.annotate.camera import Intrinsics
from worldline.annotate.video import Span, VideoInfo, local_copy, probe, read_frames
from worldline.datasets.clip_video import EncodeConfig, Fit, encode_video, nearest_frames
from worldline.datasets.schema import FAILED, OK, REJECTED, ClipRejected
from worldline.datasets.shard_format import (
    MEMBERS,
    PER_FRAME,
    TAR_END,
    Member,
    json_bytes,
    place_columns,
    row_from_json,
    scan_tar,
    split_member_name,
    tar_member,
)

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class CutClip:
    """What goes into the tar for one clip."""

    columns: Row
    """The index row without its place."""
    mp4: bytes


def cut_clip(row: Row, info: VideoInfo, config: EncodeConfig) -> CutClip:
    """Decodes one scene, resamples and encodes it.

    `row`: a row of the trajectories; `info`: the probed video of row["path"]. Raises ClipRejected("shard",
    reason): content_changed, no_camera_path, times_differ, too_short, frame_missing.
    """
    if info.video_id != row["video_id"]:
        detail = f"{row['path']} holds {info.video_id}, annotated was {row['video_id']}"
        raise ClipRejected("shard", "content_changed", detail)
    if row["status"] != OK or not row["world_from_cam"] or not row["fxfycxcy_px"]:
        raise ClipRejected("shard", "no_camera_path", row["reason"] or row["degeneracy"] or row["status"])
    times_s = np.array(row["timestamps_s"], dtype=np.float64)
    start = int(np.searchsorted(info.timestamps_s, times_s[0] - 1e-6))
    in_file = info.timestamps_s[start : start + len(times_s)]
    if len(in_file) != len(times_s) or np.abs(in_file - times_s).max() > 1e-6:
        raise ClipRejected("shard", "times_differ", "the file's frame times are not the row's")
    frame_idx = nearest_frames(times_s, config.fps)
    if len(frame_idx) < config.min_frames:
        raise ClipRejected("shard", "too_short", f"{len(frame_idx)} frames at {config.fps} fps")
    span = Span(start_s=float(times_s[0]), end_s=float(times_s[-1]) + 1e-3)
    fit = Fit(info.width, info.height, config.width, config.height)
    mp4 = encode_video(_fitted_frames(info, span, start + frame_idx, fit), config)
    return CutClip(columns=_written_columns(row, frame_idx, fit, config), mp4=mp4)


def _fitted_frames(info: VideoInfo, span: Span, wanted: np.ndarray, fit: Fit) -> Iterator[np.ndarray]:
    """One image for each entry of `wanted` (ascending indices in the file)."""
    frames = read_frames(info, span)
    index, image = -1, np.empty(0)
    for want in wanted.tolist():
        while index < want:
            frame = next(frames, None)
            if frame is None:
                break
            index = frame.index
            if index == want:
                image = fit.image(frame.image)
        if index != want:
            raise ClipRejected("shard", "frame_missing", f"frame {want} of the file does not decode")
        yield image


def _written_columns(row: Row, frame_idx: np.ndarray, fit: Fit, config: EncodeConfig) -> Row:
    columns = dict(row)
    for name, count in PER_FRAME.items():
        if name in row and row[name] is not None:
            values = np.array(row[name]).reshape(-1, count)[frame_idx]
            columns[name] = values.reshape(-1).tolist()
    source = Intrinsics(
        fxfycxcy_px=np.array(columns["fxfycxcy_px"], dtype=np.float64).reshape(-1, 4),
        width=row["width"],
        height=row["height"],
        model=row["camera_model"] or "pinhole",
        distortion=tuple(row["distortion"] or ()),
    )
    camera = fit.camera(source)
    for name in ("focal_sigma_px", "reprojection_px", "heldout_px"):
        if row[name] is not None:
            columns[name] = row[name] * fit.scaled[0] / row["width"]
    registered = columns["is_registered"]
    num_registered = len(frame_idx) if registered is None else int(np.sum(registered))
    with np.errstate(invalid="ignore"):
        fov_deg = np.degrees(np.nanmedian(camera.fov_rad(), axis=0))
    return columns | {
        "fxfycxcy_px": camera.fxfycxcy_px.reshape(-1).tolist(),
        "width": config.width,
        "height": config.height,
        "fps": float(config.fps),
        "num_frames": len(frame_idx),
        "num_registered": num_registered,
        "registered_share": num_registered / len(frame_idx),
        "fov_x_deg": float(fov_deg[0]),
        "fov_y_deg": float(fov_deg[1]),
        "frame_idx": frame_idx.tolist(),
        "repeated_share": float(np.mean(np.diff(frame_idx) == 0)) if len(frame_idx) > 1 else 0.0,
        "resize_factor": fit.factor,
    }


Guard = Callable[[Row, Callable[[], CutClip]], CutClip | Row]
"""Runs the cutting of a clip; gives its outcome columns (status, reason, error) where it yields nothing."""


def plain_guard(row: Row, cut: Callable[[], CutClip]) -> CutClip | Row:
    """Without a watchdog: a rejection becomes an outcome, an error is raised."""
    try:
        return cut()
    except ClipRejected as rejection:
        return {"status": REJECTED, "reason": str(rejection)}


def write_shard(
    rows: Iterable[Row],
    tar_path: Path,
    config: EncodeConfig,
    *,
    latent_dir: Path | None = None,
    guard: Guard = plain_guard,
) -> list[Row]:
    """Writes the tar under a temporary name, then renames it; returns one index row a clip, in their order.

    Clips of one video should follow each other: the file is fetched and probed once for them. `latent_dir` holds
    `<clip_id>.npy` files, which go along where they are. Raises OSError naming the file.
    """
    outcomes = (
        _members(outcome, _latent(latent_dir, row["clip_id"]))
        if isinstance(outcome, CutClip)
        else _identity(row) | outcome
        for row, outcome in _cut_all(rows, config, guard)
    )
    return write_tar(tar_path, outcomes)


def write_tar(path: Path, outcomes: Iterable[Sequence[tuple[str, bytes]] | Row]) -> list[Row]:
    """Writes the members (name, bytes) of each clip under a temporary name, then renames the tar; one index row a
    clip, in their order.

    The outcome of a clip that has no members is its row. Raises OSError naming the file.
    """
    order: list[str | Row] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as tar:
            for outcome in outcomes:
                if isinstance(outcome, dict):
                    order.append(outcome)
                    continue
                order.append(split_member_name(outcome[0][0])[0])
                for name, data in outcome:
                    tar.write(tar_member(name, data))
            tar.write(TAR_END)
            tar.flush()
            os.fsync(tar.fileno())
        placed = {row["clip_id"]: row for row in rows_of_tar(temporary, path.name)}
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return [placed[item] if isinstance(item, str) else item for item in order]


def rows_of_tar(path: Path, shard: str | None = None) -> Iterator[Row]:
    """The index rows that a tar's content amounts to; raises ClipRejected as `scan_tar`, and bad_metadata where
    members and their JSON do not fit together."""
    shard = shard or path.name

    def clip(item: tuple[Member, bytes]) -> str:
        return split_member_name(item[0].name)[0]

    for clip_id, members in itertools.groupby(_kept(scan_tar(path)), key=clip):
        found = list(members)
        suffixes = [split_member_name(member.name)[1] for member, _ in found]
        if suffixes != [suffix for suffix in MEMBERS if suffix in suffixes] or suffixes[0] != "json":
            raise ClipRejected("shard", "bad_metadata", f"{shard}: {clip_id} has members {suffixes}")
        try:
            columns = row_from_json(found[0][1])
        except ValueError as error:
            raise ClipRejected("shard", "bad_metadata", f"{shard}: {clip_id}: {error}") from error
        if columns["clip_id"] != clip_id:
            raise ClipRejected("shard", "bad_metadata", f"{shard}: {clip_id} says {columns['clip_id']}")
        yield columns | place_columns([member for member, _ in found], shard)


def _kept(members: Iterable[tuple[Member, bytes]]) -> Iterator[tuple[Member, bytes]]:
    """Members with the data of the small ones alone, so that a clip's video is not held while rows are made."""
    for member, data in members:
        yield member, data if member.name.endswith(".json") else b""


def check_npy(data: bytes) -> None:
    """ValueError unless the bytes are one .npy array of plain numbers; arrays of objects would unpickle."""
    np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


def _latent(latent_dir: Path | None, clip_id: str) -> bytes | None:
    if latent_dir is None or not (path := latent_dir / f"{clip_id}.npy").exists():
        return None
    data = path.read_bytes()
    try:
        check_npy(data)
    except ValueError as error:
        raise ValueError(f"{path}: not a plain .npy array ({error})") from error
    return data


def _members(clip: CutClip, latent: bytes | None) -> list[tuple[str, bytes]]:
    clip_id = clip.columns["clip_id"]
    latents = [] if latent is None else [(f"{clip_id}.latent.npy", latent)]
    return [(f"{clip_id}.json", json_bytes(clip.columns)), *latents, (f"{clip_id}.mp4", clip.mp4)]


def _cut_all(rows: Iterable[Row], config: EncodeConfig, guard: Guard) -> Iterator[tuple[Row, CutClip | Row]]:
    for _, clips in itertools.groupby(rows, key=lambda row: row["path"]):
        with contextlib.ExitStack() as stack:
            opened: list[VideoInfo] = []
            for row in clips:
                yield row, guard(row, functools.partial(_open_and_cut, row, opened, stack, config))


def _open_and_cut(
    row: Row, opened: list[VideoInfo], stack: contextlib.ExitStack, config: EncodeConfig
) -> CutClip:
    """Fetches and probes the video at the first call: inside the guard, since the file may be gone or kill us."""
    if not opened:
        try:
            opened.append(probe(stack.enter_context(local_copy(row["path"]))))
        except FileNotFoundError as error:
            raise ClipRejected("probe", "not_found", row["path"]) from error
    return cut_clip(row, opened[0], config)


def _identity(row: Row) -> Row:
    """The columns that a clip without a place keeps: who it is and where it comes from."""
    names = (
        "clip_id",
        "video_id",
        "source",
        "licence",
        "path",
        "start_s",
        "end_s",
        "tool_version",
        "config_hash",
    )
    return {name: row[name] for name in names}


def summary_of(rows: list[Row]) -> Row:
    """Counts for the journal's line."""
    count = {status: sum(row["status"] == status for row in rows) for status in (OK, REJECTED, FAILED)}
    frames = sum(row.get("num_frames") or 0 for row in rows if row["status"] == OK)
    return {**count, "num_frames": frames}
