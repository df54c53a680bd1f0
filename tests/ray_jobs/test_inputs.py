"""Files, folders, globs, lists and URIs; and what cannot be used is named, not left out."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import fsspec
import pytest

from worldline.annotate.clip import ClipConfig
from worldline.ray_jobs import inputs
from worldline.ray_jobs.inputs import Input, content_id, list_inputs, provenance, signature, with_overrides


def _names(*specs: str | Path) -> list[str]:
    return [Path(item.path).name for item in list_inputs(str(s) for s in specs)]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.MOV", "deep/er/c.webm", "notes.md", "deep/d d\u00e9 \u6771.mkv", "[1].mp4"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def test_folders_are_searched_in_depth_by_extension(videos: Path) -> None:
    assert _names(videos) == ["[1].mp4", "a.MOV", "b.mp4", "d d\u00e9 \u6771.mkv", "c.webm"]


def test_a_named_file_is_taken_whatever_its_name(videos: Path) -> None:
    assert _names(videos / "notes.md", videos / "[1].mp4") == ["notes.md", "[1].mp4"]


def test_globs(videos: Path) -> None:
    assert _names(f"{videos}/*.mp4") == ["[1].mp4", "b.mp4"]
    assert _names(f"{videos}/**/*.webm") == ["c.webm"]
    (none,) = list_inputs([f"{videos}/*.avi"])
    assert none.rejection == "input: nothing matches this pattern"


def test_lists_are_relative_to_themselves(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    (videos / "deep" / "list.txt").write_text("# comment\n\n../b.mp4\ner\n/nowhere/x.mp4\nother.txt\n")
    found = list(list_inputs([str(videos / "deep" / "list.txt")]))
    assert [Path(item.path).name for item in found] == ["b.mp4", "c.webm", "x.mp4", "other.txt"]
    assert [item.rejection for item in found] == [None, None, None, "input: a list inside a list"]
    (missing,) = list_inputs([str(videos / "no.txt")])
    assert missing.rejection is not None
    assert "list cannot be read (No such file" in missing.rejection


def test_uris(videos: Path) -> None:
    files = fsspec.filesystem("memory")
    for name in ("x/1.mp4", "x/y/2.mp4", "x/readme"):
        files.pipe(f"/inputs-test/{name}", b"data of " + name.encode())
    found = list(list_inputs(["memory://inputs-test/x", f"file://{videos}/b.mp4", "nosuch://a/b.mp4"]))
    assert [item.path for item in found[:2]] == [
        "memory:///inputs-test/x/1.mp4",
        "memory:///inputs-test/x/y/2.mp4",
    ]
    assert found[2].path.endswith("b.mp4")
    assert found[3].rejection is not None
    assert content_id(found[0].path) == hashlib.sha256(b"data of x/1.mp4").hexdigest()[:32]
    first = signature(found[0].path)
    files.pipe("/inputs-test/x/1.mp4", b"longer data")
    assert signature(found[0].path) != first


def test_a_name_that_is_not_utf8_is_named_with_its_reason(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"bad\xff.mp4")).touch()
    except OSError:
        pytest.skip("this file system refuses such names")
    (found,) = list_inputs([str(tmp_path)])
    assert found.path.endswith("bad\\udcff.mp4") or found.path.endswith("bad\\xff.mp4")
    assert found.rejection is not None
    assert "rename" in found.rejection


def test_a_folder_that_cannot_be_listed_is_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The permission itself cannot be tested as root, so the refusal is played."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "open.mp4").touch()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(inputs.os, "scandir", refuse)
    found = list(list_inputs([str(tmp_path)]))
    assert found == [
        Input(str(tmp_path / "open.mp4")),
        Input(str(tmp_path / "closed"), "input: folder cannot be listed (Permission denied)"),
    ]


def test_the_signature_sees_the_sidecar(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.touch()
    states = {signature(str(video))}
    (tmp_path / "a.json").write_text("{}")
    states.add(signature(str(video)))
    (tmp_path / "a.mp4.json").write_text("{}")
    states.add(signature(str(video)))
    assert len(states) == 3


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not JSON"),
        ("[1]", "one JSON object"),
        ('{"license": "MIT"}', r"unknown keys \['license'\]"),
        ('{"licence": 5}', "licence must be text"),
        ('{"max_pixels": "many"}', "max_pixels must be of type int"),
        ('{"scale": 3}', "scale must be a JSON object"),
        ('{"scale": {"feet": 3}}', r"unknown keys \['feet'\]"),
    ],
)
def test_wrong_sidecars_are_refused_by_name(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        provenance(str(tmp_path / "a.mp4"), None, None)
    assert "a.json" in str(caught.value)


def test_sidecar_fields_reach_the_config(tmp_path: Path) -> None:
    wanted = {"licence": "MIT", "fxfycxcy_px": [500, 500, 320, 240], "distortion": [0.1, 0.0]}
    (tmp_path / "a.json").write_text(json.dumps(wanted))
    found = provenance(str(tmp_path / "a.mp4"), "web", "CC0")
    assert (found.source, found.licence) == ("web", "MIT")
    config = with_overrides(ClipConfig(), found.geometry)
    assert config.fxfycxcy_px == (500, 500, 320, 240)
    assert config.distortion == (0.1, 0.0)
    assert config.max_pixels == ClipConfig().max_pixels
