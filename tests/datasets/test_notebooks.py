"""The notebook of queries runs from top to bottom on a small dataset folder, and is kept without its outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient

from worldline.filters.camera import camera_scores

PATH = Path(__file__).parents[2] / "notebooks" / "01_query_trajectories.ipynb"


@pytest.fixture
def scored(posed_folder: Path, posed: Any, tmp_path: Path) -> Path:
    """The posed folder's clips with scores of the camera and made-up ones of the picture."""
    files = sorted((posed_folder / "trajectories").glob("*"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    for k, row in enumerate(rows):
        row |= camera_scores(row)
        row |= {
            "path_length": float(row["num_frames"] - 1),
            "luminance": 30.0 * k,
            "flow_px": 5.0,
            "vmaf_motion": 4.0,
            "frozen_share": 0.0,
            "num_cuts": 0,
        }
    return posed.write_table(tmp_path / "d", rows)


@pytest.mark.slow
def test_the_queries_run(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLDLINE_DATASET", str(scored))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(PATH, as_version=4)
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells)
    # One a run: parallel kernels would fight over files in the user's folder.
    ran = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(PATH.parent)}}).execute()
    texts = [
        "".join(str(o.get("data", {}).get("text/plain", "")) for o in c.get("outputs", [])) for c in ran.cells
    ]
    assert "(6, " in texts[1]
    assert any("kept" in text for text in texts)
    weight = float(texts[-1].split()[-1])
    assert np.isfinite(weight)
    assert sum("image/png" in o.get("data", {}) for c in ran.cells for o in c.get("outputs", [])) >= 2
