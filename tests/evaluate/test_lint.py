"""The linter on sound rows and on rows spoilt in each way it must name."""

import json

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldline.annotate.camera import Intrinsics, compose, invert, project, transform
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.video import probe, read_frames
from worldline.datasets.posed_clip import PosedClip, clip_from_row
from worldline.datasets.schema import CONVENTIONS, TRAJECTORIES
from worldline.evaluate.lint import LintConfig, judge, lint_row, main
from worldline.evaluate.lint_evidence import (
    angle_off_epipolar_arc,
    corner_offsets,
    frame_evidence,
    match_frames,
)
from worldline.evaluate.lint_structure import check_metadata, check_row

NUM_FRAMES, WIDTH, HEIGHT = 40, 1280, 720
GL = np.diag([1.0, -1, -1])
ROBOT = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])


def camera_path():
    t = np.linspace(0, 1.5, NUM_FRAMES)
    rotation = Rotation.from_rotvec(np.stack([0.15 * t, 0.3 * np.sin(t), -0.1 * t], axis=-1)).as_matrix()
    centre = np.stack([0.5 * t, 0.1 * np.sin(2 * t), 0.8 * t], axis=-1)
    poses = np.concatenate([rotation, centre[..., None]], axis=-1)
    return compose(invert(poses[:1]), poses)


def scene(poses, noise_px=0.4, model="radial", distortion=(-0.1, 0.02)):
    """Points seen by the path at half the row's size, with tracker noise, as a sidecar holds them."""
    rng = np.random.default_rng(3)
    intrinsics = Intrinsics(
        fxfycxcy_px=np.tile([500.0, 500, 320, 180], (NUM_FRAMES, 1)),
        width=WIDTH // 2,
        height=HEIGHT // 2,
        model=model,
        distortion=distortion,
    )
    points = np.stack([rng.uniform(-4, 4, 600), rng.uniform(-2, 2, 600), rng.uniform(2, 9, 600)], axis=-1)
    pixels = project(transform(invert(poses), points), intrinsics) + noise_px * rng.normal(
        size=(NUM_FRAMES, 600, 2)
    )
    inside = (pixels > 0).all(axis=-1) & (pixels < [640, 360]).all(axis=-1)
    frame_idx, point_idx = np.nonzero(inside)
    return Reconstruction(
        timestamps_s=np.arange(NUM_FRAMES) / 30,
        cam_from_world=invert(poses),
        intrinsics=intrinsics,
        points_in_world=points,
        point_rgb=np.zeros((600, 3), np.uint8),
        frame_idx=frame_idx.astype(np.int32),
        point_idx=point_idx.astype(np.int32),
        xy_px=pixels[inside].astype(np.float32),
    )


@pytest.fixture
def sound(make_dataset, tmp_path):
    """(dataset folder, sound row with sidecar)"""
    poses = camera_path()
    structure = scene(poses)
    times = structure.timestamps_s
    full = structure.intrinsics.resized(WIDTH, HEIGHT)
    row = make_dataset.row(
        "clip",
        times,
        poses,
        width=WIDTH,
        height=HEIGHT,
        end_s=float(times[-1]) + 1 / 30,
        fxfycxcy_px=full.fxfycxcy_px.reshape(-1).tolist(),
        camera_model=full.model,
        distortion=list(full.distortion),
        sidecar_path="sidecar.npz",
    )
    folder = make_dataset([row])
    structure.save(folder / "sidecar.npz")
    return folder, row


def poses_of(row):
    return np.array(row["world_from_cam"]).reshape(-1, 3, 4)


def with_poses(row, poses):
    return row | {"world_from_cam": poses.reshape(-1).tolist()}


def check(sound, row):
    return lint_row(row, sound[0], LintConfig(dataset=sound[0], num_rematched=0))


def shifted_intrinsics(row, shift):
    fxfycxcy = np.array(row["fxfycxcy_px"]).reshape(-1, 4) + np.array([0, 0, shift, shift])
    return row | {"fxfycxcy_px": fxfycxcy.reshape(-1).tolist()}


def rolled(poses, shift):
    quat = np.roll(Rotation.from_matrix(poses[:, :, :3]).as_quat(), shift, axis=-1)
    rotated = np.concatenate([Rotation.from_quat(quat).as_matrix(), poses[:, :, 3:]], axis=-1)
    return compose(invert(rotated[:1]), rotated)


def mirrored(poses, axis):
    flip = np.eye(3)
    flip[axis, axis] = -1
    return np.concatenate([flip @ poses[:, :, :3] @ flip, flip @ poses[:, :, 3:]], axis=-1)


def turned(poses, axes):
    return np.concatenate([axes @ poses[:, :, :3] @ axes.T, axes @ poses[:, :, 3:]], axis=-1)


SPOILT_POSES = {
    "direction: cam_from_world": invert,
    "direction: rotations are transposed": lambda p: np.concatenate([p[:, :, :3].mT, p[:, :, 3:]], axis=-1),
    "direction: translations are those": lambda p: np.concatenate(
        [p[:, :, :3], invert(p)[:, :, 3:]], axis=-1
    ),
    "direction: translations are negated": lambda p: p * [1, 1, 1, -1],
    "axes: camera axes are OpenGL": lambda p: p @ np.diag([1.0, -1, -1, 1]),
    "axes: world and camera axes are OpenGL": lambda p: turned(p, GL),
    "axes: the world's axes are OpenGL": lambda p: GL @ p,
    "axes: camera axes are a robot": lambda p: np.concatenate([p[:, :, :3] @ ROBOT.T, p[:, :, 3:]], axis=-1),
    "axes: world and camera axes are a robot": lambda p: turned(p, ROBOT),
    "handedness: x": lambda p: mirrored(p, 0),
    "handedness: y": lambda p: mirrored(p, 1),
    "handedness: z": lambda p: mirrored(p, 2),
    "handedness: the camera": lambda p: p * [1, 1, -1, 1],
    "quaternion order: wxyz was read as xyzw, then": lambda p: rolled(p, 1),
    "quaternion order: xyzw was read as wxyz, then": lambda p: rolled(p, -1),
    "unit: translations are 1000 times": lambda p: p * [1, 1, 1, 1000],
    "unit: translations are 0.3048 times": lambda p: p * [1, 1, 1, 0.3048],
}


def test_sound_row_passes(sound):
    found = check(sound, sound[1])
    assert found.problems == ()
    assert "tracks: 0.5" in found.notes[0]  # The mean length of Gaussian noise of 0.4 px in a plane is 0.50.
    assert "next reading" in found.notes[0]
    assert main(LintConfig(dataset=sound[0], num_rematched=0)) == 0


@pytest.mark.parametrize("name", SPOILT_POSES)
def test_spoilt_poses_are_named_first(sound, name):
    wrong = with_poses(sound[1], SPOILT_POSES[name](poses_of(sound[1])))
    found = check(sound, wrong)
    by_tracks = [problem for problem in found.problems if "(tracks:" in problem]
    assert len(by_tracks) == 1
    assert by_tracks[0].startswith(name)
    assert " OR " not in by_tracks[0]


@pytest.mark.parametrize("shift", [0.5, -0.5])
def test_half_a_pixel_of_the_principal_point_is_named(sound, shift):
    (problem,) = check(sound, shifted_intrinsics(sound[1], shift)).problems
    assert problem.startswith("pixel origin: the principal point is half a pixel off")


def test_resize_about_pixel_centres_is_told_apart_from_half_a_pixel(sound):
    # Resizing 640 to 1920 with (c + 0.5) s - 0.5 read back as if c counted from the corner: 0.5 (s - 1) = 1
    # px too much.
    folder, row = sound
    row = row | {"width": 1920, "height": 1080}
    fxfycxcy = np.array(row["fxfycxcy_px"]).reshape(-1, 4) * 1.5
    right = row | {"fxfycxcy_px": fxfycxcy.reshape(-1).tolist()}
    assert check(sound, right).problems == ()
    (problem,) = check(sound, shifted_intrinsics(right, 1.0)).problems
    assert problem.startswith("pixel origin: resized as if")
    assert folder.exists()


def test_half_a_pixel_in_sidecar_and_row_together_shows_as_bias(sound):
    folder, row = sound
    structure = Reconstruction.load(folder / "sidecar.npz")
    moved = structure.intrinsics.fxfycxcy_px + np.array([0, 0, 0.25, 0.25])
    path = folder / "sidecar.npz"
    with np.load(path) as data:
        arrays = dict(data) | {"fxfycxcy_px": moved}
    np.savez_compressed(path, **arrays)
    (problem,) = check(sound, shifted_intrinsics(row, 0.5)).problems
    assert problem.startswith("pixel origin: observations lie half a pixel off")


def test_other_intrinsics_are_found(sound):
    fxfycxcy = np.array(sound[1]["fxfycxcy_px"]).reshape(-1, 4)
    longer = sound[1] | {"fxfycxcy_px": (fxfycxcy * [1.005, 1.005, 1, 1]).reshape(-1).tolist()}
    assert any("focal length is 0.50% off" in p for p in check(sound, longer).problems)
    normalised = sound[1] | {"fxfycxcy_px": (fxfycxcy / [1280, 720, 1280, 720]).reshape(-1).tolist()}
    assert any(p.startswith("unit: fx is 0.78") for p in check(sound, normalised).problems)
    half_size = sound[1] | {"fxfycxcy_px": (fxfycxcy * 3).reshape(-1).tolist()}
    assert any("principal point leaves" in p for p in check(sound, half_size).problems)


def test_poses_that_no_mistake_explains_are_refused(sound):
    poses = poses_of(sound[1])
    shake = Rotation.from_rotvec(0.05 * np.random.default_rng(0).normal(size=(NUM_FRAMES, 3))).as_matrix()
    shake[0] = np.eye(3)
    wrong = with_poses(sound[1], np.concatenate([poses[:, :, :3] @ shake, poses[:, :, 3:]], axis=-1))
    (problem,) = check(sound, wrong).problems
    assert problem.startswith("residual: poses do not explain the tracks")


def test_resting_camera_is_undecided_not_wrong(make_dataset):
    poses = np.tile(np.eye(3, 4), (NUM_FRAMES, 1, 1))
    structure = scene(poses, model="pinhole", distortion=())
    row = make_dataset.row("clip", structure.timestamps_s, poses, width=640, height=360, sidecar_path="s.npz")
    row["fxfycxcy_px"] = structure.intrinsics.fxfycxcy_px.reshape(-1).tolist()
    folder = make_dataset([row])
    structure.save(folder / "s.npz")
    found = lint_row(row, folder, LintConfig(dataset=folder, num_rematched=0))
    assert found.problems == ()
    assert "the motion does not tell" in found.notes[0]


STRUCTURE = {
    "rotation: ": lambda row: with_poses(row, poses_of(row) * [1.01, 1, 1, 1]),
    "gauge: ": lambda row: with_poses(row, poses_of(row) + np.array([0, 0, 0, 1.0])),
    "length: world_from_cam": lambda row: row | {"world_from_cam": row["world_from_cam"][:-12]},
    "length: is_registered": lambda row: row | {"is_registered": [True] * 39 + [False]},
    "length: num_frames": lambda row: row | {"num_frames": None},
    "time: timestamps": lambda row: row | {"timestamps_s": row["timestamps_s"][::-1]},
    "time: frames": lambda row: row | {"end_s": 0.5},
    "unit: a metric clip moves": lambda row: with_poses(row, poses_of(row) * [1, 1, 1, 1000]),
    "unit: path_length": lambda row: row | {"path_length": 2.0},
    "unit: scale_sigma": lambda row: row | {"scale_sigma": -0.1},
    "unit: gravity": lambda row: row | {"gravity_in_world": [0.0, 9.81, 0.0]},
    "unit: sigma_translation": lambda row: row | {"sigma_translation": [-1.0] * NUM_FRAMES},
    "unit: fov_x_deg": lambda row: row | {"fov_x_deg": 50.0, "camera_model": "pinhole"},
    "label: degeneracy": lambda row: row | {"degeneracy": "wobbly"},
    "label: scale_status": lambda row: row | {"scale_status": "meters"},
    "status: ": lambda row: row | {"status": "failed"},
}


@pytest.mark.parametrize("name", STRUCTURE)
def test_structure_is_checked(sound, name):
    assert check_row(sound[1]) == []
    assert any(problem.startswith(name) for problem in check_row(STRUCTURE[name](sound[1])))


def test_metadata_is_checked(sound, make_dataset, capsys):
    assert check_metadata(TRAJECTORIES.metadata) == []
    other = dict(TRAJECTORIES.metadata)
    other[b"worldline_conventions"] = json.dumps(CONVENTIONS | {"axes": "OpenGL"}).encode()
    assert check_metadata(other)[0].startswith("schema: convention 'axes' is 'OpenGL'")
    assert check_metadata(None)[0].startswith("schema: version none")
    make_dataset([sound[1]], TRAJECTORIES.with_metadata(other))
    assert main(LintConfig(dataset=sound[0], num_rematched=0)) == 1
    assert "schema: convention 'axes'" in capsys.readouterr().out


def test_command_reports_wrong_rows_and_absent_parts(sound, make_dataset, tmp_path, capsys):
    folder, row = sound
    wrong = with_poses(row, invert(poses_of(row))) | {"clip_id": "wrong"}
    gone = row | {"clip_id": "gone", "sidecar_path": "gone.npz"}
    make_dataset([row, wrong, gone])
    config = LintConfig(dataset=folder, json=True)
    assert main(config) == 1
    found = {json.loads(line)["clip_id"]: json.loads(line) for line in capsys.readouterr().out.splitlines()}
    assert found["clip"]["problems"] == []
    assert any(
        "not_found" in note for note in found["clip"]["notes"]
    )  # The video named in the row is absent.
    assert any("cam_from_world" in problem for problem in found["wrong"]["problems"])
    assert any("named but absent" in problem for problem in found["gone"]["problems"])
    assert main(LintConfig(dataset=folder, clip="clip", num_rematched=0)) == 0
    assert main(LintConfig(dataset=folder, max_clips=1, num_rematched=0)) == 0
    assert main(LintConfig(dataset=tmp_path / "nowhere")) == 2


def test_arc_equals_a_search_over_depths():
    rng = np.random.default_rng(5)
    rays_first, rays_second = rng.normal(size=(2, 200, 3))
    rays_first /= np.linalg.norm(rays_first, axis=-1, keepdims=True)
    rays_second /= np.linalg.norm(rays_second, axis=-1, keepdims=True)
    second_from_first = np.concatenate([Rotation.random(rng=rng).as_matrix(), [[0.4], [-0.2], [0.9]]], axis=1)
    depth = np.concatenate([[0], np.geomspace(1e-4, 1e5, 40_000)])
    found = angle_off_epipolar_arc(rays_first, rays_second, second_from_first)
    for i in range(0, 200, 4):
        seen = transform(second_from_first, depth[:, None] * rays_first[i])
        seen /= np.linalg.norm(seen, axis=-1, keepdims=True)
        nearest = np.arccos(np.clip(seen @ rays_second[i], -1, 1)).min()
        assert found[i] == pytest.approx(nearest, abs=1e-3)


def test_arc_without_travel_is_the_turned_ray():
    ray = np.array([[0.0, 0, 1]])
    turn = Rotation.from_euler("y", 10, degrees=True).as_matrix()
    second_from_first = np.concatenate([turn, np.zeros((3, 1))], axis=1)
    assert angle_off_epipolar_arc(ray, ray, second_from_first)[0] == pytest.approx(np.radians(10))


def textured_image(seed=0, height=360, width=640):
    rng = np.random.default_rng(seed)
    image = np.full((height, width), 90, np.uint8)
    for _ in range(250):
        x, y, w, h = rng.integers([0, 0, 8, 8], [width, height, 60, 60])
        cv2.rectangle(image, (int(x), int(y)), (int(x + w), int(y + h)), int(rng.integers(0, 255)), -1)
    return cv2.GaussianBlur(image, (0, 0), 1.0)


def test_corners_show_where_observations_count_from():
    image = textured_image()
    corners = cv2.goodFeaturesToTrack(image, 400, 0.002, 8, blockSize=5)[:, 0]
    structure = scene(camera_path())

    def offset(xy_px):
        seen = Reconstruction(
            **{name: getattr(structure, name) for name in ("timestamps_s", "cam_from_world", "intrinsics")},
            points_in_world=np.zeros((len(xy_px), 3)),
            point_rgb=np.zeros((len(xy_px), 3), np.uint8),
            frame_idx=np.full(len(xy_px), 2, np.int32),
            point_idx=np.arange(len(xy_px), dtype=np.int32),
            xy_px=xy_px.astype(np.float32),
        )
        return corner_offsets(seen, {2: image, 3: image})

    right, wrong = offset(corners + 0.5), offset(corners)
    assert right.num_corners > 300
    np.testing.assert_allclose(right.offset_px, 0, atol=0.05)
    np.testing.assert_allclose(wrong.offset_px, 0.5, atol=0.05)


def test_unmatched_frames_are_no_evidence():
    blank = np.zeros((120, 160), np.uint8)
    assert match_frames(blank, textured_image(1, 120, 160)).shape == (0, 2, 2)
    times, poses = np.arange(2.0), camera_path()[:2]
    intrinsics = Intrinsics(fxfycxcy_px=np.tile([150.0, 150, 80, 60], (2, 1)), width=160, height=120)
    clip = PosedClip(clip_id="c", timestamps_s=times, world_from_cam=poses, intrinsics=intrinsics)
    assert frame_evidence(clip, {(0, 1): match_frames(blank, blank)}, 160, 120).num_measurements == 0


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    pytest.importorskip("moderngl")
    from worldline.datasets.synthetic import SyntheticConfig, write_clip

    config = SyntheticConfig(
        scene="room", path="orbiting", width=480, height=270, num_frames=56, fov_x_deg=70
    )
    return write_clip(config, tmp_path_factory.mktemp("rendered"))


def rendered_row(rendered, make_dataset):
    truth = rendered.truth
    times = truth.timestamps_s
    return make_dataset.row(
        "rendered",
        times,
        truth.world_from_cam,
        width=480,
        height=270,
        path=str(rendered.folder / "video.mp4"),
        end_s=float(times[-1]) + 0.03,
        fxfycxcy_px=truth.intrinsics.fxfycxcy_px.reshape(-1).tolist(),
    )


@pytest.mark.slow
def test_frames_alone_pass_the_true_path_and_name_each_mistake(rendered, make_dataset):
    row = rendered_row(rendered, make_dataset)
    folder = make_dataset([row])
    found = lint_row(row, folder, LintConfig(dataset=folder))
    assert found.problems == ()
    assert any(note.startswith("frames: 0.") for note in found.notes)

    pairs = [(10, 17), (10, 31), (30, 51)]
    wanted = sorted({frame for pair in pairs for frame in pair})
    greys = {
        frame.index: cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY)
        for frame in read_frames(probe(row["path"]))
        if frame.index in wanted
    }
    matches = {(a, b): match_frames(greys[a], greys[b]) for a, b in pairs}

    def judged(poses):
        return judge(frame_evidence(clip_from_row(with_poses(row, poses), folder), matches, 480, 270), 4.0)[0]

    assert judged(poses_of(row)) is None
    for name, spoil in SPOILT_POSES.items():
        if not name.startswith(("unit", "axes: the world")):  # Relative poses do not show these.
            problem = judged(spoil(poses_of(row)))
            assert problem is not None, name
            # Mistakes that differ by the world's axes only look alike here, so the kind may be one of
            # several.
            assert name.split(":")[0] in problem, (name, problem)
