"""DOVER's views, sampling and fusion, on a small ONNX network with its inputs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from worldline.filters.content import ContentConfig, ContentScores

dover = pytest.importorskip(
    "worldline.annotate.backends.dover_quality", reason="pip install 'worldline[content]'"
)


def _network(path, num_clips=3, names=("aes_view", "tech_view")):
    """Scores that are the means of the views, at the networks' inputs and outputs."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    shapes = [(clips, 3, 32, 224, 224) for clips in (1, num_clips)]
    inputs = [helper.make_tensor_value_info(name, kind, s) for name, s in zip(names, shapes, strict=True)]
    axes = helper.make_tensor("axes", onnx.TensorProto.INT64, [4], [1, 2, 3, 4])
    nodes = [
        helper.make_node("ReduceMean", [name, "axes"], [out], keepdims=0)
        for name, out in zip(names, ("aesthetic", "technical"), strict=True)
    ]
    outputs = [helper.make_tensor_value_info(node.output[0], kind, (None,)) for node in nodes]
    graph = helper.make_graph(nodes, "views", inputs, outputs, [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(path))
    return str(path)


def _normalised_mean(colour):
    return float(np.mean((np.array(colour) - (123.675, 116.28, 103.53)) / (58.395, 57.12, 57.375)))


def test_a_clip_of_one_colour_has_the_score_of_that_colour(tmp_path):
    scores = ContentScores(
        ContentConfig(backends=("dover",), dover_weights=_network(tmp_path / "n.onnx")),
    )
    # Ten seconds: five of one colour, five of another; the mean of two chunks.
    colours = [(120, 118, 104), (130, 110, 100)]
    for k in range(100):
        image = np.empty((240, 320, 3), np.uint8)
        image[:] = colours[k // 50]
        scores.add(image, k / 10)
    found = scores.result()
    means = [_normalised_mean(colour) for colour in colours]
    overall = [
        1 / (1 + np.exp(-(0.6104 * (x - 0.1107) / 0.07355 + 0.3896 * (x + 0.08285) / 0.03774))) for x in means
    ]
    assert found["dover"] == pytest.approx(np.mean(overall), rel=1e-3)
    assert json.loads(found["content_backends"]) == {"dover": "dover"}


def test_fragments_are_the_middles_of_the_cells():
    rows, columns = np.indices((700, 840))
    image = np.stack([rows // 100, columns // 120, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    view = dover.fragments(image)
    cells = np.arange(224) // 32
    assert view.shape == (224, 224, 3)
    assert (view[..., 0] == cells[:, None]).all()
    assert (view[..., 1] == cells[None, :]).all()
    # Within the cell at (1, 2): 34 rows and 44 columns of 100 x 120 lie before the fragment.
    numbered = np.stack([rows % 100, columns % 120, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    assert dover.fragments(numbered)[32, 64].tolist() == [34, 44, 0]


def test_small_pictures_are_enlarged_first():
    assert dover.fragments(np.zeros((100, 60, 3), np.uint8)).shape == (224, 224, 3)


@pytest.mark.parametrize("count", [3, 40, 150, 300])
def test_frames_are_those_of_the_authors_sampler_without_its_chance(count):
    for parts, length in ((32, 1), (3, 32)):
        found = dover.frame_indices(count, parts=parts, length=length).reshape(parts, length)
        cell = count // parts
        latest = max(0, cell - 2 * length)  # their start is drawn from 0 up to here
        for part, row in enumerate(found):
            start = (int(row[0]) - part * cell) % count
            assert 0 <= start <= latest
            assert row.tolist() == [(part * cell + start + 2 * k) % count for k in range(length)]


def test_an_export_of_four_clips_is_fed_four(tmp_path):
    scorer = dover.DoverScorer(ContentConfig(dover_weights=_network(tmp_path / "n.onnx", num_clips=4)))
    for k in range(20):
        scorer.watch(np.full((224, 224, 3), 120, np.uint8), k / 10)
    assert scorer([], [])["dover"] is not None
    assert scorer([], [])["dover"] is None  # nothing new was watched


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="convert_to_onnx"):
        dover.DoverScorer(ContentConfig())
    other = _network(tmp_path / "n.onnx", names=("left", "right"))
    with pytest.raises(ValueError, match=r"n\.onnx: has inputs \['left', 'right'\]"):
        dover.DoverScorer(ContentConfig(dover_weights=other))
