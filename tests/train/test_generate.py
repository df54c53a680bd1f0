"""`worldline generate`: a whole diffusers pipeline of small random weights from disk to an mp4, and refused
inputs.
"""

import dataclasses
import json
import math

import av
import numpy as np
import pytest
import torch

from worldline.train import generate as generate_module
from worldline.train.actions import ActionConfig
from worldline.train.generate import (
    BACKENDS,
    GenerateConfig,
    Generated,
    main,
    read_image,
    read_intrinsics,
    read_poses,
    write_video,
)

torch.set_num_threads(1)


@pytest.fixture
def image(tmp_path):
    pixels = np.zeros((48, 96, 3), np.uint8)
    pixels[:, 48:] = (200, 40, 10)
    path = tmp_path / "first.png"
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 96, 48, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def poses(tmp_path):
    values = np.tile(np.eye(4), (12, 1, 1))
    values[:, 2, 3] = 0.025 * np.arange(12)
    path = tmp_path / "path.npy"
    np.save(path, values)
    return path


def words():
    """A tokenizer of one word."""
    tokenizers = pytest.importorskip("tokenizers")
    raw = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<pad>": 0, "<bos>": 1, "<unk>": 2, "room": 3}, unk_token="<unk>")
    )
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return raw


def save_pipeline(folder, ltx2_vae):
    """SanaWMPipeline of small random parts, in its own file format."""
    diffusers = pytest.importorskip("diffusers")
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    raw = words()
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>"
    )
    text_config = transformers.Gemma2Config(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    vae = ltx2_vae()
    transformer = diffusers.SanaWMTransformer3DModel(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        linear_head_dim=16,
        in_channels=8,
        caption_channels=16,
        softmax_every_n=2,
    )
    pipeline = diffusers.SanaWMPipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.Gemma2ForCausalLM(text_config),
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=9.95),
    )
    pipeline.save_pretrained(folder)


@pytest.mark.slow
def test_released_pipeline_from_disk_to_video(tmp_path, image, poses, capsys, ltx2_vae):
    save_pipeline(tmp_path / "model", ltx2_vae)
    config = GenerateConfig(
        image=image,
        out=tmp_path / "out" / "video.mp4",
        prompt="room",
        poses=poses,
        fov_deg=60,
        model=str(tmp_path / "model"),
        height=64,
        width=96,
        steps=2,
        device="cpu",
        dtype="float32",
    )
    assert main(config) == 0
    assert str(config.out) in capsys.readouterr().out
    with av.open(str(config.out)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 16
    assert len(frames) == 9  # 12 poses are cut to 8 k + 1
    assert frames[0].shape == (64, 96, 3)
    np.testing.assert_allclose(
        np.load(config.out.with_suffix(".npy")), np.load(poses)[:9, :3], rtol=0, atol=1e-6
    )
    record = json.loads(config.out.with_suffix(".json").read_text())
    assert record["config"]["seed"] == 0
    assert record["versions"]["diffusers"]
    assert main(dataclasses.replace(config, out=tmp_path / "again.mp4")) == 0
    assert (tmp_path / "again.mp4").read_bytes() == config.out.read_bytes()  # the seed decides


def save_refiner(folder):
    """SanaWMLTX2Refiner of small random parts, without the autoencoder, which is the pipeline's."""
    import diffusers
    import transformers
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

    torch.manual_seed(1)
    tokenizer = transformers.GemmaTokenizerFast(
        tokenizer_object=words(), pad_token="<pad>", bos_token="<bos>"
    )
    text = transformers.Gemma3TextConfig(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    vision = transformers.SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    encoder = transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    )
    connectors = LTX2TextConnectors(
        caption_channels=16, text_proj_in_factor=2, video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8, video_connector_num_layers=1, video_connector_num_learnable_registers=8,
        audio_connector_num_attention_heads=2, audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=8,
    )  # fmt: skip
    transformer = diffusers.SanaWMLTX2RefinerTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
        audio_in_channels=8, audio_out_channels=8, audio_num_attention_heads=2, audio_attention_head_dim=8,
        audio_cross_attention_dim=16, num_layers=1, caption_channels=16,
    )  # fmt: skip
    diffusers.SanaWMLTX2Refiner(
        transformer=transformer,
        connectors=connectors,
        tokenizer=tokenizer,
        text_encoder=encoder,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0),
        text_max_sequence_length=8,
    ).save_pretrained(folder)


@pytest.mark.slow
def test_released_refiner_goes_over_the_latents(tmp_path, image, poses, ltx2_vae):
    save_pipeline(tmp_path / "model", ltx2_vae)
    save_refiner(tmp_path / "refiner")
    config = GenerateConfig(
        image=image, out=tmp_path / "plain.mp4", prompt="room", poses=poses, fov_deg=60,
        model=str(tmp_path / "model"), height=64, width=96, steps=1, device="cpu", dtype="float32",
    )  # fmt: skip
    assert main(config) == 0
    refined = dataclasses.replace(config, out=tmp_path / "refined.mp4", refine=tmp_path / "refiner")
    assert main(refined) == 0
    assert refined.out.read_bytes() != config.out.read_bytes()
    with av.open(str(refined.out)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8
    path = np.load(refined.out.with_suffix(".npy"))
    np.testing.assert_allclose(path, np.load(poses)[1:9, :3], rtol=0, atol=1e-6)
    assert json.loads(refined.out.with_suffix(".json").read_text())["how"] == "one pass, refined"


def test_inputs_are_read_and_checked(tmp_path, image, poses):
    pixels = read_image(image)
    assert pixels.shape == (48, 96, 3)
    assert pixels[0, 95].tolist() == [200, 40, 10]
    assert read_poses(poses).shape == (12, 3, 4)

    config = GenerateConfig(image=image, out=tmp_path / "a.mp4", poses=poses, fov_deg=90)
    np.testing.assert_allclose(read_intrinsics(config, 96, 48), [48, 48, 48, 24])
    matrix = np.array([[80.0, 0, 48], [0, 70, 24], [0, 0, 1]])
    np.save(tmp_path / "k.npy", np.stack([matrix] * 3))
    by_file = dataclasses.replace(config, fov_deg=None, intrinsics=tmp_path / "k.npy")
    np.testing.assert_allclose(read_intrinsics(by_file, 96, 48), [[80, 70, 48, 24]] * 3)
    assert math.degrees(2 * math.atan(24 / 70)) > 25
    with pytest.raises(ValueError, match="field of view"):
        read_intrinsics(dataclasses.replace(config, fov_deg=150), 96, 48)

    mirrored = np.load(poses)
    mirrored[:, 0, 0] = -1
    np.save(tmp_path / "mirrored.npy", mirrored)
    with pytest.raises(ValueError, match="not rigid"):
        read_poses(tmp_path / "mirrored.npy")
    (tmp_path / "text.png").write_text("no image")
    assert main(dataclasses.replace(config, image=tmp_path / "text.png")) == 2
    with pytest.raises(ValueError, match="unknown backend"):
        main_raising(dataclasses.replace(config, backend="magic"))


class PathGenerator:
    """A backend that makes one grey frame a pose, to see which path arrives."""

    def __init__(self, model, *, device, dtype):
        pass

    def __call__(self, config, image_rgb, world_from_cam, fxfycxcy_px):
        frames = np.full((len(world_from_cam), *image_rgb.shape), 128, np.uint8)
        return Generated(frames=frames, world_from_cam=world_from_cam, fps=config.fps, how="grey")


def test_an_action_string_reaches_the_backend_as_its_path(tmp_path, image, monkeypatch):
    monkeypatch.setattr(generate_module, "load_backend", lambda *_: PathGenerator)
    config = GenerateConfig(
        image=image,
        out=tmp_path / "drive.mp4",
        action="w-10,a-5,none-2",
        speed=ActionConfig(step_m=0.1, turn_deg=2, ease_frames=0),
        fov_deg=60,
    )
    assert main(config) == 0
    stored = np.load(tmp_path / "drive.npy")
    assert stored.shape == (18, 3, 4)
    np.testing.assert_allclose(stored[-1, :, 3], [0, 0, 1.0], atol=1e-12)
    np.testing.assert_allclose(stored[-1, 0, 2], -math.sin(math.radians(10)))  # turned left
    record = json.loads((tmp_path / "drive.json").read_text())
    assert record["config"]["speed"]["step_m"] == 0.1


def main_raising(config):
    from worldline.train.generate import generate

    return generate(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": "w-10"}, "camera path"),
        ({"action": "x-10", "poses": None}, "unknown keys"),
        ({"fov_deg": None}, "lens"),
        ({"steps": 0}, "steps"),
        ({"dtype": "float16"}, "dtype"),
    ],
)
def test_contradictions_are_refused(tmp_path, change, message):
    good = {
        "image": tmp_path / "a.png",
        "out": tmp_path / "a.mp4",
        "poses": tmp_path / "p.npy",
        "fov_deg": 60.0,
    }
    with pytest.raises(ValueError, match=message):
        GenerateConfig(**{**good, **change})


def test_odd_sizes_are_cut_to_even_ones(tmp_path):
    write_video(tmp_path / "odd.mp4", np.full((3, 33, 35, 3), 128, np.uint8), fps=8)
    with av.open(str(tmp_path / "odd.mp4")) as container:
        shapes = [frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)]
    assert shapes == [(32, 34, 3)] * 3
    assert not (tmp_path / "odd.partial.mp4").exists()
    assert set(BACKENDS) == {"diffusers", "run"}
