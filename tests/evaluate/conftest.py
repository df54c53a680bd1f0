"""Dataset folders with hand-made rows."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from worldline.datasets.schema import TRAJECTORIES, table_from_rows


def make_row(clip_id, times, world_from_cam, **columns):
    """An ok row with the columns a reader of paths needs; NaN poses are unregistered."""
    registered = np.isfinite(world_from_cam[:, 0, 0])
    row = {
        "clip_id": clip_id,
        "video_id": "0" * 32,
        "path": "video.mp4",
        "start_s": float(times[0]),
        "end_s": float(times[-1]),
        "width": 640,
        "height": 480,
        "num_frames": len(times),
        "timestamps_s": times.tolist(),
        "world_from_cam": world_from_cam.reshape(-1).tolist(),
        "fxfycxcy_px": np.tile([500.0, 500, 320, 240], len(times)).tolist(),
        "camera_model": "pinhole",
        "distortion": [],
        "is_registered": registered.tolist(),
        "num_registered": int(registered.sum()),
        "degeneracy": "ok",
        "scale_status": "metric",
        "status": "ok",
        "tool_version": "0",
        "config_hash": "0",
    }
    return row | columns


@pytest.fixture
def make_dataset(tmp_path):
    """A function (rows) -> dataset folder; `make_dataset.row` builds a row."""

    def write(rows, schema=TRAJECTORIES):
        folder = tmp_path / "dataset"
        (folder / "trajectories").mkdir(parents=True, exist_ok=True)
        pq.write_table(table_from_rows(rows, schema), folder / "trajectories" / "part.parquet")
        return folder

    write.row = make_row
    return write
