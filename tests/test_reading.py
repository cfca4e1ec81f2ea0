import socket
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import box, gradient, number_of, turned, write_clip_file

from stma.data.pictures import save_picture
from stma.errors import InputError
from stma.video import reading as module
from stma.video.reading import Span, open_video

MASK = box(8, 8, 24, 24, size=(48, 64))


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mov", "libx265", "yuv420p10le"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.gif", "gif", "rgb8"),
        ("a: b.avi", "mpeg4", "yuv420p"),
    ],
)
def test_common_formats_are_read_forward_and_backward(
    tmp_path, name: str, codec: str, pix_fmt: str, monkeypatch
) -> None:
    clip = write_clip_file(tmp_path / name, map(gradient, range(12)), codec, pix_fmt)
    video = open_video(clip)
    assert video.size == (48, 64)
    assert len(video) == 12
    forward = list(video.frames())
    assert [frame.number for frame in forward] == list(range(12))
    assert [number_of(frame.image) for frame in forward] == list(range(12))
    assert forward[0].image.dtype == np.uint8
    monkeypatch.setattr("stma.video.reading.BACKWARD_BYTES", 4 * 3 * 48 * 64)
    backward = list(video.frames_backward(9))
    assert [frame.number for frame in backward] == list(range(9, -1, -1))
    assert all(np.array_equal(b.image, forward[b.number].image) for b in backward)
    assert [b.pts for b in backward] == [forward[b.number].pts for b in backward]


def test_backward_nothing_is_decoded_from_the_start_again(tmp_path, monkeypatch) -> None:
    clip = write_clip_file(tmp_path / "a.mp4", map(gradient, range(20)))
    video = open_video(clip)
    monkeypatch.setattr("stma.video.reading.BACKWARD_BYTES", 5 * 3 * 48 * 64)
    decode, decoded = module._decoded, []
    counted = lambda *given: (decoded.append(f) or f for f in decode(*given))  # noqa: E731
    monkeypatch.setattr(module, "_decoded", counted)
    assert [number_of(f.image) for f in video.frames_backward(19)] == list(range(19, -1, -1))
    assert len(decoded) <= 20 + 6 * 4  # in six parts, each from the key frame before it


def test_a_single_frame_takes_no_others_along(tmp_path, monkeypatch) -> None:
    """The page steps from frame to frame like this."""
    video = open_video(write_clip_file(tmp_path / "a.mp4", map(gradient, range(20))))
    converted = []
    image = type(video)._image
    monkeypatch.setattr(type(video), "_image", lambda *args: converted.append(1) or image(*args))
    assert number_of(next(video.frames_backward(19)).image) == 19
    assert len(converted) == 1


def test_frames_are_turned_as_they_are_shown(tmp_path) -> None:
    clip = turned(write_clip_file(tmp_path / "a.mp4", map(gradient, range(3))))
    video = open_video(clip)
    assert video.size == (64, 48)
    image = next(video.frames()).image
    expected = np.rot90(gradient(0), -1)  # red at the right, bright at the top
    assert image.shape == (64, 48, 3)
    assert np.abs(image.astype(int) - expected).mean() < 12


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda image: np.rot90(image, 2).swapaxes(0, 1)),
    ],
)
def test_frames_are_mirrored_as_they_are_shown(tmp_path, matrix, shown) -> None:
    clip = turned(write_clip_file(tmp_path / "a.mp4", [gradient(0)]), *matrix)
    image = next(open_video(clip).frames()).image
    assert np.abs(image.astype(int) - shown(gradient(0))).mean() < 12


def test_a_variable_frame_rate_keeps_its_times(tmp_path) -> None:
    times = [0, 4, 5, 30, 100]
    clip = write_clip_file(tmp_path / "a.mp4", map(gradient, range(5)), times=times)
    video = open_video(clip)
    seconds = [float(frame.pts * video.time_base) for frame in video.frames()]
    assert seconds == pytest.approx([0, 0.04, 0.05, 0.3, 1.0])


def test_the_start_of_a_trimmed_video_is_not_counted(tmp_path, caplog) -> None:
    """Phones keep its frames in the file, marked as not to be shown."""
    whole = write_clip_file(tmp_path / "whole.mp4", map(gradient, range(20)))
    path = tmp_path / "trimmed.mp4"
    options = {"avoid_negative_ts": "disabled"}
    with av.open(str(whole)) as source, av.open(str(path), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in list(source.demux(video=0))[:-1]:
            begin = round(7 / 25 / packet.time_base)
            packet.pts, packet.dts = packet.pts - begin, packet.dts - begin
            packet.stream = stream
            target.mux(packet)
    video = open_video(path)
    assert len(video) == 13
    assert [number_of(frame.image) for frame in video.frames()] == list(range(7, 20))
    assert [number_of(frame.image) for frame in video.frames_backward(5)] == list(range(12, 6, -1))
    assert caplog.text == ""


def test_a_recording_may_begin_between_key_frames(tmp_path, monkeypatch) -> None:
    """Its first frames cannot be decoded, so they are not counted, forward or backward."""
    whole = write_clip_file(tmp_path / "whole.ts", map(gradient, range(20)))
    path = tmp_path / "late.ts"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in list(source.demux(video=0))[1:-1]:  # not the key frame, nor the end
            packet.stream = stream
            target.mux(packet)
    video = open_video(path)
    assert len(video) == 16
    assert [number_of(frame.image) for frame in video.frames()] == list(range(4, 20))
    monkeypatch.setattr("stma.video.reading.BACKWARD_BYTES", 4 * 3 * 48 * 64)
    backward = [(f.number, number_of(f.image)) for f in video.frames_backward(15)]
    assert backward == [(n, n + 4) for n in range(15, -1, -1)]


def test_odd_sizes_and_changing_sizes_come_out_as_the_first(tmp_path) -> None:
    clip = write_clip_file(tmp_path / "a.mkv", [gradient(1, 33, 51)] * 2, "ffv1", "yuv444p")
    assert [f.image.shape for f in open_video(clip).frames()] == [(33, 51, 3)] * 2


def test_colours_are_those_that_were_encoded(tmp_path) -> None:
    clip = write_clip_file(tmp_path / "a.mp4", [np.full((48, 64, 3), (200, 40, 90), np.uint8)])
    image = next(open_video(clip).frames()).image
    assert np.abs(image.reshape(-1, 3).mean(0) - (200, 40, 90)).max() < 4


def test_a_folder_of_pictures_is_a_video(tmp_path) -> None:
    for number in (2, 10, 1):
        save_picture(tmp_path / f"{number}.png", gradient(number))
    (tmp_path / "notes.txt").touch()
    video = open_video(tmp_path)
    assert [number_of(frame.image) for frame in video.frames()] == [1, 2, 10]
    assert [number_of(frame.image) for frame in video.frames_backward(1)] == [2, 1]
    assert [video.name(number) for number in range(len(video))] == ["1", "2", "10"]
    assert video.number("10") == video.number("0010") == 2
    assert video.number("0") is None
    save_picture(tmp_path / "11.png", gradient(1, 40, 64))
    with pytest.raises(InputError, match=r"11.png: 64 x 40 pixels, the first picture 64 x 48"):
        list(open_video(tmp_path).frames())


def test_pictures_are_in_natural_order(tmp_path) -> None:
    numbers = [0, 2, 9, 10, 11, 99, 100]
    for number in numbers:
        save_picture(tmp_path / f"img_{number:02d}.png", gradient(number % 20))
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "._img_00.png").touch()
    video = open_video(tmp_path)
    assert [number_of(frame.image) for frame in video.frames()] == [n % 20 for n in numbers]
    assert video.name(3) == "img_10"
    assert video.number("img_100") == 6


def test_frames_of_a_file_are_called_by_number(tmp_path) -> None:
    video = open_video(write_clip_file(tmp_path / "a.mp4", map(gradient, range(3))))
    assert video.name(2) == "00002"
    assert video.number("2") == video.number("00002") == 2
    assert video.number("3") is video.number("x") is None


def test_what_cannot_be_segmented_is_refused_in_one_line(tmp_path) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            list(open_video(path).frames())
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)

    good = write_clip_file(tmp_path / "good.mp4", map(gradient, range(20)), movflags="faststart")
    content = good.read_bytes()
    path = tmp_path / "bad.mp4"
    refused(tmp_path / "none.mp4", "no such file or folder")
    path.write_text("hello world\n")
    refused(path, "cannot be read as a video")
    path.write_text("#EXTM3U\n#EXTINF:1,\ngood.mp4\n")  # a playlist
    refused(path, "cannot be read as a video")
    path.write_bytes(b"")
    refused(path, "cannot be read as a video")
    path.write_bytes(content[: content.find(b"moov") + 20])
    refused(path, "cannot be read as a video|no video stream")
    path.write_bytes(content[: content.find(b"mdat") + 8])
    refused(path, "cannot be read as a video|the video has no frame")
    key = {"encryption_key": "00" * 16, "encryption_kid": "11" * 16}
    frames = map(gradient, range(3))
    refused(write_clip_file(path, frames, encryption_scheme="cenc-aes-ctr", **key), "is encrypted")
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac", rate=8000)
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        tone.sample_rate = 8000
        container.mux(audio.encode(tone))
        container.mux(audio.encode())
    refused(path, "no video stream")
    gif = tmp_path / "small.gif"
    refused(
        write_clip_file(gif, [np.zeros((1, 1, 3), np.uint8)], "gif", "rgb8"),
        "1 x 1 pixels; give at least 16 x 16",
    )
    large = write_clip_file(gif, [np.zeros((4320, 7680, 3), np.uint8)], "gif", "gray")
    refused(large, r"7680 x 4320 pixels, and the limit is 20,000,000")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"the folder holds no .jpg")
    (tmp_path / "empty" / "a.jpg").touch()
    (tmp_path / "empty" / "a-mask.png").touch()
    refused(tmp_path / "empty", "holds JPEGs and PNGs")
    (tmp_path / "empty" / "a-mask.png").unlink()
    refused(tmp_path / "empty", r"a.jpg: cannot be read as an image")


def test_a_truncated_file_is_told(tmp_path, caplog) -> None:
    """Cut between two frames, where FFmpeg sees no error."""
    noise = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), dtype=np.uint8)
    options = {"movflags": "faststart"}
    path = write_clip_file(tmp_path / "a.avi.mov", noise, "mpeg4", **options)
    with av.open(str(path)) as container:
        end = max(p.pos for p in container.demux(video=0) if p.size and p.pts < 12 * 512)
    path.write_bytes(path.read_bytes()[:end])
    video = open_video(path)
    assert len(video) == 20
    assert len(list(video.frames())) == 11
    assert "ends after 11 of the 20 frames" in caplog.text


@pytest.mark.parametrize("share", [0.7, 0.8, 0.9])
def test_a_file_cut_anywhere_is_told_and_what_is_before_comes_out(tmp_path, caplog, share) -> None:
    path = write_clip_file(tmp_path / "a.mp4", map(gradient, range(20)), movflags="faststart")
    content = path.read_bytes()
    start = content.find(b"mdat")
    path.write_bytes(content[: start + round(share * (len(content) - start))])
    numbers = []
    try:
        for frame in open_video(path).frames():
            numbers.append(number_of(frame.image))
    except InputError as error:
        told = str(error)
    else:
        told = caplog.text
    assert 0 < len(numbers) < 20
    assert numbers == list(range(len(numbers)))
    assert (f"unreadable from frame {len(numbers)} on" in told and "a copy skips" in told) or (
        f"ends after {len(numbers)} of the 20 frames" in told
    )


@pytest.mark.parametrize(("name", "options"), [("a.mp4", {"movflags": "faststart"}), ("a.mkv", {})])
def test_a_truncated_file_is_named(tmp_path, caplog, name: str, options: dict) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(20)]
    path = write_clip_file(tmp_path / name, frames, **options)
    assert len(list(open_video(path).frames())) == 20
    assert not caplog.text
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    left = len(list(open_video(path).frames()))
    assert 0 < left < 15
    assert f"{name}: the video ends after {left} " in caplog.text


@pytest.mark.parametrize("kind", ["a.mp4", "a.gif", "folder"])
def test_frames_from_one_on(tmp_path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
        for number in range(12):
            save_picture(path / f"{number}.png", gradient(number))
    else:
        codec = {"a.mp4": ("libx264", "yuv420p"), "a.gif": ("gif", "rgb8")}[kind]
        write_clip_file(path, map(gradient, range(12)), *codec)
    video = open_video(path)
    whole = list(video.frames())
    for first in (0, 1, 7, 11):
        found = list(video.frames(first))
        assert [frame.number for frame in found] == list(range(first, 12))
        assert [frame.pts for frame in found] == [frame.pts for frame in whole[first:]]
        assert [number_of(frame.image) for frame in found] == list(range(first, 12))
        assert video.seconds(first) == whole[first].pts * video.time_base


def test_from_one_on_nothing_before_its_key_frame_is_decoded(tmp_path, monkeypatch) -> None:
    video = open_video(write_clip_file(tmp_path / "a.mp4", map(gradient, range(20))))  # keys: 5
    decoded = []
    original = module._decoded

    def counting(*arguments):
        for frame in original(*arguments):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(module, "_decoded", counting)
    assert number_of(next(video.frames(17)).image) == 17
    assert len(decoded) <= 3


def test_a_span_is_numbered_anew_and_named_as_before(tmp_path) -> None:
    video = open_video(write_clip_file(tmp_path / "a.mp4", map(gradient, range(12)), sound=True))
    span = Span(video, 3, 10, 3)
    assert len(span) == 3
    assert [span.name(number) for number in range(3)] == ["00003", "00006", "00009"]
    assert [span.number(name) for name in ("3", "9", "4", "0", "12", "x")] == [0, 2, *4 * [None]]
    assert span.start == Fraction(3, 25)
    assert span.rate == Fraction(25, 3)
    assert not span.whole
    forward, backward = list(span.frames()), list(span.frames_backward(2))
    assert [frame.number for frame in forward] == [0, 1, 2]
    assert [number_of(frame.image) for frame in forward] == [3, 6, 9]
    assert [frame.number for frame in backward] == [2, 1, 0]
    assert [number_of(frame.image) for frame in backward] == [9, 6, 3]
    assert [frame.number for frame in span.frames(1)] == [1, 2]
    with pytest.raises(InputError, match="no frame from 00005 to 00003"):
        Span(video, 5, 3)


def test_the_program_for_a_stream_runs(tmp_path) -> None:
    """As docs/own_video.md has it, on a stream of this machine."""
    text = (Path(__file__).parent.parent / "docs" / "own_video.md").read_text(encoding="utf-8")
    (program,) = [part for part in text.split("```python\n")[1:] if "rtsp://" in part]
    clip = write_clip_file(tmp_path / "a.ts", map(gradient, range(4)))

    def send(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(clip.read_bytes())

    shown = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=send, args=(listener,), daemon=True)
        thread.start()
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        code = program.partition("```")[0].replace("rtsp://camera/stream", address)
        exec(code, {"first_mask": lambda _: MASK, "show": lambda *pair: shown.append(pair)})
        thread.join()
    assert [number_of(image) for image, _ in shown] == [0, 1, 2, 3]
    assert np.array_equal(shown[0][1], MASK)
