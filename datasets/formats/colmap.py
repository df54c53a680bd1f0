"""COLMAP models: cam_from_world as quaternion and translation, OpenCV axes, pixels from the corner: our own
convention.

Written and read by pycolmap, so text and binary, rigs and frames are what COLMAP itself makes. The sidecar's
points go along with their tracks. Image `frame_000042.png` is frame 42 of the clip. One camera per distinct
set of intrinsics.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pycolmap

from worldline.annotate.camera import Intrinsics, invert
from worldline.annotate.reconstruction import Reconstruction
from worldline.datasets.formats.companion import need_intrinsics, read_companion, spread, write_companion
from worldline.datasets.posed_clip import PosedClip

_MODELS = {
    "SIMPLE_PINHOLE": ("pinhole", [0, 0, 1, 2], []),
    "PINHOLE": ("pinhole", [0, 1, 2, 3], []),
    "SIMPLE_RADIAL": ("radial", [0, 0, 1, 2], [3]),
    "RADIAL": ("radial", [0, 0, 1, 2], [3, 4]),
    "OPENCV": ("radial", [0, 1, 2, 3], [4, 5, 6, 7]),
    "SIMPLE_RADIAL_FISHEYE": ("fisheye", [0, 0, 1, 2], [3]),
    "RADIAL_FISHEYE": ("fisheye", [0, 0, 1, 2], [3, 4]),
    "OPENCV_FISHEYE": ("fisheye", [0, 1, 2, 3], [4, 5, 6, 7]),
}
"""COLMAP model -> (our model, where fx fy cx cy stand, where the distortion stands; from the third on it must
be 0)."""


def write_colmap(clip: PosedClip, out_path: Path) -> None:
    """Writes a binary model into a new folder."""
    model = _model(clip)
    out_path.mkdir()
    model.write_binary(str(out_path))
    write_companion(clip, out_path)


def write_colmap_text(clip: PosedClip, out_path: Path) -> None:
    """Writes a text model into a new folder."""
    model = _model(clip)
    out_path.mkdir()
    model.write_text(str(out_path))
    write_companion(clip, out_path)


def read_colmap(
    path: Path, *, fps: float | None = None, width: int | None = None, height: int | None = None
) -> PosedClip:
    """Reads a text or binary model folder of one camera size.

    The number in an image's name is its frame. Raises ValueError for images without one, cameras of several
    sizes or lenses, models with more distortion than radial or fisheye (k1, k2), and unknown frame times.
    """
    del width, height  # The model has them.
    model = pycolmap.Reconstruction(str(path))
    images = [model.image(image_id) for image_id in model.reg_image_ids()]
    if not images:
        raise ValueError(f"{path}: the model has no registered image")
    frame_idx = np.array([_frame_of(image.name) for image in images])
    if len(set(frame_idx.tolist())) != len(frame_idx):
        raise ValueError(f"{path}: two images have the same number in their names")
    cameras = [_read_camera(model.camera(image.camera_id)) for image in images]
    lenses = {(camera.width, camera.height, camera.model, camera.distortion) for camera in cameras}
    if len(lenses) > 1:
        raise ValueError(f"{path}: images of {len(lenses)} sizes or lenses; one clip has one")
    known = read_companion(
        path, name=path.name, num_frames=int(frame_idx.max()) + 1, fps=fps, width=None, height=None
    )
    count = len(known.timestamps_s)
    cam_from_world = np.stack([image.cam_from_world().matrix() for image in images])
    fxfycxcy = np.stack([camera.fxfycxcy_px for camera in cameras])
    first = cameras[0]
    return PosedClip(
        clip_id=known.clip_id,
        timestamps_s=known.timestamps_s,
        world_from_cam=spread(invert(cam_from_world), frame_idx, count),
        intrinsics=Intrinsics(
            fxfycxcy_px=spread(fxfycxcy, frame_idx, count),
            width=first.width,
            height=first.height,
            model=first.model,
            distortion=first.distortion,
        ),
        scale_status=known.scale_status,
    )


def _model(clip: PosedClip) -> pycolmap.Reconstruction:
    fxfycxcy = need_intrinsics(clip, "colmap", pinhole=False)
    assert clip.intrinsics is not None
    model = pycolmap.Reconstruction()
    structure = _structure(clip)
    camera_ids: dict[bytes, int] = {}
    cam_from_world = invert(clip.world_from_cam)
    place: dict[tuple[int, int], tuple[int, int]] = {}  # (frame, observation) -> (image, index in the image)
    for frame in np.flatnonzero(clip.is_registered):
        key = fxfycxcy[frame].tobytes()
        if key not in camera_ids:
            camera_ids[key] = len(camera_ids) + 1
            model.add_camera_with_trivial_rig(
                _write_camera(clip.intrinsics, fxfycxcy[frame], camera_ids[key])
            )
        seen = np.flatnonzero(structure.frame_idx == frame) if structure else np.zeros(0, dtype=np.int64)
        image_id = int(frame) + 1
        image = pycolmap.Image(
            name=f"frame_{frame:06d}.png",
            keypoints=_at_row_size(clip, structure, seen),
            camera_id=camera_ids[key],
            image_id=image_id,
        )
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(cam_from_world[frame]))
        place |= {(int(frame), int(one)): (image_id, order) for order, one in enumerate(seen)}
    if structure:
        _add_points(model, structure, place)
    return model


def _structure(clip: PosedClip) -> Reconstruction | None:
    if clip.sidecar_path is None or not clip.sidecar_path.exists():
        return None
    return Reconstruction.load(clip.sidecar_path)


def _at_row_size(clip: PosedClip, structure: Reconstruction | None, seen: np.ndarray) -> np.ndarray:
    """Observations [N, 2] in pixels of the clip's own size."""
    if structure is None:
        return np.zeros((0, 2))
    assert clip.intrinsics is not None
    factor = np.array(
        [
            clip.intrinsics.width / structure.intrinsics.width,
            clip.intrinsics.height / structure.intrinsics.height,
        ]
    )
    return structure.xy_px[seen].astype(np.float64) * factor


def _add_points(
    model: pycolmap.Reconstruction, structure: Reconstruction, place: dict[tuple[int, int], tuple[int, int]]
) -> None:
    order = np.argsort(structure.point_idx, kind="stable")
    bounds = np.searchsorted(structure.point_idx[order], np.arange(len(structure.points_in_world) + 1))
    for point, position in enumerate(structure.points_in_world):
        elements = [
            pycolmap.TrackElement(*place[frame, int(one)])
            for one in order[bounds[point] : bounds[point + 1]]
            if (frame := int(structure.frame_idx[one]), int(one)) in place
        ]
        if len(elements) >= 2:
            model.add_point3D(
                position.astype(np.float64), pycolmap.Track(elements), structure.point_rgb[point]
            )


def _write_camera(intrinsics: Intrinsics, fxfycxcy: np.ndarray, camera_id: int) -> pycolmap.Camera:
    fx, fy, cx, cy = (float(value) for value in fxfycxcy)
    k = [float(value) for value in intrinsics.distortion]
    is_square = fx == fy
    model, params = {
        ("pinhole", True): ("PINHOLE", [fx, fy, cx, cy]),
        ("pinhole", False): ("PINHOLE", [fx, fy, cx, cy]),
        ("radial", True): ("RADIAL", [fx, cx, cy, *k]),
        ("radial", False): ("OPENCV", [fx, fy, cx, cy, *k, 0.0, 0.0]),
        ("fisheye", True): ("RADIAL_FISHEYE", [fx, cx, cy, *k]),
        ("fisheye", False): ("OPENCV_FISHEYE", [fx, fy, cx, cy, *k, 0.0, 0.0]),
    }[intrinsics.model, is_square]
    return pycolmap.Camera(
        model=model, width=intrinsics.width, height=intrinsics.height, params=params, camera_id=camera_id
    )


def _read_camera(camera: pycolmap.Camera) -> Intrinsics:
    name = camera.model.name
    if name not in _MODELS:
        raise ValueError(f"COLMAP camera model {name}: readable are {', '.join(_MODELS)}")
    model, where, distorted = _MODELS[name]
    k = [float(camera.params[i]) for i in distorted]
    if any(k[2:]):
        raise ValueError(f"COLMAP camera {name} with {k}: more than (k1, k2) has no place in the table")
    distortion = tuple((*k, 0.0, 0.0)[:2]) if model != "pinhole" else ()
    return Intrinsics(
        fxfycxcy_px=np.array([camera.params[i] for i in where]),
        width=camera.width,
        height=camera.height,
        model=model,
        distortion=distortion,
    )


def _frame_of(name: str) -> int:
    numbers = re.findall(r"\d+", Path(name).stem)
    if not numbers:
        raise ValueError(f"image {name!r} has no frame number in its name")
    return int(numbers[-1])
