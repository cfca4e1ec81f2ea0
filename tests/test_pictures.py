import av
import numpy as np
from PIL import Image

from stma.data.pictures import contact_sheet, davis_palette, draw_overlay, save_mask, write_video


def test_the_palette_is_that_of_davis() -> None:
    """The first colours of PASCAL VOC's map, as published."""
    expected = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert davis_palette()[:5].tolist() == expected
    assert davis_palette()[255].tolist() == [224, 224, 192]


def test_a_mask_is_written_as_one_channel_of_indices(tmp_path) -> None:
    mask = np.array([[0, 1], [44, 255]], np.uint8)
    save_mask(tmp_path / "m.png", mask)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), mask)
        assert image.getpalette()[3:6] == [128, 0, 0]


def test_an_overlay_tints_objects_and_leaves_the_background() -> None:
    frame = np.full((20, 20, 3), 100, np.uint8)
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 1
    drawn = draw_overlay(frame, mask)
    assert drawn[0, 0].tolist() == [100, 100, 100]
    assert drawn[10, 10].tolist() == [178, 50, 50]
    assert drawn[5, 10].tolist() == [255, 255, 255]


def test_an_overlay_reaches_the_border_and_may_be_empty() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(draw_overlay(frame, np.zeros((20, 30), np.uint8)), frame)
    mask = np.zeros((20, 30), np.uint8)
    mask[:10, 20:] = 2
    drawn = draw_overlay(frame, mask)
    changed = (drawn != frame).any(axis=2)
    assert changed[:11, 19:].mean() > 0.95
    assert not changed[11:].any()
    assert not changed[:, :19].any()
    assert (drawn[10, 19:] == 255).all()
    assert not (drawn[0, 22:] == 255).all()


def test_an_overlay_leaves_its_frame_as_it_is() -> None:
    frame = np.full((20, 30, 3), 7, np.uint8)
    frame.flags.writeable = False
    assert (draw_overlay(frame, np.ones((20, 30), np.uint8)) != frame).any()
    assert (frame == 7).all()


def test_a_sheet_holds_every_row_under_its_title() -> None:
    pictures = [np.zeros((40, 80, 3), np.uint8)] * 3
    sheet = contact_sheet([("one", pictures), ("two", pictures[:1])], height=20)
    assert sheet.shape == (2 * (22 + 20 + 2), 3 * (40 + 2), 3)
    assert (sheet[44 + 22 :, 40:] == 255).all()


def test_a_video_has_all_frames_and_an_even_size(tmp_path) -> None:
    frames = [np.full((33, 51, 3), 20 * t, np.uint8) for t in range(6)]
    write_video(tmp_path / "v.mp4", iter(frames))
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) == 6
    assert decoded[0].shape == (32, 50, 3)
    assert abs(int(decoded[5].mean()) - 100) < 6
