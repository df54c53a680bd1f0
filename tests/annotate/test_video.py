"""Probing and decoding: every file kind against the frame numbers drawn into its frames and the times it was
made with.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from itertools import pairwise
from pathlib import Path

import fsspec
import numpy as np
import pytest

from worldline.annotate import container as container_module
from worldline.annotate.video import (
    Span,
    VideoInfo,
    local_copy,
    probe,
    probe_and,
    read_frames,
    working_size,
)
from worldline.datasets.schema import ClipRejected

H264 = "-c:v libx264 -preset veryfast"

# name -> (file name, ffmpeg output options, decoder that has to read it; None: whichever)
KINDS = {
    "h264 with B-frames": ("a.mp4", f"{H264} -bf 3 -g 40", "decord"),
    "h264 without B-frames": ("a.mp4", f"{H264} -bf 0 -g 10", "decord"),
    "h264 open GOP": ("a.mp4", f"{H264} -bf 3 -g 20 -x264-params open-gop=1", "pyav"),
    "h264 in matroska": ("a.mkv", f"{H264} -bf 2", "pyav"),
    "h264 transport stream": ("a.ts", f"{H264} -bf 2 -g 20", "pyav"),
    "h264 fragmented": ("a.mp4", f"{H264} -bf 2 -g 20 -movflags frag_keyframe+empty_moov", "pyav"),
    "h264 raw": ("a.h264", f"{H264} -bf 0", "pyav"),
    "h264 10 bit": ("a.mp4", f"{H264} -pix_fmt yuv420p10le", "pyav"),
    "h264 4:4:4": ("a.mp4", f"{H264} -pix_fmt yuv444p", None),
    "h264 interlaced": ("a.mp4", f"{H264} -flags +ilme+ildct", None),
    "hevc": ("a.mp4", "-c:v libx265 -preset ultrafast -x265-params log-level=none", None),
    "hevc 10 bit": (
        "a.mp4",
        "-c:v libx265 -preset ultrafast -x265-params log-level=none -pix_fmt yuv420p10le",
        "pyav",
    ),
    "av1": ("a.mp4", "-c:v libsvtav1 -preset 12 -g 25", None),
    "vp9": (
        "a.webm",
        "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -auto-alt-ref 1 -lag-in-frames 16",
        None,
    ),
    "vp8": ("a.webm", "-c:v libvpx -deadline realtime -auto-alt-ref 1 -lag-in-frames 16 -b:v 1M", "pyav"),
    "mpeg4 in avi": ("a.avi", "-c:v mpeg4 -q:v 3", None),
    "mpeg4 with B-frames in avi": ("a.avi", "-c:v mpeg4 -q:v 3 -bf 2", None),
    "mjpeg in avi": ("a.avi", "-c:v mjpeg -q:v 3 -pix_fmt yuvj420p", None),
    "starts at 100 s": ("a.mp4", f"{H264} -bf 2 -output_ts_offset 100", None),
}


def _numbers(info: VideoInfo, media, span: Span | None = None, **kwargs) -> list[tuple[int, int, float]]:
    return [(f.index, media.number_of(f.image), f.timestamp_s) for f in read_frames(info, span, **kwargs)]


def _check_all_reads(info: VideoInfo, media, numbers: list[int]) -> None:
    """The whole file, spans, strides and both decoders, against the numbers that the frames carry."""
    times_s = info.timestamps_s.tolist()
    truth = list(zip(range(len(numbers)), numbers, times_s, strict=True))
    for reader in (info, dataclasses.replace(info, backend="pyav")):
        assert _numbers(reader, media) == truth
        assert _numbers(reader, media, max_pixels=80 * 48, num_threads=2) == truth
        for first, last in [(0, 5), (1, 2), (17, 31), (38, 43), (len(numbers) - 3, len(numbers))]:
            end_s = times_s[last] if last < len(numbers) else info.span.end_s
            span = Span(start_s=times_s[first], end_s=end_s)
            assert _numbers(reader, media, span) == truth[first:last]
            assert _numbers(reader, media, span, stride=3) == truth[first:last:3]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_each_frame_with_its_time(kind: str, media, tmp_path: Path) -> None:
    name, options, backend = KINDS[kind]
    info = probe(str(media.numbered(tmp_path / name, 60, 25.0, options)))
    assert info.num_frames == 60
    assert (info.width, info.height) == (160, 96)
    np.testing.assert_allclose(info.timestamps_s - info.timestamps_s[0], np.arange(60) / 25, atol=1.1e-3)
    assert info.fps == pytest.approx(25, rel=1e-3)
    assert info.duration_s == pytest.approx(2.4, abs=2e-3)
    assert not info.is_variable_rate
    if backend is not None:
        assert info.backend == backend
    if kind == "starts at 100 s":
        assert info.timestamps_s[0] == pytest.approx(100.0)
    _check_all_reads(info, media, list(range(60)))


def test_work_beside_the_probe_has_all_facts_but_the_id_and_the_decoder(media, tmp_path: Path) -> None:
    path = str(media.numbered(tmp_path / "a.mp4", 60, 25.0, H264))
    given: list[VideoInfo] = []
    info, result = probe_and(path, lambda facts: given.append(facts) or "done")
    assert result == "done"
    early, alone = given[0], probe(path)
    assert (early.video_id, early.backend) == ("", "pyav")
    assert (info.video_id, info.backend) == (alone.video_id, alone.backend)
    for field in dataclasses.fields(VideoInfo):
        if field.name not in ("video_id", "backend"):
            assert np.array_equal(getattr(early, field.name), getattr(alone, field.name)), field.name
    with pytest.raises(ZeroDivisionError):
        probe_and(path, lambda facts: 1 / 0)


def test_variable_rate_keeps_the_containers_times(media, tmp_path: Path) -> None:
    drop = "-vf select='not(between(mod(n\\,7)\\,2\\,3))' -vsync vfr"
    info = probe(str(media.numbered(tmp_path / "a.mp4", 90, 30.0, f"{H264} -bf 2 -g 20 {drop}")))
    kept = [k for k in range(90) if k % 7 not in (2, 3)]
    assert info.is_variable_rate
    assert info.fps == pytest.approx((len(kept) - 1) / (kept[-1] / 30))
    np.testing.assert_allclose(info.timestamps_s, np.array(kept) / 30, atol=1e-4)
    _check_all_reads(info, media, kept)


def test_an_edit_list_hides_the_frames_before_the_cut(media, tmp_path: Path) -> None:
    """A stream copy from 0.7 s starts at the keyframe before and tells players to skip up to 0.7 s."""
    whole = media.numbered(tmp_path / "a.mp4", 80, 25.0, f"{H264} -bf 2 -g 30")
    media.ffmpeg("-ss", "0.72", "-i", whole, "-c", "copy", tmp_path / "cut.mp4")
    info = probe(str(tmp_path / "cut.mp4"))
    numbers = [number for _, number, _ in _numbers(info, media)]
    assert numbers == list(range(numbers[0], 80))
    assert len(numbers) == info.num_frames
    steps_s = np.diff(info.timestamps_s)
    np.testing.assert_allclose(steps_s, 0.04, atol=1e-3)
    _check_all_reads(info, media, numbers)


@pytest.mark.parametrize("rotation_deg", [90, 180, 270])
def test_rotation_is_applied(rotation_deg: int, media, tmp_path: Path) -> None:
    """A phone stores turned frames and says so; ffmpeg's own upright decode is the oracle."""
    upright = [media.numbered_frame(k) for k in range(12)]
    stored = [np.rot90(frame, rotation_deg // 90) for frame in upright]
    flat = media.encode(tmp_path / "flat.mp4", stored, output=f"{H264} -crf 10")
    turned = tmp_path / "turned.mp4"
    media.ffmpeg(
        "-display_rotation", str(-rotation_deg), "-i", flat, "-c", "copy", turned
    ) if _has_display_rotation(media, flat, tmp_path) else media.ffmpeg(
        "-i", flat, "-c", "copy", "-metadata:s:v:0", f"rotate={360 - rotation_deg}", turned
    )
    info = probe(str(turned))
    by_ffmpeg = tmp_path / "upright.mkv"
    media.ffmpeg("-i", turned, "-c:v", "ffv1", "-pix_fmt", "yuv420p", by_ffmpeg)
    expected = [frame.image for frame in read_frames(probe(str(by_ffmpeg)))]
    got = [frame.image for frame in read_frames(info)]
    assert info.backend == "pyav"
    assert (info.width, info.height) == (expected[0].shape[1], expected[0].shape[0])
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.flags.c_contiguous
        assert np.abs(ours.astype(int) - theirs).mean() < 4
    small = next(read_frames(info, max_pixels=4000)).image
    assert (small.shape[1], small.shape[0]) == working_size(info.width, info.height, 4000)


def _has_display_rotation(media, flat: Path, tmp_path: Path) -> bool:
    """ffmpeg 6 replaced the rotate tag by an option."""
    try:
        media.ffmpeg("-display_rotation", "90", "-i", flat, "-c", "copy", tmp_path / "try.mp4")
    except Exception:
        return False
    return True


def test_pixels_of_other_shape_are_made_square(media, tmp_path: Path) -> None:
    info = probe(str(media.numbered(tmp_path / "a.mp4", 10, output=f"{H264} -vf setsar=4/3")))
    assert (info.width, info.height) == (213, 96)
    frames = list(read_frames(info))
    assert frames[3].image.shape == (96, 213, 3)
    assert [media.number_of(f.image) for f in frames] == list(range(10))


def test_both_decoders_give_the_same_pixels(media, tmp_path: Path) -> None:
    info = probe(str(media.numbered(tmp_path / "a.mp4", 20)))
    assert info.backend == "decord"
    by_pyav = dataclasses.replace(info, backend="pyav")
    for one, other in zip(read_frames(info), read_frames(by_pyav), strict=True):
        np.testing.assert_array_equal(one.image, other.image)
    for one, other in zip(
        read_frames(info, max_pixels=5000), read_frames(by_pyav, max_pixels=5000), strict=True
    ):
        assert np.abs(one.image.astype(int) - other.image).mean() < 3


def test_colours_and_shapes_survive(media, tmp_path: Path) -> None:
    frames = [media.numbered_frame(k) for k in range(5)]
    info = probe(str(media.encode(tmp_path / "a.mp4", frames, output="-c:v libx264 -qp 0 -pix_fmt yuv444p")))
    for frame, truth in zip(read_frames(info), frames, strict=True):
        assert frame.image.dtype == np.uint8
        assert np.abs(frame.image.astype(int) - truth).mean() < 3


def test_scaling_does_not_shift_the_picture(media, tmp_path: Path) -> None:
    """The centroid of a bright spot, in pixels with the corner at 0, scales exactly with the picture."""
    yy, xx = np.mgrid[:192, :320] + 0.5
    spot = 255 * np.exp(-((xx - 101.0) ** 2 + (yy - 77.0) ** 2) / (2 * 20.0**2))
    frames = [np.repeat(spot[..., None], 3, axis=-1).astype(np.uint8)] * 5
    info = probe(str(media.encode(tmp_path / "a.mp4", frames, output="-c:v libx264 -qp 4")))
    for reader in (info, dataclasses.replace(info, backend="pyav")):
        image = next(read_frames(reader, max_pixels=120 * 72)).image.astype(np.float64).mean(axis=-1)
        image = np.clip(image - 8, 0, None)
        height, width = image.shape
        y, x = np.mgrid[:height, :width] + 0.5
        centre = (image * x).sum() / image.sum() * 320 / width, (image * y).sum() / image.sum() * 192 / height
        assert centre == pytest.approx((101.0, 77.0), abs=0.15)


# Bad input


def test_each_bad_input_is_rejected_with_its_reason(bad_inputs) -> None:
    for name, (path, reason) in bad_inputs.items():
        with pytest.raises(ClipRejected) as caught:
            probe(str(path))
        assert (caught.value.stage, caught.value.reason) == ("probe", reason), name


def test_a_file_without_permission_is_rejected(
    media, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read anything, so the refusal is put into the open call itself."""
    path = media.numbered(tmp_path / "a.mp4", 3)
    path.chmod(0)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    if os.access(path, os.R_OK):
        monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ClipRejected, match=r"no_permission.*grant read permission"):
        probe(str(path))


def test_a_name_that_is_not_utf8_is_rejected(media, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe.mp4"
    os.rename(media.numbered(tmp_path / "a.mp4", 3), path)
    with pytest.raises(ClipRejected, match="bad_file_name"):
        probe(os.fsdecode(path))


@pytest.mark.parametrize(
    "name", ["with space.mp4", "üñï 視頻 🎥.mp4", "a:b?c%20d#e.mp4", "-i.mp4", "no_suffix"]
)
def test_odd_names_are_read(name: str, media, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    media.numbered(tmp_path / "a.mp4", 12).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for path in (name, str(tmp_path / name), f"file://{tmp_path / name}"):
        assert [number for _, number, _ in _numbers(probe(path), media)] == list(range(12))


@pytest.mark.parametrize("share", [0.5, 0.75, 0.98])
@pytest.mark.parametrize("layout", ["faststart", "matroska", "transport"])
def test_a_cut_file_with_its_index_gives_what_decodes(
    layout: str, share: float, media, tmp_path: Path
) -> None:
    suffix, flags = {
        "faststart": ("mp4", "-movflags faststart"),
        "matroska": ("mkv", ""),
        "transport": ("ts", ""),
    }[layout]
    whole = media.numbered(tmp_path / f"a.{suffix}", 60, 25.0, f"{H264} -bf 2 -g 20 {flags}")
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    info = probe(str(cut))
    read = _numbers(info, media)
    assert 0 < info.num_frames < 60
    assert [index for index, _, _ in read] == list(range(info.num_frames))
    assert [time_s for _, _, time_s in read] == info.timestamps_s.tolist()
    # The very last frame may be half there; the others carry their own number.
    assert [number for _, number, _ in read[:-1]] == list(range(info.num_frames - 1))


@pytest.mark.parametrize("seed", range(6))
def test_damage_inside_a_file_costs_frames_but_no_order(seed: int, media, tmp_path: Path) -> None:
    path = media.numbered(tmp_path / "a.mp4", 80, 25.0, f"{H264} -bf 3 -g 20")
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    for _ in range(6):
        start = int(rng.integers(2000, len(data) - 6000))
        data[start : start + 300] = rng.bytes(300)
    path.write_bytes(data)
    info = probe(str(path))
    for reader in (info, dataclasses.replace(info, backend="pyav")):
        indices = [frame.index for frame in read_frames(reader)]
        assert len(indices) >= 20
        assert indices == sorted(set(indices))
        times_s = [frame.timestamp_s for frame in read_frames(reader)]
        assert times_s == info.timestamps_s[indices].tolist()


def test_one_frame(media, tmp_path: Path) -> None:
    info = probe(str(media.numbered(tmp_path / "a.mp4", 1)))
    assert (info.num_frames, info.is_variable_rate) == (1, False)
    assert info.duration_s == pytest.approx(1 / 25)
    assert [number for _, number, _ in _numbers(info, media, info.span)] == [0]


def test_a_black_video_is_read(media, tmp_path: Path) -> None:
    black = media.encode(tmp_path / "a.mp4", [np.zeros((96, 160, 3), np.uint8)] * 10)
    assert [int(f.image.max()) for f in read_frames(probe(str(black)))] == [0] * 10


# Identity, spans and remote files


def test_equal_content_has_one_identity_whatever_its_name(media, tmp_path: Path) -> None:
    first = media.numbered(tmp_path / "a.mp4", 5)
    second = tmp_path / "b.mov"
    second.write_bytes(first.read_bytes())
    other = media.numbered(tmp_path / "c.mp4", 6)
    ids = [probe(str(path)).video_id for path in (first, second, other)]
    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0]) == 32
    assert probe(str(first)).size_bytes == first.stat().st_size


def test_spans_are_half_open_and_tile(media, tmp_path: Path) -> None:
    info = probe(str(media.numbered(tmp_path / "a.mp4", 50, 29.97)))
    cuts_s = [info.span.start_s, info.timestamps_s[13], info.timestamps_s[14], 1.2345, info.span.end_s]
    spans = [Span(start_s=a, end_s=b) for a, b in pairwise(cuts_s)]
    parts = [[f.index for f in read_frames(info, span)] for span in spans]
    assert [index for part in parts for index in part] == list(range(50))
    assert parts[1] == [13]
    # Times written with six digits, as in a replay command, mean the same frames.
    rounded = [Span(start_s=round(s.start_s, 6), end_s=round(s.end_s, 6)) for s in spans]
    assert [[f.index for f in read_frames(info, span)] for span in rounded] == parts


def test_a_span_without_frames_yields_none(media, tmp_path: Path) -> None:
    info = probe(str(media.numbered(tmp_path / "a.mp4", 10)))
    assert list(read_frames(info, Span(start_s=50.0, end_s=60.0))) == []
    assert list(read_frames(info, Span(start_s=0.001, end_s=0.002))) == []


def test_senseless_arguments_are_refused(media, tmp_path: Path) -> None:
    info = probe(str(media.numbered(tmp_path / "a.mp4", 3)))
    with pytest.raises(ValueError, match="empty"):
        Span(start_s=1.0, end_s=1.0)
    with pytest.raises(ValueError, match="stride"):
        read_frames(info, stride=0)


@pytest.mark.parametrize("size", [(640, 480), (1226, 370), (1920, 1080), (853, 481), (7, 5001)])
@pytest.mark.parametrize("max_pixels", [10**9, 500_000, 36_864, 300])
def test_working_size_is_even_bounded_and_keeps_the_shape(size, max_pixels) -> None:
    width, height = working_size(*size, max_pixels)
    assert width % 2 == height % 2 == 0
    assert width * height <= max(max_pixels, 2 * height, 2 * width)
    assert width <= max(2, size[0])
    assert height <= max(2, size[1])
    if width > 60 and height > 60:
        assert width / height == pytest.approx(size[0] / size[1], rel=0.03)


def test_remote_files_are_fetched_and_removed(media, tmp_path: Path) -> None:
    path = media.numbered(tmp_path / "a.mp4", 12)
    uri = "memory://test_video/some video.mp4"
    with fsspec.open(uri, "wb") as remote:
        remote.write(path.read_bytes())
    info, local = probe(uri), probe(str(path))
    assert info.path == uri
    assert info.video_id == local.video_id
    assert [number for _, number, _ in _numbers(info, media)] == list(range(12))
    with local_copy(uri) as fetched:
        assert Path(fetched).read_bytes() == path.read_bytes()
    assert not Path(fetched).exists()
    with pytest.raises(ClipRejected, match="not_found"):
        probe("memory://test_video/no such video.mp4")


def test_a_broken_seek_index_falls_back_to_decoding_from_the_start(
    media, tmp_path: Path, monkeypatch
) -> None:
    """A seek that lands past the span must not lose its frames."""
    info = probe(str(media.numbered(tmp_path / "a.mp4", 60, 25.0, f"{H264} -g 10")))
    by_pyav = dataclasses.replace(info, backend="pyav")
    opened = container_module.open_container

    class LateSeek:
        def __init__(self, inner):
            self._inner = inner

        def __enter__(self):
            self._inner.__enter__()
            return self

        def __exit__(self, *args):
            return self._inner.__exit__(*args)

        def __getattr__(self, name):
            return getattr(self._inner, name)

        def seek(self, offset, **kwargs):
            self._inner.seek(offset + int(1.0 / kwargs["stream"].time_base), **kwargs)

    monkeypatch.setattr("worldline.annotate.video.open_container", lambda path: LateSeek(opened(path)))
    span = Span(start_s=info.timestamps_s[15], end_s=info.timestamps_s[20])
    assert [number for _, number, _ in _numbers(by_pyav, media, span)] == [15, 16, 17, 18, 19]
