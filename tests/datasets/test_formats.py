"""Every format: numbers worked out by hand, round trips, what is refused."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pycolmap
import pytest
import yaml
from scipy.spatial.transform import Rotation

from worldline.annotate.camera import Intrinsics, invert, pixel_centres, project, transform, unproject
from worldline.annotate.depth import DepthKind, DepthMap
from worldline.annotate.depth_files import write_depth_file
from worldline.annotate.reconstruction import Reconstruction
from worldline.datasets.formats import sana_wm
from worldline.datasets.formats.registry import FORMATS, READERS, exporter, importer
from worldline.datasets.posed_clip import PosedClip
from worldline.datasets.schema import MissingBackend

HALF = np.sqrt(0.5)
SIZE = {"width": 640, "height": 360}
FOLDERS = ("colmap", "colmap_text", "vipe", "spatialvid", "sekai", "omniworld", "sana_wm", "hugging_face")
ROUND_TRIPS = [name for name in READERS if name != "tum"]


def by_hand():
    """Two frames: the identity, then a camera at (1, 2, 3) turned right by 90 degrees: it looks along the
    world's x axis."""
    world_from_cam = np.array(
        [
            [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]],
            [[0, 0, 1, 1], [0, 1, 0, 2], [-1, 0, 0, 3]],
        ]
    )
    fxfycxcy = np.tile([320.0, 320, 320, 180], (2, 1))
    return PosedClip(
        clip_id="hand",
        timestamps_s=np.array([0.5, 0.75]),
        world_from_cam=world_from_cam,
        intrinsics=Intrinsics(fxfycxcy_px=fxfycxcy, **SIZE),
        scale_status="metric",
        media_path="https://example.org/video.mp4",
    )


# cam_from_world of the second frame: rotation transposed, translation -R^T (1, 2, 3) = (3, -2, -1).
CAM_FROM_WORLD = np.array([[0.0, 0, -1, 3], [0, 1, 0, -2], [1, 0, 0, -1]])
QUAT_XYZW = [0, HALF, 0, HALF]
INVERSE_QUAT_XYZW = [0, -HALF, 0, HALF]


def wandering(missing=(), seed=0, num=9, zoom=True, model="pinhole", distortion=(), square=True):
    rng = np.random.default_rng(seed)
    poses = np.concatenate(
        [Rotation.random(num, rng=rng).as_matrix(), 3 * rng.normal(size=(num, 3, 1))], axis=-1
    )
    poses[list(missing)] = np.nan
    focal = 400 + (5.0 * np.arange(num) if zoom else 0 * np.arange(num))
    fxfycxcy = np.stack(
        [focal, focal * (1 if square else 1.01), 0 * focal + 321.5, 0 * focal + 178.25], axis=-1
    )
    return PosedClip(
        clip_id="walk",
        timestamps_s=2.0 + np.arange(num) / 29.97,
        world_from_cam=poses,
        intrinsics=Intrinsics(fxfycxcy_px=fxfycxcy, **SIZE, model=model, distortion=distortion),
        scale_status="metric",
    )


def target(tmp_path, name):
    return tmp_path / ("out" if name in FOLDERS else f"out.{'npz' if name == 'sana_wm_bench' else 'json'}")


def written(clip, tmp_path, name):
    path = target(tmp_path, name)
    exporter(name)(clip, path)
    return path


# Numbers by hand


def test_tum_by_hand(tmp_path):
    lines = written(by_hand(), tmp_path, "tum").read_text().splitlines()
    assert lines[0].endswith("unit: metre")
    numbers = [float(number) for number in lines[-1].split()]
    np.testing.assert_allclose(numbers, [0.75, 1, 2, 3, *QUAT_XYZW], atol=1e-8)


def test_colmap_text_by_hand(tmp_path):
    path = written(by_hand(), tmp_path, "colmap_text")
    lines = [
        line for line in (path / "images.txt").read_text().splitlines() if line and not line.startswith("#")
    ]
    numbers = lines[-1].split()
    x, y, z, w = INVERSE_QUAT_XYZW
    np.testing.assert_allclose([float(n) for n in numbers[1:8]], [w, x, y, z, 3, -2, -1], atol=1e-12)
    assert numbers[9] == "frame_000001.png"
    cameras = [line for line in (path / "cameras.txt").read_text().splitlines() if not line.startswith("#")]
    assert cameras[0].split() == ["1", "PINHOLE", "640", "360", "320", "320", "320", "180"]


def test_hugging_face_by_hand(tmp_path):
    path = written(by_hand(), tmp_path, "hugging_face")
    row = pq.read_table(path / "data").to_pylist()[0]
    np.testing.assert_array_equal(row["world_from_cam"][12:], [0, 0, 1, 1, 0, 1, 0, 2, -1, 0, 0, 3])
    assert row["fxfycxcy_px"] == 2 * [320.0, 320, 320, 180]
    assert (row["timestamps_s"], row["scale_status"], row["width"]) == ([0.5, 0.75], "metric", 640)
    _, front, text = (path / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert "OpenCV" in text


def test_rerun_by_hand(tmp_path):
    """As the viewer reads it: its own columns, single precision, matrices column by column."""
    import rerun.chunk

    found = {}
    for chunk in rerun.chunk.RrdReader(written(by_hand(), tmp_path, "rerun")).stream():
        if str(chunk.entity_path) == "/world/camera":
            batch = chunk.to_record_batch()
            found |= {name: batch[name].to_pylist() for name in batch.schema.names}
    assert found["frame"] == [0, 1]
    assert [time.total_seconds() for time in found["video_time"]] == [0.5, 0.75]
    assert found["Transform3D:translation"][1] == [[1, 2, 3]]
    assert found["Transform3D:mat3x3"][1] == [[0, 0, -1, 0, 1, 0, 1, 0, 0]]
    assert found["Pinhole:image_from_camera"][1] == [[320, 0, 0, 0, 320, 0, 320, 180, 1]]
    assert found["Pinhole:resolution"][1] == [[640, 360]]


def test_realestate10k_by_hand(tmp_path):
    lines = written(by_hand(), tmp_path, "realestate10k").read_text().splitlines()
    assert lines[0] == "https://example.org/video.mp4"
    numbers = lines[2].split()
    assert numbers[0] == "750000"
    np.testing.assert_allclose([float(n) for n in numbers[1:7]], [0.5, 320 / 360, 0.5, 0.5, 0, 0], atol=1e-9)
    np.testing.assert_allclose([float(n) for n in numbers[7:]], CAM_FROM_WORLD.reshape(-1), atol=1e-9)


def test_nerfstudio_by_hand(tmp_path):
    content = json.loads(written(by_hand(), tmp_path, "nerfstudio").read_text())
    assert (content["fl_x"], content["cx"], content["w"], content["camera_model"]) == (
        320,
        320,
        640,
        "OPENCV",
    )
    # Columns are the camera's right, up and back in the world: right is -z, up is -y, back is -x.
    expected = [[0, 0, -1, 1], [0, -1, 0, 2], [-1, 0, 0, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(content["frames"][1]["transform_matrix"], expected, atol=1e-15)
    assert content["frames"][1]["file_path"] == "images/frame_000001.png"


def test_vipe_by_hand(tmp_path):
    path = written(by_hand(), tmp_path, "vipe")
    poses = np.load(path / "pose" / "hand.npz")
    assert poses["data"].dtype == np.float32
    np.testing.assert_array_equal(poses["data"][1], [[0, 0, 1, 1], [0, 1, 0, 2], [-1, 0, 0, 3], [0, 0, 0, 1]])
    assert poses["inds"].tolist() == [0, 1]
    np.testing.assert_array_equal(np.load(path / "intrinsics" / "hand.npz")["data"][1], [320, 320, 320, 180])
    assert (path / "intrinsics" / "hand_camera.txt").read_text() == "0: PINHOLE\n1: PINHOLE\n"


def test_spatialvid_by_hand(tmp_path):
    path = written(by_hand(), tmp_path, "spatialvid")
    np.testing.assert_allclose(np.load(path / "poses.npy")[1], [3, -2, -1, *INVERSE_QUAT_XYZW], atol=1e-15)
    np.testing.assert_allclose(np.load(path / "intrinsics.npy")[1], [0.5, 320 / 360, 0.5, 0.5])
    assert (path / "indexes.txt").read_text() == "0 0\n1 1\n"


def test_sekai_by_hand(tmp_path):
    with np.load(written(by_hand(), tmp_path, "sekai") / "trajectory.npz") as data:
        expected = [[0, 0, 1, 1 / 3], [0, 1, 0, 2 / 3], [-1, 0, 0, 1], [0, 0, 0, 1]]
        np.testing.assert_allclose(data["extrinsic"][1], expected)
        np.testing.assert_allclose(data["intrinsic"][1], [[0.5, 0, 0.5], [0, 320 / 360, 0.5], [0, 0, 1]])
        assert data["metres_per_unit"] == 3.0


def test_omniworld_by_hand(tmp_path):
    path = written(by_hand(), tmp_path, "omniworld")
    camera = json.loads((path / "camera" / "split_0.json").read_text())
    x, y, z, w = INVERSE_QUAT_XYZW
    np.testing.assert_allclose(camera["quats"][1], [w, x, y, z], atol=1e-15)
    np.testing.assert_allclose(camera["trans"][1], [3, -2, -1])
    assert camera["focals"] == [320, 320]
    assert (camera["cx"], camera["cy"]) == (320, 180)
    assert json.loads((path / "split_info.json").read_text())["split"] == [[0, 1]]


def test_sana_wm_by_hand_and_as_its_loader_reads_it(tmp_path):
    path = written(by_hand(), tmp_path, "sana_wm")
    with zipfile.ZipFile(path / "hand.zip") as archive:
        info = json.loads(archive.read("hand.json"))
    assert (info["width"], info["height"]) == (640, 360)
    scale = json.loads((path / "hand_metric_scale_stats.json").read_text())["hand"]["median"]
    with np.load(path / "hand_camera.npz", allow_pickle=False) as data:
        start, count = data["ranges"][data["ids"].tolist().index("hand")]
        poses = data["pose"][start : start + count].copy()
        np.testing.assert_array_equal(data["intrinsics"][1], [320, 320, 320, 180])
    poses[:, :3, 3] *= scale
    relative = np.linalg.inv(poses[0]) @ poses
    np.testing.assert_array_equal(relative[1], [[0, 0, 1, 1], [0, 1, 0, 2], [-1, 0, 0, 3], [0, 0, 0, 1]])


def test_sana_wm_bench_by_hand(tmp_path):
    with np.load(written(by_hand(), tmp_path, "sana_wm_bench")) as data:
        assert data["c2w"].shape == (2, 4, 4)
        np.testing.assert_array_equal(data["c2w"][1, :3], by_hand().world_from_cam[1])
        np.testing.assert_array_equal(data["intrinsics"][0], [[320, 0, 320], [0, 320, 180], [0, 0, 1]])
        assert (float(data["fps"]), int(data["num_frames"])) == (4.0, 2)


# Round trips


def assert_same(read, clip, atol):
    np.testing.assert_allclose(read.timestamps_s, clip.timestamps_s, atol=1e-6)
    np.testing.assert_allclose(read.world_from_cam, clip.world_from_cam, atol=atol)
    keep = clip.is_registered
    np.testing.assert_allclose(
        read.intrinsics.fxfycxcy_px[keep], clip.intrinsics.fxfycxcy_px[keep], rtol=1e-6
    )
    assert (read.intrinsics.width, read.intrinsics.height) == (640, 360)


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_round_trip(tmp_path, name):
    clip = wandering(zoom=name != "omniworld")
    if name == "sana_wm_bench":  # It holds one frame rate and no start.
        clip = PosedClip(
            clip_id="walk",
            timestamps_s=np.arange(9) / 16,
            world_from_cam=clip.world_from_cam,
            intrinsics=clip.intrinsics,
            scale_status="metric",
        )
    size = SIZE if name in ("realestate10k", "sana_wm_bench") else {}
    read = importer(name)(written(clip, tmp_path, name), **size)
    atol = 2e-6 if name in ("vipe", "sana_wm", "sana_wm_bench", "rerun") else 1e-8
    assert_same(read, clip, atol)
    assert read.scale_status == ("metric" if name != "realestate10k" else None)


@pytest.mark.parametrize(
    "name",
    ["colmap", "colmap_text", "nerfstudio", "vipe", "spatialvid", "omniworld", "hugging_face", "rerun"],
)
def test_frames_without_a_pose_come_back_without_one(tmp_path, name):
    clip = wandering(missing=(0, 4, 8), zoom=name != "omniworld")
    assert_same(importer(name)(written(clip, tmp_path, name)), clip, 2e-6)


def test_times_name_the_frames_in_line_formats(tmp_path):
    clip = wandering(missing=(0, 4))
    keep = clip.is_registered
    tum = importer("tum")(written(clip, tmp_path, "tum"))
    lines = importer("realestate10k")(written(clip, tmp_path, "realestate10k"), **SIZE)
    for read in (tum, lines):
        np.testing.assert_allclose(read.timestamps_s, clip.timestamps_s[keep], atol=1e-6)
        np.testing.assert_allclose(read.world_from_cam, clip.world_from_cam[keep], atol=1e-7)


@pytest.mark.parametrize("name", ["colmap", "nerfstudio", "hugging_face"])
@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize(("model", "distortion"), [("radial", (-0.1, 0.02)), ("fisheye", (-0.02, 0.003))])
def test_distortion_goes_where_there_is_a_place(tmp_path, name, square, model, distortion):
    clip = wandering(model=model, distortion=distortion, square=square)
    read = importer(name)(written(clip, tmp_path, name))
    assert_same(read, clip, 1e-9)
    assert (read.intrinsics.model, read.intrinsics.distortion) == (model, distortion)


@pytest.mark.parametrize(
    "name",
    [n for n in FORMATS if n not in ("colmap", "colmap_text", "nerfstudio", "hugging_face", "tum", "ply")],
)
def test_distortion_is_refused_elsewhere(tmp_path, name):
    with pytest.raises(ValueError, match="no place for lens distortion"):
        written(wandering(model="radial", distortion=(-0.1, 0.02)), tmp_path, name)


def test_a_bend_too_slight_to_see_is_left_out(tmp_path):
    """A corner that moves by 0.1 % of the half diagonal."""
    written(wandering(model="radial", distortion=(0.002, 0.0)), tmp_path, "vipe")


@pytest.mark.parametrize("name", ["sekai", "sana_wm", "sana_wm_bench"])
def test_missing_poses_are_refused_where_position_counts(tmp_path, name):
    with pytest.raises(ValueError, match="without a pose"):
        written(wandering(missing=(3,)), tmp_path, name)


@pytest.mark.parametrize("name", ["sana_wm", "sana_wm_bench"])
def test_unknown_scale_is_refused_where_metres_are_read(tmp_path, name):
    clip = wandering()
    loose = PosedClip(
        clip_id="walk",
        timestamps_s=clip.timestamps_s,
        world_from_cam=clip.world_from_cam,
        intrinsics=clip.intrinsics,
        scale_status="up_to_scale",
    )
    with pytest.raises(ValueError, match="up_to_scale"):
        written(loose, tmp_path, name)


# Files that others made


@pytest.mark.parametrize("name", [n for n in FOLDERS if n not in ("sana_wm", "hugging_face")])
def test_foreign_files_ask_for_what_they_lack(tmp_path, name):
    clip = wandering(zoom=name != "omniworld")
    path = written(clip, tmp_path, name)
    (path / "worldline.json").unlink()
    with pytest.raises(ValueError, match="pass fps"):
        importer(name)(path)
    if not name.startswith("colmap"):
        with pytest.raises(ValueError, match="pass width and height"):
            importer(name)(path, fps=10)
    read = importer(name)(path, fps=10, **SIZE)
    np.testing.assert_allclose(read.timestamps_s, np.arange(9) / 10)
    np.testing.assert_allclose(read.world_from_cam, clip.world_from_cam, atol=2e-6)
    expected = {"spatialvid": "up_to_scale", "omniworld": "up_to_scale"}.get(name)
    assert read.scale_status == expected


def test_nerfstudio_undoes_its_own_world_turn(tmp_path):
    """What its tools write: the world's axes swapped, the change noted as applied_transform."""
    path = written(by_hand(), tmp_path, "nerfstudio")
    content = json.loads(path.read_text())
    applied = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]])
    for frame in content["frames"]:
        matrix = np.array(frame["transform_matrix"])
        matrix[:3] = applied[:, :3] @ matrix[:3]
        frame["transform_matrix"] = matrix.tolist()
    content["applied_transform"] = applied.tolist()
    path.write_text(json.dumps(content))
    np.testing.assert_allclose(
        importer("nerfstudio")(path).world_from_cam, by_hand().world_from_cam, atol=1e-12
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k3": 0.1}, "k3"),
        ({"p1": 0.1}, "p1"),
        ({"camera_model": "EQUIRECTANGULAR"}, "EQUIRECTANGULAR"),
        ({"w": None}, "needs fl_x"),
        ({"frames": []}, "no frames"),
    ],
)
def test_nerfstudio_refuses_what_the_table_cannot_hold(tmp_path, change, message):
    path = written(by_hand(), tmp_path, "nerfstudio")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        importer("nerfstudio")(path)


def test_sana_wm_factor_multiplies_and_its_absence_is_refused(tmp_path):
    (tmp_path / "shard").mkdir()
    other = wandering(seed=5)
    clips = [by_hand(), other]
    sana_wm.write_shard(clips, tmp_path / "shard", "s0")
    stats = tmp_path / "shard" / "s0_metric_scale_stats.json"
    stats.write_text(json.dumps([{"key": "hand", "median": 2.0}, {"key": "walk", "median": 1.0}]))
    read = sana_wm.read_shard(tmp_path / "shard", "s0")
    np.testing.assert_allclose(read[0].world_from_cam[1, :, 3], [2, 4, 6])
    np.testing.assert_allclose(read[1].world_from_cam, other.world_from_cam, atol=2e-6)
    stats.write_text(json.dumps({"hand": 2.0}))
    with pytest.raises(ValueError, match="no metric scale"):
        sana_wm.read_shard(tmp_path / "shard", "s0")


def test_omniworld_refuses_two_focal_lengths(tmp_path):
    with pytest.raises(ValueError, match="one focal length"):
        written(wandering(zoom=False, square=False), tmp_path, "omniworld")


def test_realestate10k_refuses_other_files(tmp_path):
    (tmp_path / "cameras.txt").write_text("url\n1 2 3\n")
    with pytest.raises(ValueError, match="19 numbers"):
        importer("realestate10k")(tmp_path / "cameras.txt", **SIZE)


# Structure


@pytest.fixture
def clip_with_points(tmp_path):
    """A clip whose sidecar, at half its size, holds exact observations."""
    poses = np.tile(np.eye(3, 4), (6, 1, 1))
    poses[:, 0, 3] = np.linspace(0, 1, 6)
    rng = np.random.default_rng(1)
    points = rng.uniform([-1, -1, 4], [1, 1, 6], (50, 3))
    half = Intrinsics(fxfycxcy_px=np.tile([200.0, 200, 160, 90], (6, 1)), width=320, height=180)
    pixels = project(transform(invert(poses), points), half)
    frame_idx, point_idx = (index.reshape(-1).astype(np.int32) for index in np.indices((6, 50)))
    structure = Reconstruction(
        timestamps_s=np.arange(6) / 30,
        cam_from_world=invert(poses),
        intrinsics=half,
        points_in_world=points,
        point_rgb=rng.integers(0, 256, (50, 3)).astype(np.uint8),
        frame_idx=frame_idx,
        point_idx=point_idx,
        xy_px=pixels.reshape(-1, 2).astype(np.float32),
    )
    structure.save(tmp_path / "side.npz")
    return PosedClip(
        clip_id="points",
        timestamps_s=structure.timestamps_s,
        world_from_cam=poses,
        intrinsics=half.resized(640, 360),
        scale_status="metric",
        sidecar_path=tmp_path / "side.npz",
    ), structure


def test_colmap_carries_points_that_reproject(tmp_path, clip_with_points):
    clip, structure = clip_with_points
    model = pycolmap.Reconstruction(str(written(clip, tmp_path, "colmap")))
    assert (model.num_points3D(), model.num_reg_images(), model.num_cameras()) == (50, 6, 1)
    assert model.compute_num_observations() == 300
    model.update_point_3d_errors()
    assert model.compute_mean_reprojection_error() < 1e-3
    positions = np.array([model.point3D(i).xyz for i in sorted(model.point3D_ids())])
    np.testing.assert_allclose(positions, structure.points_in_world, atol=1e-6)
    colours = np.array([model.point3D(i).color for i in sorted(model.point3D_ids())])
    np.testing.assert_array_equal(colours, structure.point_rgb)


def test_ply_holds_points_path_and_frusta(tmp_path, clip_with_points):
    open3d = pytest.importorskip("open3d")
    clip, structure = clip_with_points
    out = tmp_path / "scene.ply"
    exporter("ply")(clip, out)
    cloud = open3d.io.read_point_cloud(str(out))
    points, colours = np.asarray(cloud.points), np.asarray(cloud.colors)
    np.testing.assert_allclose(points[:50], structure.points_in_world, atol=1e-5)
    np.testing.assert_allclose(colours[:50], structure.point_rgb / 255, atol=1 / 255)
    np.testing.assert_allclose(points[50:56], clip.world_from_cam[:, :, 3], atol=1e-6)
    # The first camera's frustum: its rays end on the view's corners, whose pixels are the image's corners.
    depth = points[56 : 56 + 320]
    seen = project(depth[depth[:, 2] > 0.1], Intrinsics(fxfycxcy_px=np.array([400.0, 400, 320, 180]), **SIZE))
    on_edge = np.minimum(np.abs(seen - [0, 0]), np.abs(seen - [640, 360])).min(axis=-1)
    np.testing.assert_allclose(on_edge, 0, atol=1e-2)


def test_ply_without_points_is_refused(tmp_path):
    pytest.importorskip("open3d")
    with pytest.raises(ValueError, match="no sidecar"):
        exporter("ply")(by_hand(), tmp_path / "scene.ply")


@pytest.mark.parametrize(
    ("model", "distortion"), [("pinhole", ()), ("radial", (-0.12, 0.01)), ("fisheye", (-0.02, 0.0))]
)
def test_ply_fuses_depth_maps_into_their_surface(tmp_path, model, distortion):
    """Cameras that move and turn before a wall at z = 3 + 0.1 x: the fused points lie on it, in the world."""
    open3d = pytest.importorskip("open3d")
    poses = np.tile(np.eye(3, 4), (5, 1, 1))
    poses[:, 0, 3] = np.linspace(-0.4, 0.4, 5)
    poses[:, :, :3] = Rotation.from_euler("y", np.linspace(-8, 8, 5)[:, None], degrees=True).as_matrix()
    camera = Intrinsics(
        fxfycxcy_px=np.array([90.0, 90, 80, 60]), width=160, height=120, model=model, distortion=distortion
    )
    rays = unproject(pixel_centres(np, 160, 120).reshape(-1, 2), camera)
    maps = []
    for frame, pose in enumerate(poses):
        in_world = rays @ pose[:, :3].T
        distance = (3 + 0.1 * pose[0, 3] - pose[2, 3]) / (in_world[:, 2] - 0.1 * in_world[:, 0])
        z = (distance * rays[:, 2]).reshape(120, 160).astype(np.float32)
        maps.append(
            DepthMap(
                frame_idx=frame, z=z, confidence=np.ones_like(z), kind=DepthKind.TRAJECTORY, intrinsics=None
            )
        )
    write_depth_file(tmp_path / "side.depth.zip", maps)
    clip = PosedClip(
        clip_id="wall",
        timestamps_s=np.arange(5) / 10,
        world_from_cam=poses,
        intrinsics=Intrinsics(
            fxfycxcy_px=np.tile(2 * camera.fxfycxcy_px, (5, 1)),
            width=320,
            height=240,
            model=model,
            distortion=distortion,
        ),
        depth_path=tmp_path / "side.depth.zip",
    )
    exporter("ply")(clip, tmp_path / "wall.ply")
    points = np.asarray(open3d.io.read_point_cloud(str(tmp_path / "wall.ply")).points)
    surface = points[points[:, 2] > 1.5]  # The path and the frusta stand before it.
    assert len(surface) > 3000
    off = np.abs(surface[:, 2] - 3 - 0.1 * surface[:, 0])
    assert np.median(off) < 0.002
    assert np.quantile(off, 0.95) < 0.03  # One voxel.
    assert np.ptp(surface[:, 0]) > 3.5


def test_ply_refuses_depth_of_another_unit(tmp_path):
    pytest.importorskip("open3d")
    z = np.ones((8, 8), np.float32)
    one = DepthMap(frame_idx=0, z=z, confidence=z, kind=DepthKind.UP_TO_SCALE, intrinsics=None)
    write_depth_file(tmp_path / "a.depth.zip", [one])
    clip = replace(by_hand(), depth_path=tmp_path / "a.depth.zip")
    with pytest.raises(ValueError, match="up_to_scale, which cannot be fused"):
        exporter("ply")(clip, tmp_path / "a.ply")


# The table of formats


def test_every_format_loads_and_unknown_ones_list_the_known():
    for name in FORMATS:
        assert callable(exporter(name))
    for name in READERS:
        assert callable(importer(name))
    with pytest.raises(ValueError, match=r"unknown format 'obj'; known: colmap, .*, vipe"):
        exporter("obj")


def test_missing_package_names_its_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "open3d", None)
    monkeypatch.delitem(sys.modules, "worldline.datasets.formats.ply", raising=False)
    with pytest.raises(MissingBackend, match=r"pip install 'worldline\[cloud\]'"):
        exporter("ply")


def test_missing_module_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setitem(FORMATS, "broken", "worldline.datasets.formats.not_there:write")
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        exporter("broken")
