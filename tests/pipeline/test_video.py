"""y4m through `upscale`: the frames of pictures, and nothing else on stdout."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mipkd.core.errors import MipkdError, StageError, UnsupportedError, UsageError
from mipkd.core.images import read_rgb, write_png
from mipkd.core.yuv import YuvFormat, rgb_of_yuv, yuv_of_rgb
from pipeline.upscale import video
from pipeline.upscale.upscale import choose_model
from pipeline.upscale.y4m import Y4mReader, matrix_by_size

Finished = Any  # the record of conftest.py
Command = Callable[..., Any]

SIZE = (35, 47)
JPEG = YuvFormat((2, 2), (False, False), "bt601")
KINDS = {
    "420jpeg": JPEG,
    "420mpeg2": YuvFormat((2, 2), (False, True), "bt601"),
    "420paldv": YuvFormat((2, 2), (True, True), "bt601"),
    "422": YuvFormat((1, 2), (False, True), "bt601"),
    "444": YuvFormat((1, 1), (False, False), "bt601"),
}


def y4m(count: int = 2, tags: str = "F25:1 Ip A1:1 C420jpeg", kind: YuvFormat = JPEG) -> bytes:
    made = f"YUV4MPEG2 W{SIZE[1]} H{SIZE[0]} {tags}\n".encode()
    for number in range(count):
        rows, columns = np.indices(SIZE)
        channels = (columns * 3 + number, rows * 4, rows + columns)
        picture = np.stack(channels, axis=2).clip(0, 255).astype(np.uint8)
        made += b"FRAME\n" + yuv_of_rgb(picture, kind).tobytes()
    return made


@pytest.fixture(scope="module")
def model(once: Finished) -> Any:
    return choose_model(once.bundle, "cpu", "fp32")


@pytest.fixture
def run(once: Finished, model: Any, tmp_path: Path) -> Callable[..., bytes]:
    """Upscale what a file holds into memory."""

    def upscaled(content: bytes, **changes: Any) -> bytes:
        source, out = tmp_path / "source.y4m", BytesIO()
        source.write_bytes(content)
        settings = {"memory_bytes": 2**31, "side": 60} | changes
        video.upscale_video(once.bundle, model, video.Asked(source, Path("-")), out, **settings)
        return out.getvalue()

    return upscaled


def frames(content: bytes) -> tuple[Any, list[Any]]:
    reader = Y4mReader(BytesIO(content), "result")
    return reader.header, list(reader)


@pytest.mark.parametrize("tag", KINDS)
def test_a_video_becomes_twice_as_large_and_stays_of_its_kind(
    tag: str, run: Callable[..., bytes]
) -> None:
    tags = f"F30000:1001 I? A32:27 C{tag} XYSCSS=WHATEVER XCOLORRANGE=LIMITED XA=b"
    made = run(y4m(3, tags, KINDS[tag]))
    line = made.split(b"\n")[0].decode()
    kept = tags.replace("XYSCSS=WHATEVER ", "")
    assert line == f"YUV4MPEG2 W94 H70 {kept}"
    header, found = frames(made)
    assert (header.kind, len(found)) == (KINDS[tag], 3)
    assert len(line) + 1 <= 96  # what FFmpeg reads


def test_a_frame_has_the_pixels_of_the_picture(
    once: Finished, run: Callable[..., bytes], tmp_path: Path, ended: Command
) -> None:
    kind = KINDS["444"]
    content = y4m(1, "F25:1 Ip C444", kind)
    planes = frames(content)[1][0]
    write_png(tmp_path / "frame.png", rgb_of_yuv(planes, SIZE, kind))
    words = ("--target", "cpu", "--precision", "fp32", "--tile", "60")
    said = ended("upscale", once.bundle, tmp_path / "frame.png", "-o", tmp_path / "out", *words)
    assert said.code == 0, said.err
    picture = read_rgb(tmp_path / "out" / "frame.png")
    (frame,) = frames(run(content))[1]
    assert np.array_equal(frame, yuv_of_rgb(picture, kind))


@pytest.mark.parametrize(
    ("content", "kind", "what"),
    [
        (b"", UsageError, "no y4m video: it is empty"),
        (b"\x89PNG\r\n\x1a\n", UsageError, "no y4m video: it begins with"),
        (b"YUV4MPEG2 W4 H4", UsageError, "its first line does not end"),
        (b"YUV4MPEG2 H4 F1:1\n", UsageError, "width ''"),
        (b"YUV4MPEG2 W4 H-4\n", UsageError, "height '-4'"),
        (b"YUV4MPEG2 W4 H99999\n", UsageError, "height '99999'; known: 1 to 16384"),
        (y4m(0), UsageError, "no frame in it"),
        (y4m(1, "It"), UnsupportedError, "interlaced (It)"),
        (y4m(1, "Im"), UnsupportedError, "interlaced (Im)"),
        (y4m(1, "C420p10 XYSCSS=420P10"), UnsupportedError, "pixels '420p10'"),
        (y4m(1, "Cmono"), UnsupportedError, "pixels 'mono'"),
        (y4m(1, "C444alpha"), UnsupportedError, "pixels '444alpha'"),
        (y4m(1)[:-7], StageError, "frame 1 ends after 2502 of 2509 bytes"),
        (y4m(2)[:-7], StageError, "frame 2 ends after 2502 of 2509 bytes"),
        (y4m(1) + b"garbage", StageError, "frame 2 is damaged"),
        (y4m(1).replace(b"FRAME", b"FRAMES"), StageError, "frame 1 is damaged"),
    ],
)
def test_what_is_no_video_of_ours_is_one_line(
    content: bytes, kind: type[MipkdError], what: str, run: Callable[..., bytes]
) -> None:
    with pytest.raises(kind) as caught:
        run(content)
    assert what in caught.value.what
    assert type(caught.value) is kind


def test_a_frame_that_memory_does_not_hold_is_refused_before_it_is_read(
    run: Callable[..., bytes],
) -> None:
    with pytest.raises(UsageError, match=r"a frame of 16000x16000 takes .* --memory"):
        run(b"YUV4MPEG2 W16000 H16000\nFRAME\n")


def test_a_full_range_is_kept() -> None:
    header = Y4mReader(BytesIO(y4m(1, "C420jpeg XCOLORRANGE=FULL")), "full").header
    assert header.kind.full_range
    assert "full range" in str(header.kind)


def test_the_matrix_is_that_which_players_take() -> None:
    assert [matrix_by_size(size) for size in ((480, 720), (576, 720))] == ["bt601"] * 2
    assert [matrix_by_size(size) for size in ((720, 1280), (1080, 1440))] == ["bt709"] * 2
    header = Y4mReader(BytesIO(y4m(1)), "told", "bt709").header
    assert header.kind.matrix == "bt709"


def test_files_of_others_are_replaced_only_when_that_is_asked(
    once: Finished, model: Any, tmp_path: Path
) -> None:
    source, result = tmp_path / "in.y4m", tmp_path / "sub" / "out.y4m"
    source.write_bytes(y4m(2))

    def upscale(to: Path = result, *, overwrite: bool = False) -> bytes:
        asked = video.Asked(source, to, overwrite)
        video.upscale_video(once.bundle, model, asked, None, memory_bytes=2**31, side=60)
        return to.read_bytes()

    first = upscale()
    assert upscale() == first  # its own
    assert len(first.split(b"\n")[0]) < 96
    assert frames(first)[0].tags == ("F25:1", "Ip", "A1:1", "C420jpeg")  # its mark is no tag
    changed = first[:-1] + bytes([first[-1] ^ 1])
    for content in (changed, first[:-1], y4m(1), b"mine"):
        result.write_bytes(content)
        with pytest.raises(UsageError, match="was not made by upscale: --overwrite replaces it"):
            upscale()
        assert result.read_bytes() == content
    assert upscale(overwrite=True) == first
    assert [file.name for file in result.parent.iterdir()] == ["out.y4m"]
    with pytest.raises(UsageError, match="would be overwritten"):
        upscale(source, overwrite=True)
    assert source.read_bytes() == y4m(2)


def test_a_damaged_video_leaves_no_file(once: Finished, tmp_path: Path, ended: Command) -> None:
    (tmp_path / "in.y4m").write_bytes(y4m(2)[:-7])
    out = tmp_path / "out"
    out.mkdir()
    said = ended("upscale", once.bundle, tmp_path / "in.y4m", "-o", out, "--tile", "60")
    assert said.code == 5
    assert "frame 2 ends after" in said.err
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("a.y4m", "b.y4m", "-o", "out.y4m"), "a video goes alone"),
        (("a.y4m", "-o", "out.png"), "a video becomes a video"),
        (("a.png", "-o", "out.y4m"), "a.png is no y4m video"),
        (("a.y4m", "-o", "out.y4m", "--bits", "16"), "--bits 16: of pictures"),
        (("a.y4m", "-o", "out.y4m", "--format", "png"), "--format png: of pictures"),
        (("a.y4m", "-o", "out.y4m", "--matrix", "bt2020"), "--matrix: 'bt2020'"),
        (("a.png", "-o", "out", "--matrix", "bt709"), "of a video, and these are pictures"),
        (("a.y4m", "-o", "out.y4m"), "a.y4m: cannot be read: No such file"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    words: tuple[str, ...], what: str, once: Finished, ended: Command
) -> None:
    said = ended("upscale", once.bundle, *words, "--target", "cpu")
    assert said.code == 2
    assert what in said.err


def test_a_reader_that_leaves_ends_it_quietly(once: Finished, model: Any, tmp_path: Path) -> None:
    (tmp_path / "in.y4m").write_bytes(y4m(3))
    reading, writing = os.pipe()
    os.close(reading)
    asked = video.Asked(tmp_path / "in.y4m", Path("-"))
    out = os.fdopen(writing, "wb")
    made = video.upscale_video(once.bundle, model, asked, out, memory_bytes=2**31, side=60)
    with pytest.raises(BrokenPipeError):
        out.close()  # as `claim_stdout` closes it
    assert (made.stopped, made.frames) == (True, 0)


def test_frames_alone_go_from_stdin_to_stdout(once: Finished, run: Callable[..., bytes]) -> None:
    words = ("upscale", str(once.bundle), "-", "-o", "-", "--target", "cpu", "--precision", "fp32")
    done = subprocess.run(
        [sys.executable, "-c", "from pipeline.cli import main; main()", *words, "--tile", "60"],
        input=y4m(2),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == run(y4m(2))
    assert b"YUV 4:2:0, BT.601, limited range in and out (matrix by its size" in done.stderr
    assert b"2 frames" in done.stderr


def test_several_frames_in_flight_come_out_in_order() -> None:
    """The first waits for the second, as no order of one after another lets it."""
    second = threading.Event()

    def process(frame: Any) -> Any:
        if frame[0] == 0:
            assert second.wait(30)
        elif frame[0] == 1:
            second.set()
        return frame

    given = [np.array([number], np.uint8) for number in range(7)]
    made = list(video.process_in_order(process, given, 3))
    assert [int(frame[0]) for frame in made] == list(range(7))
    assert list(video.process_in_order(lambda frame: frame, given, 1)) == given
