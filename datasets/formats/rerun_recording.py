"""rerun recordings (.rrd): the clip's camera, path and points on its own time line, for the rerun viewer.

rerun's axes are ours: camera RDF (x right, y down, z forward), child-to-parent transforms, pixels from the corner.
Numbers are single precision there, times whole nanoseconds. Entity /world/camera carries transform and pinhole a
frame; /world/path the path; /world/points the sparse structure where it was kept; /clip the rest.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import rerun
import rerun.chunk

from worldline.annotate.camera import Intrinsics
from worldline.annotate.reconstruction import Reconstruction
from worldline.datasets.formats.companion import facts, need_intrinsics
from worldline.datasets.posed_clip import PosedClip

_CAMERA = "/world/camera"


def write_rerun(clip: PosedClip, out_path: Path) -> None:
    """Writes one recording; a frame without a pose clears the camera. Lens distortion, for which rerun has no
    place, is refused."""
    fxfycxcy = need_intrinsics(clip, "rerun")
    assert clip.intrinsics is not None
    recording_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"worldline:{clip.clip_id}"))
    stream = rerun.RecordingStream("worldline", recording_id=recording_id)
    stream.save(out_path)
    stream.log("/clip", rerun.AnyValues(facts=json.dumps(facts(clip))), static=True)
    stream.log("/world", rerun.ViewCoordinates.RDF, static=True)
    centres = clip.world_from_cam[clip.is_registered, :, 3]
    stream.log("/world/path", rerun.LineStrips3D([centres]), static=True)
    if clip.sidecar_path is not None and clip.sidecar_path.exists():
        points = Reconstruction.load(clip.sidecar_path).points_in_world
        stream.log("/world/points", rerun.Points3D(points), static=True)
    for frame, time_s in enumerate(clip.timestamps_s.tolist()):
        stream.set_time("frame", sequence=frame)
        stream.set_time("video_time", duration=time_s)
        if not clip.is_registered[frame]:
            stream.log(_CAMERA, rerun.Clear(recursive=False))
            continue
        pose, (fx, fy, cx, cy) = clip.world_from_cam[frame], fxfycxcy[frame]
        stream.log(_CAMERA, rerun.Transform3D(translation=pose[:, 3], mat3x3=pose[:, :3]))
        size = (clip.intrinsics.width, clip.intrinsics.height)
        stream.log(_CAMERA, rerun.Pinhole(focal_length=[fx, fy], principal_point=[cx, cy], resolution=size))
    stream.flush()
    stream.disconnect()


def read_rerun(
    path: Path, *, fps: float | None = None, width: int | None = None, height: int | None = None
) -> PosedClip:
    """Reads a recording that `write_rerun` made; ValueError where its entities are not there.

    The keywords are those of every importer and change nothing here: the recording has everything.
    """
    del fps, width, height
    known: dict[str, Any] = {}
    columns: dict[str, dict[int, np.ndarray]] = {}
    for entity, batch in _batches(path):
        names = {name.rsplit(":", 1)[-1]: name for name in batch.schema.names}
        if entity == "/clip" and "facts" in names:
            known = json.loads(batch[names["facts"]][0].as_py()[0])
        if entity == _CAMERA and "frame" in names:
            frames = batch[names["frame"]].to_pylist()
            for short in ("translation", "mat3x3", "image_from_camera", "resolution"):
                if short in names:
                    found = zip(frames, batch[names[short]].to_pylist(), strict=True)
                    columns.setdefault(short, {}).update((f, np.array(v[0])) for f, v in found if v)
    if not known or {"translation", "mat3x3", "image_from_camera", "resolution"} - set(columns):
        raise ValueError(f"{path}: not a recording of a worldline clip")
    count = len(known["timestamps_s"])
    poses, fxfycxcy = np.full((count, 3, 4), np.nan), np.full((count, 4), np.nan)
    for frame, translation in columns["translation"].items():
        # rerun stores matrices column by column.
        poses[frame, :, :3] = columns["mat3x3"][frame].reshape(3, 3).T
        poses[frame, :, 3] = translation
        matrix = columns["image_from_camera"][frame].reshape(3, 3).T
        fxfycxcy[frame] = matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]
    size = next(iter(columns["resolution"].values())).astype(int).tolist()
    return PosedClip(
        clip_id=known["clip_id"],
        timestamps_s=np.array(known["timestamps_s"], dtype=np.float64),
        world_from_cam=poses,
        intrinsics=Intrinsics(fxfycxcy_px=fxfycxcy, width=size[0], height=size[1]),
        scale_status=known.get("scale_status"),
    )


def _batches(path: Path):
    for chunk in rerun.chunk.RrdReader(path).stream():
        yield str(chunk.entity_path), chunk.to_record_batch()
