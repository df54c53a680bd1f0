"""Every repair undoes the mistake it names, made here independently by hand."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldline.annotate.camera import compose, invert
from worldline.evaluate.mistakes import MISTAKES, relative

GL = np.diag([1.0, -1, -1])
ROBOT = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])


def path(num=20):
    t = np.linspace(0, 2, num)
    rotation = Rotation.from_rotvec(np.stack([0.3 * t, 0.5 * np.sin(t), -0.2 * t], axis=-1)).as_matrix()
    return np.concatenate([rotation, np.stack([t, 0.2 * t**2, 2 * t], axis=-1)[..., None]], axis=-1)


def with_rotation(poses, rotation):
    return np.concatenate([rotation, poses[:, :, 3:]], axis=-1)


def rolled(poses, shift):
    quat = Rotation.from_matrix(poses[:, :, :3]).as_quat()
    return with_rotation(poses, Rotation.from_quat(np.roll(quat, shift, axis=-1)).as_matrix())


def from_first(poses):
    return compose(invert(poses[:1]), poses)


def mirrored(poses, axis):
    flip = np.eye(3)
    flip[axis, axis] = -1
    return np.concatenate([flip @ poses[:, :, :3] @ flip, flip @ poses[:, :, 3:]], axis=-1)


MADE = {
    "direction: cam_from_world is stored as world_from_cam": lambda p: np.linalg.inv(
        np.concatenate([p, np.tile([[[0.0, 0, 0, 1]]], (len(p), 1, 1))], axis=1)
    )[:, :3],
    "direction: rotations are transposed": lambda p: with_rotation(p, p[:, :, :3].mT),
    "direction: translations are those of cam_from_world": lambda p: np.concatenate(
        [p[:, :, :3], -np.einsum("nji,njk->nik", p[:, :, :3], p[:, :, 3:])], axis=-1
    ),
    "direction: translations are negated": lambda p: p * [1, 1, 1, -1],
    "axes: camera axes are OpenGL's (y up, z backward)": lambda p: with_rotation(p, p[:, :, :3] @ GL),
    "axes: world and camera axes are OpenGL's (y up, z backward)": lambda p: np.concatenate(
        [GL @ p[:, :, :3] @ GL, GL @ p[:, :, 3:]], axis=-1
    ),
    "axes: the world's axes are OpenGL's (y up, z backward)": lambda p: GL @ p,
    "axes: camera axes are a robot's (x forward, z up)": lambda p: with_rotation(p, p[:, :, :3] @ ROBOT.T),
    "axes: world and camera axes are a robot's (x forward, z up)": lambda p: np.concatenate(
        [ROBOT @ p[:, :, :3] @ ROBOT.T, ROBOT @ p[:, :, 3:]], axis=-1
    ),
    "handedness: x is mirrored": lambda p: mirrored(p, 0),
    "handedness: y is mirrored": lambda p: mirrored(p, 1),
    "handedness: z is mirrored": lambda p: mirrored(p, 2),
    "handedness: the camera is mirrored": lambda p: p * [1, 1, -1, 1],
    # scipy reads xyzw: a list (w, x, y, z) handed to it is the true one rolled by one place.
    "quaternion order: wxyz was read as xyzw": lambda p: rolled(p, 1),
    "quaternion order: xyzw was read as wxyz": lambda p: rolled(p, -1),
    "quaternion order: wxyz was read as xyzw, then made relative": lambda p: from_first(
        rolled(from_first(p), 1)
    ),
    "quaternion order: xyzw was read as wxyz, then made relative": lambda p: from_first(
        rolled(from_first(p), -1)
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_repair_undoes_the_mistake(name):
    truth = from_first(path())
    wrong = MADE[name](truth)
    assert np.abs(wrong - truth).max() > 0.1
    np.testing.assert_allclose(MISTAKES[name](wrong), truth, atol=1e-12)


def test_relative_pose_maps_first_to_second():
    poses = path()
    found = relative(poses, np.array([2, 5]), np.array([7, 6]))
    expected = compose(invert(poses[7:8]), poses[2:3])[0]
    np.testing.assert_allclose(found[0], expected, atol=1e-13)
