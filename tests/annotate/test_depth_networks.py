"""Depth networks on small random weights: loading from a folder, pre- and post-processing, units, batches,
repeatability.

The weights say nothing, so the oracles are the published image processors where they run without torchvision,
and the arithmetic of each method's paper on the raw output of the network.
"""

from __future__ import annotations

import sys
import types
import zipfile

import numpy as np
import pytest

from worldline.annotate.camera import Intrinsics
from worldline.annotate.depth import DepthConfig, DepthKind, estimate_depth, iterate_depth
from worldline.annotate.reconstruction import Reconstruction
from worldline.datasets.schema import MissingBackend

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

HEIGHT, WIDTH = 50, 70


def some_frames(num: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (num, HEIGHT, WIDTH, 3)).astype(np.uint8)


def cameras(focal_px: float = 60.0, num: int = 3, scale: int = 2) -> Reconstruction:
    """Cameras given for frames `scale` times as large."""
    return Reconstruction(
        timestamps_s=np.arange(num, dtype=float),
        cam_from_world=np.tile(np.eye(3, 4), (num, 1, 1)),
        intrinsics=Intrinsics(
            fxfycxcy_px=np.tile(np.array([focal_px, focal_px, WIDTH / 2, HEIGHT / 2]) * scale, (num, 1)),
            width=WIDTH * scale,
            height=HEIGHT * scale,
        ),
        points_in_world=np.zeros((0, 3)),
        point_rgb=np.zeros((0, 3), np.uint8),
        frame_idx=np.zeros(0, np.int32),
        point_idx=np.zeros(0, np.int32),
        xy_px=np.zeros((0, 2), np.float32),
    )


def lively(model):
    """The model with weights large enough that its output follows its input; fresh ones all but ignore it."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.0 / parameter[0].numel() ** 0.5)
    return model


def dinov2(**kwargs):
    return transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, **kwargs
    )


@pytest.fixture(scope="module")
def depth_pro_dir(tmp_path_factory):
    torch.manual_seed(0)
    small = {"image_size": 32, "patch_size": 8}
    config = transformers.DepthProConfig(
        patch_size=32,
        fusion_hidden_size=16,
        intermediate_hook_ids=[2, 1],
        intermediate_feature_dims=[8, 8],
        scaled_images_ratios=[0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.2],
        scaled_images_feature_dims=[12, 12],
        image_model_config=dinov2(**small),
        patch_model_config=dinov2(**small),
        fov_model_config=dinov2(**small),
        use_fov_model=True,
    )
    folder = tmp_path_factory.mktemp("depth_pro")
    model = lively(transformers.DepthProForDepthEstimation(config))
    last = model.fov_model.head.layers[-1]
    with torch.no_grad():
        last.bias.fill_(60.0)  # a believable field of view in degrees
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def depth_anything_dir(tmp_path_factory):
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    torch.manual_seed(0)
    config = transformers.DepthAnythingConfig(
        backbone_config=dinov2(
            image_size=70, patch_size=14, out_indices=[1, 2, 3, 4], reshape_hidden_states=False
        ),
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=4,
        patch_size=14,
        depth_estimation_type="metric",
        max_depth=20,
    )
    folder = tmp_path_factory.mktemp("depth_anything")
    lively(transformers.DepthAnythingForDepthEstimation(config)).save_pretrained(folder)
    # As the published weights have it, but for the size.
    DPTImageProcessorPil(
        size={"height": 70, "width": 70},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def zoedepth_dir(tmp_path_factory):
    from transformers.models.zoedepth.image_processing_pil_zoedepth import ZoeDepthImageProcessorPil

    torch.manual_seed(0)
    config = transformers.ZoeDepthConfig(
        backbone_config=transformers.BeitConfig(
            image_size=64,
            patch_size=16,
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=32,
            out_features=["stage1", "stage2", "stage3", "stage4"],
            reshape_hidden_states=False,
            use_relative_position_bias=True,
        ),
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        bottleneck_features=8,
        num_relative_features=4,
        bin_embedding_dim=8,
        num_attractors=[4, 4, 2, 1],
        bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0}],
    )
    folder = tmp_path_factory.mktemp("zoedepth")
    lively(transformers.ZoeDepthForDepthEstimation(config)).save_pretrained(folder)
    ZoeDepthImageProcessorPil(size={"height": 64, "width": 96}, ensure_multiple_of=32).save_pretrained(folder)
    return folder


@pytest.fixture(params=["depth_pro", "depth_anything_v2_metric", "zoedepth"])
def network(request, depth_pro_dir, depth_anything_dir, zoedepth_dir):
    folders = {
        "depth_pro": depth_pro_dir,
        "depth_anything_v2_metric": depth_anything_dir,
        "zoedepth": zoedepth_dir,
    }
    return DepthConfig(backend=request.param, weights=str(folders[request.param]), batch_size=2, device="cpu")


def test_maps_have_the_frames_size_metres_and_the_given_cameras(network):
    depth = estimate_depth(some_frames(), network, reconstruction=cameras())
    assert depth.z.shape == (3, HEIGHT, WIDTH)
    assert depth.z.dtype == np.float32
    assert depth.kind is DepthKind.METRIC
    is_known = np.isfinite(depth.z)
    assert is_known.mean() > 0.4
    assert (depth.z[is_known] > 0).all()
    np.testing.assert_array_equal(depth.confidence > 0, is_known)
    np.testing.assert_allclose(depth.intrinsics.fxfycxcy_px, np.tile([60, 60, 35, 25], (3, 1)))
    assert (depth.intrinsics.width, depth.intrinsics.height) == (WIDTH, HEIGHT)


def test_batches_and_repeats_agree(network):
    import dataclasses

    frames = some_frames()
    together = estimate_depth(frames, network, reconstruction=cameras())
    again = estimate_depth(frames, network, reconstruction=cameras())
    np.testing.assert_array_equal(together.z, again.z)
    alone = estimate_depth(
        frames, dataclasses.replace(network, batch_size=1), reconstruction=cameras(), frame_idx=[1]
    )
    np.testing.assert_allclose(alone.z[0], together.z[1], rtol=1e-3, atol=1e-3 * np.nanmedian(alone.z))


def test_frames_matter(network):
    frames = some_frames(2)
    frames[1] = 255 - frames[1] // 3
    depth = estimate_depth(frames, network)
    assert np.nanquantile(np.abs(depth.z[0] / depth.z[1] - 1), 0.9) > 1e-3


def test_depth_pro_metres_follow_the_focal_length(depth_pro_dir):
    config = DepthConfig(backend="depth_pro", weights=str(depth_pro_dir), device="cpu")
    # inverse depth = canonical * width / focal: twice the focal length is twice the depth.
    short, long = (
        estimate_depth(some_frames(1), config, reconstruction=cameras(f, 1)).z for f in (50.0, 100.0)
    )
    np.testing.assert_allclose(long, 2 * short, rtol=1e-5)


def test_depth_pro_without_cameras_takes_its_own_field_of_view(depth_pro_dir):
    config = DepthConfig(backend="depth_pro", weights=str(depth_pro_dir), device="cpu")
    own = estimate_depth(some_frames(1), config)
    focal = float(own.intrinsics.fxfycxcy_px[0, 0])
    assert 10 < focal < 200
    assert np.isfinite(own.z).any()
    given = estimate_depth(some_frames(1), config, reconstruction=cameras(focal, 1))
    np.testing.assert_allclose(own.z, given.z, rtol=1e-5)


def test_depth_pro_equals_the_model_run_by_hand(depth_pro_dir):
    frames = some_frames(1)
    config = DepthConfig(backend="depth_pro", weights=str(depth_pro_dir), device="cpu")
    z = estimate_depth(frames, config, reconstruction=cameras(60.0, 1)).z[0]
    model = transformers.DepthProForDepthEstimation.from_pretrained(depth_pro_dir).eval()
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    pixels = torch.nn.functional.interpolate(pixels, (64, 64), mode="bilinear", align_corners=False)
    with torch.no_grad():
        canonical = model(pixel_values=pixels).predicted_depth[:, None] * (WIDTH / 60.0)
    inverse = torch.nn.functional.interpolate(
        canonical, (HEIGHT, WIDTH), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(z, 1 / inverse[0, 0].numpy(), rtol=1e-4)


def test_depth_anything_equals_the_published_post_processing(depth_anything_dir):
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    frames = some_frames(1)
    config = DepthConfig(backend="depth_anything_v2_metric", weights=str(depth_anything_dir), device="cpu")
    z = estimate_depth(frames, config).z[0]
    model = transformers.DepthAnythingForDepthEstimation.from_pretrained(depth_anything_dir).eval()
    processor = DPTImageProcessorPil.from_pretrained(depth_anything_dir)
    with torch.no_grad():
        output = model(**processor(images=list(frames), return_tensors="pt"))
    expected = processor.post_process_depth_estimation(output, target_sizes=[(HEIGHT, WIDTH)])
    expected = expected[0]["predicted_depth"].numpy()
    # Cubic interpolation overshoots below zero beside steps: unknown, not negative.
    np.testing.assert_allclose(z, np.where(expected > 0, expected, np.nan), rtol=1e-4)
    assert np.nanmax(z) <= 20.1  # max_depth of these weights


def test_relative_weights_are_refused(tmp_path, depth_anything_dir):
    config = transformers.DepthAnythingConfig.from_pretrained(depth_anything_dir)
    config.depth_estimation_type = "relative"
    model = transformers.DepthAnythingForDepthEstimation.from_pretrained(depth_anything_dir, config=config)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="relative depth"):
        iterate_depth(
            some_frames(1),
            DepthConfig(backend="depth_anything_v2_metric", weights=str(tmp_path), device="cpu"),
        )


def test_zoedepth_padding_is_cut_where_it_was_put():
    from worldline.annotate.backends.zoedepth_depth import without_padding

    pad_y, pad_x = int(np.sqrt(HEIGHT / 2) * 3), int(np.sqrt(WIDTH / 2) * 3)
    padded = torch.rand(1, HEIGHT + 2 * pad_y, WIDTH + 2 * pad_x)
    cut = without_padding(padded, HEIGHT, WIDTH, True)
    torch.testing.assert_close(cut, padded[:, pad_y:-pad_y, pad_x:-pad_x])
    torch.testing.assert_close(without_padding(padded, *padded.shape[1:], False), padded)


def test_missing_weights_are_named_before_the_network_is_asked():
    with pytest.raises(ValueError, match=r"no weights at \./not_here"):
        iterate_depth(some_frames(1), DepthConfig(backend="zoedepth", weights="./not_here", device="cpu"))


def test_the_device_is_chosen_by_capability(monkeypatch):
    from worldline.annotate.backends.torch_maps import pick_device

    for has_cuda, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=has_cuda: found)
        assert pick_device(None).type == expected
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    ("backend", "remedy"),
    [("moge2", "microsoft/MoGe"), ("pi3x_moge2", "yyfz/Pi3"), ("depth_anything_3", "depth-anything-3")],
)
def test_a_network_that_is_not_installed_says_where_to_get_it(backend, remedy, monkeypatch):
    for name in ("moge", "pi3", "depth_anything_3"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in list(sys.modules):
        if name.startswith("worldline.annotate.backends.") and name.endswith(
            ("moge2_depth", "anything_3_depth")
        ):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingBackend, match=remedy):
        iterate_depth(some_frames(1), DepthConfig(backend=backend))


class FakeMoge(torch.nn.Module):
    """MoGe's call signature (moge/model/v2.py) with depth that follows from its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    @classmethod
    def from_pretrained(cls, name, model_kwargs=None, **kwargs):
        return cls()

    def infer(
        self,
        image,
        num_tokens=None,
        resolution_level=9,
        force_projection=True,
        apply_mask=True,
        fov_x=None,
        use_fp16=True,
    ):
        assert image.ndim == 4
        assert 0 <= float(image.min()) <= float(image.max()) <= 1
        depth = 1 + image.mean(dim=1)
        depth[:, 0] = torch.inf  # what the network's mask leaves out
        fov = torch.full((len(image),), 90.0) if fov_x is None else fov_x
        focal = 0.5 / torch.tan(torch.deg2rad(fov) / 2)
        intrinsics = torch.zeros(len(image), 3, 3)
        intrinsics[:, 0, 0], intrinsics[:, 1, 1] = focal, focal * image.shape[-1] / image.shape[-2]
        intrinsics[:, :2, 2], intrinsics[:, 2, 2] = 0.5, 1
        return {"depth": depth, "intrinsics": intrinsics, "mask": torch.isfinite(depth)}


class FakePi3x(torch.nn.Module):
    """Pi3X's call signature: depth is three times the fake MoGe's, in another unit for every chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    @classmethod
    def from_pretrained(cls, name):
        return cls()

    def disable_multimodal(self, free_cuda_cache=True):
        pass

    def forward(self, imgs):
        assert imgs.shape[0] == 1
        assert imgs.shape[-1] % 14 == 0
        assert imgs.shape[-2] % 14 == 0
        self.calls += 1
        z = (1 + imgs.mean(dim=2)) * 3 * self.calls
        return {
            "local_points": torch.stack([z, z, z], dim=-1),
            "conf": torch.full((*z.shape, 1), 2.0),
        }


@pytest.fixture
def fakes(monkeypatch):
    """Stand-ins for packages that are not on PyPI: they check how they are called, not what the networks
    know."""
    modules = {
        "moge": {},
        "moge.model": {},
        "moge.model.v2": {"MoGeModel": FakeMoge},
        "pi3": {},
        "pi3.models": {},
        "pi3.models.pi3x": {"Pi3X": FakePi3x},
    }
    for name, attributes in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    yield
    for name in ("moge2_depth", "pi3x_moge2_depth"):
        sys.modules.pop(f"worldline.annotate.backends.{name}", None)


def test_moge_is_given_the_focal_length_and_its_mask_is_kept(fakes):
    config = DepthConfig(backend="moge2", device="cpu", batch_size=2)
    frames = some_frames()
    depth = estimate_depth(frames, config, reconstruction=cameras(60.0))
    assert np.isnan(depth.z[:, 0]).all()
    np.testing.assert_allclose(depth.z[:, 1:], 1 + frames[:, 1:].mean(axis=-1) / 255, rtol=1e-5)
    np.testing.assert_allclose(depth.intrinsics.fxfycxcy_px[0], [60, 60, 35, 25])
    own = estimate_depth(frames, config)  # 90 degrees: focal is half the width
    np.testing.assert_allclose(own.intrinsics.fxfycxcy_px[0], [35, 35, 35, 25], rtol=1e-5)


def test_pi3x_takes_moge_metres_across_chunks(fakes):
    num = 37
    level = np.linspace(50, 200, num).astype(np.uint8)
    frames = np.broadcast_to(level[:, None, None, None], (num, 28, 42, 3)).copy()
    maps = list(iterate_depth(frames, DepthConfig(backend="pi3x_moge2", device="cpu", batch_size=4)))
    assert [one.frame_idx for one in maps] == list(range(num))
    for one, value in zip(maps, level, strict=True):
        # Chunks in different units come out in one, MoGe's.
        np.testing.assert_allclose(one.z, 1 + value / 255, rtol=1e-4)
        np.testing.assert_allclose(one.confidence, 1 / (1 + np.exp(-2)), rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (1080, 1920), (640, 360), (30, 30)])
def test_pi3x_input_is_in_patches_near_the_aspect(fakes, height, width):
    from worldline.annotate.backends.pi3x_moge2_depth import input_size

    rows, columns = input_size(height, width)
    assert rows % 14 == 0
    assert columns % 14 == 0
    assert 200_000 < rows * columns <= 255_000
    assert abs(np.log(rows / columns / (height / width))) < 0.06


def write_vipe(folder, num_frames: int, name: str = "frames") -> np.ndarray:
    """Results as ViPE writes them (vipe/utils/io.py); frame 0 has no pose. Returns its depth maps."""
    openexr = pytest.importorskip("OpenEXR")
    for part in ("pose", "intrinsics", "depth"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(4)
    from scipy.spatial.transform import Rotation

    world_from_cam = np.tile(np.eye(4), (num_frames, 1, 1))
    world_from_cam[:, :3, :3] = Rotation.random(num_frames, rng=rng).as_matrix()
    world_from_cam[:, :3, 3] = rng.normal(size=(num_frames, 3))
    np.savez(folder / "pose" / f"{name}.npz", data=world_from_cam[1:], inds=np.arange(1, num_frames))
    values = np.tile([60.0, 61.0, 35.0, 25.0], (num_frames, 1))
    np.savez(folder / "intrinsics" / f"{name}.npz", data=values, inds=np.arange(num_frames))
    lines = "".join(f"{i}: PINHOLE\n" for i in range(num_frames))
    (folder / "intrinsics" / f"{name}_camera.txt").write_text(lines)
    z = rng.uniform(1, 9, (num_frames, HEIGHT, WIDTH)).astype(np.float16)
    z[:, 3, 4] = 0
    with zipfile.ZipFile(folder / "depth" / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(num_frames):
            header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
            with openexr.File(header, {"Z": z[i]}) as file:
                file.write(str(folder / "one.exr"))
            archive.write(folder / "one.exr", f"{i:05d}.exr")
    return z


def test_vipe_results_are_read(tmp_path):
    pytest.importorskip("OpenEXR")
    from worldline.annotate.backends.vipe_depth import read_vipe, read_vipe_depth

    z = write_vipe(tmp_path, 4)
    clip = read_vipe(tmp_path, "frames", np.arange(4) / 30, WIDTH, HEIGHT)
    assert clip.is_registered.tolist() == [False, True, True, True]
    np.testing.assert_allclose(clip.cam_from_world[1], np.eye(3, 4), atol=1e-12)
    with np.load(tmp_path / "pose" / "frames.npz") as poses:
        expected = np.linalg.inv(poses["data"][2]) @ poses["data"][0]
    np.testing.assert_allclose(clip.cam_from_world[3], expected[:3], atol=1e-12)
    (one,) = read_vipe_depth(tmp_path, "frames", [2])
    is_known = z[2] > 0
    np.testing.assert_array_equal(one.z[is_known], z[2][is_known].astype(np.float32))
    assert np.isnan(one.z[3, 4])
    np.testing.assert_allclose(one.intrinsics.fxfycxcy_px, [60, 61, 35, 25])
    with pytest.raises(ValueError, match="frame 3"):
        read_vipe(tmp_path, "frames", np.arange(3.0), WIDTH, HEIGHT)
    (tmp_path / "intrinsics" / "frames_camera.txt").write_text("0: MEI\n")
    with pytest.raises(ValueError, match="PINHOLE"):
        read_vipe(tmp_path, "frames", np.arange(4.0), WIDTH, HEIGHT)


def test_vipe_is_run_as_a_program(tmp_path, monkeypatch):
    pytest.importorskip("OpenEXR")
    config = DepthConfig(backend="vipe")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingBackend, match="nvidia-vipe"):
        list(iterate_depth(some_frames(), config))
    results = tmp_path / "made_before"
    z = write_vipe(results, 3)
    program = tmp_path / "vipe"
    program.write_text(
        "#!/bin/sh\n"
        '[ "$1 $2 $4 $6 $7" = "infer --image-dir --output --pipeline default" ] || exit 9\n'
        f'[ "$(/bin/ls "$3" | /usr/bin/wc -l)" = 3 ] && /bin/cp -r {results} "$5"\n'
    )
    program.chmod(0o755)
    maps = list(iterate_depth(some_frames(), config, frame_idx=[0, 2]))
    assert [one.frame_idx for one in maps] == [0, 2]
    assert np.nanmax(np.abs(maps[1].z - z[2].astype(np.float32))) == 0
    program.write_text("#!/bin/sh\necho no cuda here >&2; exit 3\n")
    with pytest.raises(RuntimeError, match="status 3: no cuda here"):
        list(iterate_depth(some_frames(), config))
