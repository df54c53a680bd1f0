"""The score command on folders whose answer is known."""

import json

import numpy as np
import pytest
import tyro
from scipy.spatial.transform import Rotation

from worldline.annotate.camera import compose, invert
from worldline.datasets.formats.tum import read_tum, write_tum
from worldline.datasets.posed_clip import PosedClip, load_clip
from worldline.evaluate.score import ScoreConfig, main, score_clip


def path(num=60):
    t = np.arange(num) / 30
    centre = np.stack([np.sin(t), 0.2 * t, t], axis=-1)
    rotation = Rotation.from_rotvec(np.stack([0.1 * t, 0.4 * t, 0 * t], axis=-1)).as_matrix()
    poses = np.concatenate([rotation, centre[..., None]], axis=-1)
    return t, compose(invert(poses[:1]), poses)


def in_another_world(poses):
    shift = np.concatenate([Rotation.random(rng=2).as_matrix(), [[3.0], [1], [-2]]], axis=1)
    return compose(shift, poses)


@pytest.fixture
def truth_file(tmp_path):
    times, truth = path()
    write_tum(
        PosedClip(clip_id="truth", timestamps_s=times, world_from_cam=in_another_world(truth)),
        tmp_path / "truth.tum",
    )
    return tmp_path / "truth.tum"


def test_perfect_metric_clip(make_dataset, truth_file, capsys):
    times, truth = path()
    sigma = [0.0] + [0.01] * 59
    folder = make_dataset([make_dataset.row("aaaa", times, truth, sigma_translation=sigma, scale_sigma=0.02)])
    assert main(ScoreConfig(dataset=folder, truth=truth_file, json=True)) == 0
    score = json.loads(capsys.readouterr().out)
    for name in ("ate_sim3_cm", "ate_se3_cm", "ate_none_cm", "rpe_translation_cm", "rotation_mean_deg"):
        assert score[name] == pytest.approx(0, abs=1e-4), name  # The truth file holds nine digits.
    assert score["scale_ratio"] == pytest.approx(1)
    assert score["scale_error_sigmas"] == pytest.approx(0, abs=1e-5)
    assert (score["num_frames"], score["num_posed"], score["num_scored"]) == (60, 60, 60)
    assert score["coverage_1_sigma"] == score["metric_coverage_2_sigma"] == 1.0


def test_wrong_scale_shows_in_every_figure_but_sim3(make_dataset, truth_file):
    times, truth = path()
    estimate = truth.copy()
    estimate[:, :, 3] *= 1.1
    folder = make_dataset([make_dataset.row("aaaa", times, estimate, scale_sigma=0.05)])
    config = ScoreConfig(dataset=folder, truth=truth_file)
    score = score_clip(load_clip(folder), read_tum(truth_file), config)
    assert score.ate_sim3_cm == pytest.approx(0, abs=1e-4)
    centre = truth[:, :, 3]
    assert score.ate_none_cm == pytest.approx(
        100 * 0.1 * np.sqrt(np.mean(np.sum(centre**2, axis=-1))), rel=1e-6
    )
    spread = np.sqrt(np.mean(np.sum((centre - centre.mean(axis=0)) ** 2, axis=-1)))
    assert score.ate_se3_cm == pytest.approx(100 * 0.1 * spread, rel=1e-6)
    step = np.linalg.norm(centre[30:] - centre[:-30], axis=-1)
    assert score.rpe_translation_cm == pytest.approx(100 * 0.1 * np.sqrt(np.mean(step**2)), rel=1e-6)
    assert score.scale_ratio == pytest.approx(1.1)
    assert score.scale_error_sigmas == pytest.approx(np.log(1.1) / 0.05)
    assert score.coverage_1_sigma is None  # No sigmas stored.


def test_up_to_scale_clip_has_no_metric_figures(make_dataset, truth_file, capsys):
    times, truth = path()
    estimate = truth.copy()
    estimate[:, :, 3] *= 40
    estimate[7] = np.nan
    row = make_dataset.row(
        "aaaa", times, estimate, scale_status="up_to_scale", sigma_translation=[0.0] + [0.4] * 59
    )
    folder = make_dataset([row])
    assert main(ScoreConfig(dataset=folder, truth=truth_file, json=True)) == 0
    score = json.loads(capsys.readouterr().out)
    assert score["ate_sim3_cm"] == pytest.approx(0, abs=1e-4)
    assert score["ate_se3_cm"] is score["ate_none_cm"] is score["metric_coverage_1_sigma"] is None
    assert score["scale_error_sigmas"] is None
    assert (score["num_posed"], score["num_scored"]) == (59, 59)
    assert score["coverage_1_sigma"] == 1.0


def test_without_a_true_pose_of_the_first_frame_nothing_is_anchored(make_dataset, truth_file):
    times, truth = path()
    folder = make_dataset([make_dataset.row("aaaa", times, truth, sigma_translation=[0.0] + [0.01] * 59)])
    late = read_tum(truth_file)
    late = PosedClip(
        clip_id="late", timestamps_s=late.timestamps_s[3:], world_from_cam=late.world_from_cam[3:]
    )
    score = score_clip(load_clip(folder), late, ScoreConfig(dataset=folder, truth=truth_file))
    assert score.coverage_1_sigma is None
    assert score.ate_none_cm is None
    assert score.num_scored == 57


def test_table_for_people_and_choice_of_clip(make_dataset, truth_file, capsys):
    times, truth = path()
    rows = [make_dataset.row("aabb-1", times, truth), make_dataset.row("aacc-2", times, truth)]
    folder = make_dataset(
        [*rows, make_dataset.row("dd", times, truth, status="rejected", reason="tracks: dark")]
    )

    def run(*flags):
        config = tyro.cli(ScoreConfig, args=[str(folder), "--truth", str(truth_file), *flags])
        status = main(config)
        output = capsys.readouterr()
        return status, output.out, output.err

    status, out, _ = run("--clip", "aacc")  # A unique start is enough.
    assert status == 0
    assert "aacc-2" in out
    assert "ATE after Sim(3) [cm]" in out
    for flags, message in [
        ((), "several clips"),
        (("--clip", "aa"), "fits 2 rows"),
        (("--clip", "aabb-7"), "close: aabb-1"),
        (("--clip", "dd"), "rejected, tracks: dark"),
    ]:
        status, out, err = run(*flags)
        assert (status, out) == (1, "")
        assert message in err


def test_refusals(make_dataset, tmp_path, truth_file, capsys):
    assert main(ScoreConfig(dataset=tmp_path, truth=truth_file)) == 1
    assert "no Parquet file" in capsys.readouterr().err
    times, truth = path()
    folder = make_dataset([make_dataset.row("aaaa", times + 100, truth)])
    assert main(ScoreConfig(dataset=folder, truth=truth_file)) == 1
    assert "none of 60 poses" in capsys.readouterr().err
    bad = tmp_path / "bad.tum"
    bad.write_text("0 1 2 3 4\n")
    assert main(ScoreConfig(dataset=folder, truth=bad)) == 1
    assert "8 numbers" in capsys.readouterr().err
