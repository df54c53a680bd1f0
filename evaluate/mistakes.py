"""The ways camera paths are commonly written down wrongly, each with the repair that would make such a path
right.

A repair takes stored poses [N, 3, 4] and returns what the true ones would be if that mistake had been made.
The linter tries them all: the evidence (tracks, frames) must favour the poses as they are stored.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from worldline.annotate.camera import compose, invert, quat_xyzw_from_rotation, rotation_from_quat_xyzw

Repair = Callable[[np.ndarray], np.ndarray]

_GL_FROM_CV = np.diag([1.0, -1.0, -1.0])
"""OpenGL and Blender cameras: x right, y up, z backward."""
_ROBOT_FROM_CV = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
"""ROS bodies: x forward, y left, z up."""


def _axes(other_from_cv: np.ndarray, *, world: bool, camera: bool) -> Repair:
    """Undoes axes `other` of the world, of the camera, or of both."""

    def repair(poses: np.ndarray) -> np.ndarray:
        left = other_from_cv.T if world else np.eye(3)
        right = other_from_cv if camera else np.eye(3)
        return np.concatenate([left @ poses[:, :, :3] @ right, left @ poses[:, :, 3:]], axis=-1)

    return repair


def _mirror(axis: int) -> Repair:
    """Undoes left-handed axes: one axis of world and camera points the other way."""
    flip = np.eye(3)
    flip[axis, axis] = -1.0
    return _axes(flip, world=True, camera=True)


def _quaternion_roll(shift: int, *, relative: bool) -> Repair:
    """Undoes a quaternion whose scalar part was taken from the wrong end; `relative`: made so before the path
    was taken relative to its first frame, whose identity the same mistake had turned into a half turn."""
    turned_identity = rotation_from_quat_xyzw(np.roll([0.0, 0, 0, 1], -shift))

    def repair(poses: np.ndarray) -> np.ndarray:
        if relative:
            poses = np.concatenate(
                [turned_identity @ poses[:, :, :3], turned_identity @ poses[:, :, 3:]], axis=-1
            )
        quat = np.roll(quat_xyzw_from_rotation(poses[:, :, :3]), shift, axis=-1)
        return np.concatenate([rotation_from_quat_xyzw(quat), poses[:, :, 3:]], axis=-1)

    return repair


def _transposed(poses: np.ndarray) -> np.ndarray:
    return np.concatenate([poses[:, :, :3].mT, poses[:, :, 3:]], axis=-1)


def _foreign_translation(poses: np.ndarray) -> np.ndarray:
    return np.concatenate([poses[:, :, :3], -(poses[:, :, :3] @ poses[:, :, 3:])], axis=-1)


def _negated_translation(poses: np.ndarray) -> np.ndarray:
    return np.concatenate([poses[:, :, :3], -poses[:, :, 3:]], axis=-1)


def _mirrored_camera(poses: np.ndarray) -> np.ndarray:
    return np.concatenate([poses[:, :, :3] @ np.diag([1.0, 1, -1]), poses[:, :, 3:]], axis=-1)


MISTAKES: dict[str, Repair] = {
    "direction: cam_from_world is stored as world_from_cam": invert,
    "direction: rotations are transposed": _transposed,
    "direction: translations are those of cam_from_world": _foreign_translation,
    "direction: translations are negated": _negated_translation,
    "axes: camera axes are OpenGL's (y up, z backward)": _axes(_GL_FROM_CV, world=False, camera=True),
    "axes: world and camera axes are OpenGL's (y up, z backward)": _axes(
        _GL_FROM_CV, world=True, camera=True
    ),
    "axes: the world's axes are OpenGL's (y up, z backward)": _axes(_GL_FROM_CV, world=True, camera=False),
    "axes: camera axes are a robot's (x forward, z up)": _axes(_ROBOT_FROM_CV, world=False, camera=True),
    "axes: world and camera axes are a robot's (x forward, z up)": _axes(
        _ROBOT_FROM_CV, world=True, camera=True
    ),
    "handedness: x is mirrored": _mirror(0),
    "handedness: y is mirrored": _mirror(1),
    "handedness: z is mirrored": _mirror(2),
    "handedness: the camera is mirrored": _mirrored_camera,
    "quaternion order: wxyz was read as xyzw": _quaternion_roll(-1, relative=False),
    "quaternion order: xyzw was read as wxyz": _quaternion_roll(1, relative=False),
    "quaternion order: wxyz was read as xyzw, then made relative": _quaternion_roll(-1, relative=True),
    "quaternion order: xyzw was read as wxyz, then made relative": _quaternion_roll(1, relative=True),
}
"""Name of the mistake -> its repair. The word before the colon is the kind of mistake."""


def relative(world_from_cam: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """cam_second_from_cam_first [M, 3, 4] of index pairs [M], [M]."""
    return compose(invert(world_from_cam[second]), world_from_cam[first])
