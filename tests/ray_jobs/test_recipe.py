"""The whole road in small: videos in, a model and its page out; again without work; and the notebook that drives it."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from worldline.datasets.schema import MissingBackend
from worldline.datasets.synthetic_renderer import Renderer
from worldline.datasets.synthetic_scenes import build_scene
from worldline.ray_jobs.annotate import RunConfig
from worldline.ray_jobs.recipe import PlaceConfig, RecipeConfig, main
from worldline.ray_jobs.variants import VariantsConfig
from worldline.ray_jobs.variants import main as variants_main
from worldline.train.checkpoint import load_run, steps_of

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "02_train_and_drive.ipynb"


def needs_rendering() -> None:
    mesh = build_scene("room", seed=1, route_length_m=1.0).mesh
    try:
        Renderer(mesh.vertices(), mesh.textures()).close()
    except MissingBackend as missing:
        pytest.skip(str(missing))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_videos_to_a_driven_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_ray: None
) -> None:
    needs_rendering()
    config = RecipeConfig(out=tmp_path / "recipe", quick=True, run=RunConfig(workers=1))
    assert main(config) == 0
    model = config.out / "runs" / "model"
    assert steps_of(model) == [4]
    results = json.loads((config.out / "evaluation" / "results.json").read_text())
    assert results["step"] == 4
    assert len(results["tables"]) == 2
    page, card = (config.out / "index.html").read_text(), (model / "README.md").read_text()
    for text in (page, card):
        assert "CC0-1.0" in text
        assert "share nearer to its own" in text
    assert (config.out / "evaluation" / "driven.mp4").stat().st_size > 0

    state = model / "checkpoints" / "step_00000004" / "state.pt"
    before = state.stat().st_mtime_ns
    assert main(config) == 0
    assert state.stat().st_mtime_ns == before
    assert load_run(model).step == 4

    variants = VariantsConfig(
        recipe=config.out,
        chunk_causal_steps=2,
        refiner_steps=2,
        distill_steps=(1, 1),
        steps=2,
        teacher_steps=3,
        noise_seeds=1,
        test_starts=2,
    )
    assert variants_main(variants) == 0
    tables = json.loads((config.out / "variants" / "results.json").read_text())
    rows, cameras, gate, layers = tables.values()
    assert len({row["variant"] for row in rows}) == len(rows) == 11
    assert [row["network evaluations"] for row in rows[:2]] == ["2", "3"]
    assert rows[0]["RotErr, deg: times the bidirectional's"].startswith("1.00 (1.00")
    assert rows[1]["RotErr, deg: times the many-step teacher's"].startswith("1.00 (1.00")
    errors_deg = [float(row["RotErr, deg"].split()[0]) for row in cameras]
    assert errors_deg[0] < 1 < errors_deg[2]  # the truth, and the standing frame
    assert [row["format"] for row in gate] == ["fp8", "nvfp4", "nvfp4"]
    assert all(0 < layer["output"] < 1 for layer in layers)
    own = "PSNR beside the bidirectional, dB"
    assert rows[0][own] == "0.000 (0.000 to 0.000)"
    # What a format changes in a video of four steps' training may round to nothing; its output it does change.
    assert all(row[own] != rows[0][own] for row in rows[3:])
    assert 0 < gate[0]["error of the output"] < gate[1]["error of the output"] < 0.2
    weights = [row["MB of weights"] for row in rows]
    assert weights[3] < weights[2] < weights[0] == weights[1] == weights[4]
    assert "chunk-causal, streamed, nvfp4" in (config.out / "variants" / "index.html").read_text()

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells)
    monkeypatch.setenv("WORLDLINE_RECIPE", str(config.out))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    ran = NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    pictures = sum("image/png" in o.get("data", {}) for c in ran.cells for o in c.get("outputs", []))
    assert pictures == 3


def test_variants_need_a_finished_recipe(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert variants_main(VariantsConfig(recipe=tmp_path)) == 2
    assert f"worldline recipe --out {tmp_path}" in caplog.text


def test_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to learn"):
        RecipeConfig(out=tmp_path, place=PlaceConfig(videos=0))
