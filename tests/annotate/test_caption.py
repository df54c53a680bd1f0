"""Captions: wording about the camera found and nothing else, measured attributes, sidecars, a small random model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldline.annotate.caption import (
    CaptionConfig,
    camera_words,
    caption_clip,
    make_captioner,
    measured_caption,
    without_camera,
)
from worldline.filters.content import ContentConfig, ContentScores
from worldline.filters.verdict import UNREADABLE

# In the manner of published video captions: what vision-language models write when asked to describe a clip.
ABOUT_THE_CAMERA = [
    "The camera pans slowly to the left, revealing a row of houses.",
    "The camera follows a man in a grey coat through the market.",
    "The camera, mounted on a car, moves forward along the highway.",
    "The camera remains stationary throughout the clip.",
    "The camera appears to be following the character from a third-person perspective.",
    "As the camera glides over the bay, boats come into view.",
    "The video begins with an aerial shot; the drone then ascends above the cathedral.",
    "A tracking shot of a cyclist on a coastal road.",
    "The view shifts to the right, where a fountain stands.",
    "The perspective gradually rotates around the statue.",
    "As we walk down the alley, lanterns hang on both sides.",
    "Moving forward along the canal, the path is lined with willows.",
    "The shot zooms in on the clock tower.",
    "The footage is a first-person walking tour of Kyoto at dusk.",
    "A drone flyover of terraced rice fields.",
    "There is minimal camera movement, mostly a slight tilt upwards.",
    "The handheld footage shows a crowded bus.",
    "The scene transitions from the kitchen to the living room.",
    "The viewer is moving through a dense bamboo forest.",
    "The POV moves past a bakery and a flower shop.",
    "We travel along a narrow road between stone walls.",
    "The viewpoint descends towards the lake.",
    "It pans across the skyline before it zooms out.",
    "Driving through the tunnel, the lights are orange.",
]
ABOUT_THE_SCENE = [
    "A person is holding a long-haired dachshund in their arms.",
    "A rally car drives on a dirt road in the countryside while people watch from the roadside.",
    "A beach with waves and rocks in the foreground and a city skyline behind it.",
    "A rocket lifts off from the launch pad.",
    "He moves with a sense of urgency through the urban environment.",
    "A man with a camera on a tripod stands beside the lake.",
    "A camera shop with vintage lenses in the window.",
    "Frying pans hang above the stove in a rustic kitchen.",
    "Railway tracks run between two rows of poplars.",
    "People are walking along a cobbled street lined with cafes.",
    "The road turns left behind the church.",
    "Rolling hills rise behind the village.",
    "A view of the mountains rising above the clouds.",
    "Gulls are flying over the harbour.",
    "A tilted roof with red tiles and a moss-covered chimney.",
    "Cyclists pass a market stall with oranges.",
    "A doll sits on a wooden shelf next to a zoom lens.",
    "The river flows through the valley and into the sea.",
    "A dog runs towards the left side of the lawn.",
    "The scene shows a living room with a fireplace and two armchairs.",
    "The image is bright, with saturated colours and long shadows.",
    "A security camera is fixed to the wall above the door.",
    "Clouds drift across a pale sky over the panoramic terrace.",
    "A narrow staircase leads up to a blue door.",
]


@pytest.mark.parametrize("text", ABOUT_THE_CAMERA)
def test_wording_about_the_camera_is_found(text: str) -> None:
    assert camera_words(text)


@pytest.mark.parametrize("text", ABOUT_THE_SCENE)
def test_other_wording_passes(text: str) -> None:
    assert camera_words(text) == []


def test_sentences_about_the_camera_go_and_the_rest_stays() -> None:
    text = "A quiet street. The camera pans left. Lanterns hang over the door."
    kept, words = without_camera(text)
    assert kept == "A quiet street. Lanterns hang over the door."
    assert words == ["camera pans"]
    assert without_camera("The camera zooms in.")[0] == ""
    assert without_camera("") == ("", [])


def _frame(rgb: tuple[int, int, int]) -> np.ndarray:
    return np.full((36, 64, 3), rgb, np.uint8)


def test_measured_caption_says_what_it_is() -> None:
    row = {
        "luminance": 200.0,
        "saturation": 150.0,
        "num_people": 3.0,
        "num_vehicles": 0.0,
        "moving_share": 0.4,
    }
    text = measured_caption(row, [_frame((20, 160, 40)), _frame((30, 60, 220))])
    assert text.startswith("Measured attributes: bright, vivid colours, mostly ")
    assert "green" in text
    assert "blue" in text
    assert "about 3 people, no vehicles, much moves in the scene" in text
    assert "animals" not in text
    assert camera_words(text) == []
    assert measured_caption({"luminance": None, "saturation": 3.0}, []) == "Measured attributes: greyscale."


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((220, 30, 20), "red"), ((220, 20, 40), "red"), ((20, 200, 40), "green"), ((20, 40, 200), "blue")],
)
def test_palette_names_hues(rgb: tuple[int, int, int], name: str) -> None:
    assert measured_caption({}, [_frame(rgb)]) == f"Measured attributes: mostly {name}."


def test_sidecars(tmp_path: Path) -> None:
    config = CaptionConfig(backend="sidecar")
    row: dict[str, Any] = {"path": str(tmp_path / "v.mp4"), "start_s": 10.0, "end_s": 20.0}
    assert caption_clip(row, [], config).text is None
    entries = [
        {"start_s": 0, "end_s": 12, "caption": "A hall."},
        {"start_s": 12, "end_s": 40, "caption": "A garden. The camera tilts up."},
    ]
    (tmp_path / "v.mp4.captions.json").write_text(json.dumps(entries))
    found = caption_clip(row, [], config)
    assert (found.text, found.camera_words) == ("A garden.", ("camera tilts",))
    assert caption_clip(row | {"start_s": 2.0, "end_s": 40.0}, [], config).text == "A garden."
    assert caption_clip(row | {"start_s": 50.0, "end_s": 60.0}, [], config).text is None
    (tmp_path / "v.mp4.caption.txt").write_text("A tower.\n")
    assert caption_clip(row, [], config).text == "A tower."
    (tmp_path / "v.mp4.caption.txt").unlink()
    (tmp_path / "v.mp4.captions.json").write_text('[{"caption": 3}]')
    with pytest.raises(ValueError, match=r"caption of .*v\.mp4"):
        caption_clip(row, [], config)
    with pytest.raises(ValueError, match="caption backend"):
        CaptionConfig(backend="gpt")
    assert make_captioner(config) is None


def _small_qwen(folder: Path) -> Path:
    """A Qwen3-VL of two layers with random weights, with its tokenizer over bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ]
    vocabulary = {letter: k for k, letter in enumerate([*letters, *special])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": special})
    fast.save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, temporal_patch_size=2).save_pretrained(folder)
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(vocabulary), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
            "deepstack_visual_indexes": [0], "num_position_embeddings": 64,
        },
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_small_random_model_answers(tmp_path: Path) -> None:
    """The true loading code; the answer means nothing, but it is the same twice."""
    pytest.importorskip("transformers", reason="pip install 'worldline[content]'")
    config = CaptionConfig(
        backend="qwen_vl", weights=str(_small_qwen(tmp_path)), device="cpu", max_tokens=6, prompt="What?"
    )
    captioner = make_captioner(config)
    assert captioner is not None
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (96, 160, 3), dtype=np.uint8) for _ in range(2)]
    said = captioner(frames)
    assert isinstance(said, str)
    assert captioner(frames) == said
    found = caption_clip({}, frames, config, captioner)
    assert found.backend == "qwen_vl"


@pytest.mark.slow
def test_the_same_model_judges_a_clip(tmp_path: Path) -> None:
    """Random weights say nothing readable, and the columns say that."""
    pytest.importorskip("transformers", reason="pip install 'worldline[content]'")
    config = ContentConfig(
        backends=("qwen_vl",), vlm_weights=str(_small_qwen(tmp_path)), device="cpu", num_looks=2
    )
    scores, rng = ContentScores(config), np.random.default_rng(0)
    for k in range(4):
        scores.add(rng.integers(0, 255, (96, 160, 3), dtype=np.uint8), k / 2)
    found = scores.result()
    assert found["vlm_flags"] == json.dumps([UNREADABLE])
    assert found["vlm_quality"] is None
    assert json.loads(found["content_backends"])["vlm_flags"] == "qwen_vl"
