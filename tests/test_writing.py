import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from conftest import box, gradient, number_of, turned, write_clip_file
from PIL import Image
from pycocotools.coco import COCO

from stma.data.masks import read_mask
from stma.video.reading import Span, Video, VideoFrameAt, open_video
from stma.video.writing import OUTPUTS, Background, Writer, cut_out, mask_writer

MASKS = [box(4, 2 * t, 20, 16, 1 + t % 2, size=(48, 64)) for t in range(6)]


def write(writer: Writer, video: Video, count: int = 6) -> None:
    for frame, mask in zip(video.frames(), MASKS[:count], strict=False):
        writer.write(frame, mask)
    writer.close(complete=count == 6)


def output(kind: str, folder: Path, video: Video) -> tuple[Path, Writer]:
    name, make = OUTPUTS[kind]
    return folder / name, make(folder / name, video)


@pytest.fixture
def clip(tmp_path) -> Path:
    frames = [gradient(t) for t in range(6)]
    return write_clip_file(tmp_path / "clip.mp4", frames, times=[0, 4, 5, 6, 20, 24], sound=True)


def test_masks_are_called_as_their_frames(tmp_path, clip) -> None:
    write(
        mask_writer(tmp_path / "masks", open_video(clip), bytes([0, 0, 0, 1, 2, 3])),
        open_video(clip),
    )
    assert len(list((tmp_path / "masks").iterdir())) == 6
    mask, palette = read_mask(tmp_path / "masks" / "00004.png")
    assert np.array_equal(mask, MASKS[4])
    assert palette is not None
    assert palette[3:6] == bytes([1, 2, 3])


def sound(path: Path) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as container:
        packets = container.demux(audio=0)
        return [(float(p.pts * p.time_base), bytes(p)) for p in packets if p.pts is not None]


def test_an_overlay_has_the_times_and_the_sound_of_the_original(tmp_path, clip) -> None:
    video = open_video(clip)
    path, writer = output("overlay", tmp_path, video)
    write(writer, video)
    again = open_video(path)
    frames = list(again.frames())
    assert [number_of(frame.image) for frame in frames] == list(range(6))
    seconds = [float(frame.pts * again.time_base) for frame in frames]
    assert seconds == pytest.approx([0, 0.04, 0.05, 0.06, 0.2, 0.24])
    red, green, _ = frames[0].image[10, 8]
    assert red > green + 50  # tinted
    assert sound(path) == sound(clip)


def test_an_overlay_of_a_recording_starts_with_it(tmp_path) -> None:
    """Although a camcorder's clock begins anywhere, here an hour before."""
    frames = [gradient(t) for t in range(6)]
    clip = write_clip_file(tmp_path / "a.ts", frames, sound=True, output_ts_offset="3601")
    video = open_video(clip)
    path, writer = output("overlay", tmp_path, video)
    write(writer, video)
    begin = sound(clip)[0][0]
    assert begin > 3600
    assert sound(path)[0][0] < 0.1
    again = open_video(path)
    picture = (
        next(video.frames()).pts * video.time_base - next(again.frames()).pts * again.time_base
    )
    assert picture == pytest.approx(begin - sound(path)[0][0], abs=0.002)


def test_pixels_that_are_not_square_stay_so(tmp_path, clip) -> None:
    video = open_video(clip)
    video.pixel_aspect = Fraction(4, 3)
    path, writer = output("overlay", tmp_path, video)
    write(writer, video)
    assert open_video(path).pixel_aspect == Fraction(4, 3)
    assert open_video(turned(path)).pixel_aspect == Fraction(3, 4)


def test_an_overlay_has_the_colours_of_the_original(tmp_path, clip) -> None:
    """And says how they are coded: players take large videos to be BT.709 otherwise."""
    video = open_video(clip)
    path, writer = output("overlay", tmp_path, video)
    picture = np.full((48, 64, 3), (200, 40, 90), np.uint8)
    writer.write(next(video.frames()), MASKS[0])  # is not left in the next one
    for number in range(1, 4):
        writer.write(VideoFrameAt(number, picture, 4 * number), np.zeros((48, 64), np.uint8))
    writer.close()
    found = list(open_video(path).frames())[-1].image
    assert np.abs(found.astype(int) - picture).max() < 8
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (Colorspace.ITU601, ColorRange.MPEG)


def test_an_overlay_cut_short_has_the_sound_until_then(tmp_path, clip) -> None:
    video = open_video(clip)
    path, writer = output("overlay", tmp_path, video)
    write(writer, video, count=2)
    assert len(list(open_video(path).frames())) == 2
    whole = sound(clip)
    assert 0 < len(sound(path)) < len(whole)


def test_sound_that_does_not_fit_is_left_out_with_a_warning(tmp_path, caplog, clip) -> None:
    video = open_video(clip)
    path, writer = output("webm", tmp_path, video)
    write(writer, video)
    assert "its sound (aac) does not fit into webm" in caplog.text
    assert len(list(open_video(path).frames())) == 6


def test_a_webm_cut_out_is_transparent_around_the_objects(tmp_path, clip) -> None:
    video = open_video(clip)
    path, writer = output("webm", tmp_path, video)
    write(writer, video)
    with av.open(str(path)) as container:
        assert container.streams.video[0].metadata["ALPHA_MODE"] == "1"
        decoder = av.CodecContext.create("libvpx-vp9", "r")  # FFmpeg's own drops the alpha
        frames = [f for p in container.demux(video=0) for f in decoder.decode(p)]
    assert frames[0].format.name == "yuva420p"
    alpha = np.stack([frame.to_ndarray(format="rgba")[..., 3] for frame in frames])
    assert len(alpha) == 6
    wrong = (alpha > 127) != (np.stack(MASKS) > 0)
    assert wrong.mean() < 0.02


def test_a_cut_out_picture_holds_the_objects_alone(tmp_path, clip) -> None:
    video = open_video(clip)
    folder, writer = output("cutout", tmp_path, video)
    write(writer, video)
    with Image.open(folder / "00003.png") as image:
        assert image.mode == "RGBA"
        pixels = np.asarray(image)
    assert np.array_equal(pixels[..., 3] > 0, MASKS[3] > 0)
    assert (pixels[MASKS[3] == 0] == 0).all()
    frame = list(video.frames())[3]
    assert np.array_equal(pixels[MASKS[3] > 0][:, :3], frame.image[MASKS[3] > 0])
    around = cut_out(frame.image, MASKS[3], np.ones((3, 3), np.uint8))
    assert around[3, 10, :3].any()
    assert around[3, 10, 3] == 0


def test_a_mask_video_is_lossless(tmp_path, clip) -> None:
    video = open_video(clip)
    path, writer = output("mkv", tmp_path, video)
    write(writer, video)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        found = [frame.to_ndarray(format="gray") for frame in frames]
    assert [round(float(frame.time) * 100) for frame in frames] == [0, 4, 5, 6, 20, 24]
    assert np.array_equal(np.stack(found), np.stack(MASKS))


def test_a_part_has_its_own_sound(tmp_path) -> None:
    clip = write_clip_file(tmp_path / "a.mp4", map(gradient, [0] * 50), sound=True)
    video = Span(open_video(clip), 25, 34)
    path, writer = output("overlay", tmp_path, video)
    for frame in video.frames():
        writer.write(frame, MASKS[0])
    writer.close()
    whole, part = sound(clip), sound(path)
    assert 0.3 < part[-1][0] - part[0][0] < 0.5
    first = [packet for _, packet in whole].index(part[1][1])
    assert [packet for _, packet in whole][first : first + len(part) - 1] == [
        packet for _, packet in part[1:]
    ]
    assert abs(whole[first][0] - 1 - part[1][0]) < 0.01


def test_coco_reads_the_masks_back(tmp_path, clip) -> None:
    video = open_video(clip)
    path, writer = output("coco", tmp_path, video)
    write(writer, video)
    coco = COCO(str(path))
    assert coco.getImgIds() == list(range(6))
    assert coco.getCatIds() == [1, 2]
    assert coco.loadImgs([5])[0] == {"id": 5, "file_name": "00005.png", "height": 48, "width": 64}
    for t in range(6):
        (annotation,) = coco.loadAnns(coco.getAnnIds(imgIds=[t]))
        assert np.array_equal(coco.annToMask(annotation) * (1 + t % 2), MASKS[t])
        assert annotation["bbox"] == [2 * t, 4, 16, 20]
        assert annotation["area"] == 320
        assert annotation["track_id"] == 1 + t % 2


def test_coco_of_no_object_is_still_a_file(tmp_path, clip) -> None:
    path, writer = output("coco", tmp_path, open_video(clip))
    writer.write(next(open_video(clip).frames()), np.zeros((48, 64), np.uint8))
    writer.close()
    assert json.loads(path.read_text())["annotations"] == []


def test_a_file_has_its_name_only_once_it_is_whole(tmp_path, clip) -> None:
    for kind in ("overlay", "webm", "coco"):
        path, writer = output(kind, tmp_path, open_video(clip))
        writer.write(next(open_video(clip).frames()), MASKS[0])
        assert not path.exists()
        writer.close()
        assert path.exists()


def test_damaged_sound_ends_and_the_video_goes_on(tmp_path, caplog, clip, monkeypatch) -> None:
    video = open_video(clip)
    path, writer = output("overlay", tmp_path, video)
    packets = writer._sound._packets

    def damaged():
        yield next(packets)
        raise av.error.InvalidDataError(1094995529, "damaged")

    monkeypatch.setattr(writer._sound, "_packets", damaged())
    write(writer, video)
    assert "its sound is damaged" in caplog.text
    assert len(list(open_video(path).frames())) == 6
    assert 0 < len(sound(path)) < len(sound(clip))


def test_odd_sizes_lose_a_row_and_a_column_in_an_overlay_alone(tmp_path) -> None:
    clip = write_clip_file(tmp_path / "a.mkv", [gradient(1, 33, 51)] * 2, "ffv1", "yuv444p")
    video = open_video(clip)
    frame, mask = next(video.frames()), np.ones((33, 51), np.uint8)
    for kind, size in (("overlay", (32, 50)), ("webm", (33, 51))):
        path, writer = output(kind, tmp_path, video)
        writer.write(frame, mask)
        writer.close()
        assert open_video(path).size == size


def test_writing_in_the_background_keeps_the_order_and_passes_errors_on(clip) -> None:
    class Recording:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def write(self, frame, mask) -> None:
            if frame.number == 3 and mask[0, 0]:
                raise OSError("no space")
            self.seen.append(frame.number)

        def close(self, *, complete: bool = True) -> None: ...

    frames = list(open_video(clip).frames())
    writers = [Recording(), Recording()]
    with Background(writers) as background:
        for frame in frames:
            background.write(frame, np.zeros((2, 2), np.uint8))
    assert [writer.seen for writer in writers] == [list(range(6))] * 2

    def fail() -> None:
        with Background([Recording()]) as background:
            for frame in frames:
                background.write(frame, np.ones((2, 2), np.uint8))

    with pytest.raises(OSError, match="no space"):
        fail()
