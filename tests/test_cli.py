import io
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import box, gradient, write_clip_file

import stma
from stma.cli import main
from stma.data.masks import read_mask
from stma.data.pictures import save_mask, save_picture
from stma.inference.segmenter import Segmenter
from stma.training.adapting import AdaptConfig
from stma.video.reading import open_video

SIZE = (48, 64)
FIRST = box(8, 8, 24, 24, size=SIZE)
LATE = box(4, 40, 20, 16, 7, size=SIZE)


@pytest.fixture
def clip(tmp_path, monkeypatch) -> Path:
    """A video of 8 frames in the current folder, beside masks of frames 0 and 3."""
    monkeypatch.chdir(tmp_path)
    save_mask(tmp_path / "first.png", FIRST)
    save_mask(tmp_path / "late.png", LATE)
    return write_clip_file(tmp_path / "clip.mp4", map(gradient, range(8)), sound=True)


@pytest.fixture
def segment(clip, weights):
    """Runs `stma segment clip.mp4` with arguments."""

    def run(*arguments: str) -> None:
        main(["segment", "clip.mp4", f"--weights={weights}", "--device=cpu", *arguments])

    return run


def masks(folder: str) -> list[np.ndarray]:
    return [read_mask(path)[0] for path in sorted(Path(folder, "masks").iterdir())]


def expected(weights: Path, given: dict[int, np.ndarray], **settings) -> list[np.ndarray]:
    """What the library gives, frame by frame."""
    model = stma.load_model(weights)
    segmenter = Segmenter(model, stma.SegmenterConfig(**settings) if settings else None)
    frames = list(open_video("clip.mp4").frames())
    return [segmenter.step(f.image, given.get(f.number)).mask for f in frames]


def same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return len(left) == len(right) and all(map(np.array_equal, left, right))


def test_a_video_becomes_masks_and_an_overlay(segment, weights, capsys) -> None:
    segment("--mask", "first.png")
    assert same(masks("clip-segmented"), expected(weights, {0: FIRST}))
    overlay = open_video("clip-segmented/overlay.mp4")
    assert len(list(overlay.frames())) == 8
    assert overlay.has_sound
    out, err = capsys.readouterr()
    assert "8 frames: clip-segmented/masks, clip-segmented/overlay.mp4" in out
    assert "8/8" in err
    assert sorted(os.listdir("clip-segmented")) == [
        ".lock",
        "masks",
        "overlay.mp4",
        "run.json",
        "scores.csv",
    ]
    objects = len(np.unique(FIRST)) - 1
    assert len(Path("clip-segmented/scores.csv").read_text().splitlines()) == 1 + 8 * objects


def test_masks_come_with_later_frames_and_settings_count(segment, weights) -> None:
    segment(
        "--mask=first.png", "--mask=3=late.png", "-o", "out", "--save=masks", "--memory-every=2"
    )
    assert same(masks("out"), expected(weights, {0: FIRST, 3: LATE}, memory_interval=2))
    assert not Path("out/overlay.mp4").exists()
    segment("--mask=first.png", "-o", "small", "--save=masks", "--short-side=32")
    assert same(masks("small"), expected(weights, {0: FIRST}, short_side=32))


@pytest.mark.parametrize("first", [0, 5])
def test_an_absent_object(segment, weights, first: int, capsys) -> None:
    segment(f"--mask={first}=first.png", "--absent=2=1", "--backward", "--save=masks", "-o", "out")
    written = masks("out")
    assert not written[2].any()
    segmenter = Segmenter(stma.load_model(weights))
    frames = [frame.image for frame in open_video("clip.mp4").frames()]
    for number in range(first, 5) if first == 0 else range(first, 0, -1):
        given = FIRST if number == first else None
        absent = {1} if number == 2 else set()
        result = segmenter.step(frames[number], given, absent=absent)
        assert np.array_equal(written[number], result.mask)


def test_an_object_that_cannot_be_absent(segment, capsys) -> None:
    for absent, told in {
        "9=1": "the video has no frame 9; its frames are 00000 to 00007",
        "2=x": "give FRAME=ID, such as 120=3",
        "2": "give FRAME=ID",
        "2=7": "no mask has given object 7 by then",
        "0=1": "no mask has given object 1 by then",
    }.items():
        with pytest.raises(SystemExit, match=f"--absent {absent}: {told}"):
            segment("--mask=first.png", "--mask=3=late.png", f"--absent={absent}")
    with pytest.raises(SystemExit, match=r"--absent 5=7: the object is in late\.png"):
        segment("--mask=first.png", "--mask=3=late.png", "--mask=5=late.png", "--absent=5=7")
    assert not Path("clip-segmented").exists()


def test_a_folder_of_masks_is_called_as_the_frames(segment, weights) -> None:
    Path("given").mkdir()
    save_mask(Path("given/2.png"), FIRST)
    save_mask(Path("given/00005.png"), LATE)
    segment("--mask=given", "--save=masks", "-o", "out")
    written = masks("out")
    assert not written[0].any()
    assert not written[1].any()
    assert same(written, expected(weights, {2: FIRST, 5: LATE}))


def test_backward_gives_the_frames_before_the_first_mask(segment, weights) -> None:
    segment("--mask=5=first.png", "--backward", "-o", "out")
    frames = list(open_video("clip.mp4").frames())
    segmenter = Segmenter(stma.load_model(weights))
    backward = [
        segmenter.step(frames[t].image, FIRST if t == 5 else None).mask for t in range(5, -1, -1)
    ]
    segmenter.reset()
    forward = [segmenter.step(frames[t].image, FIRST if t == 5 else None).mask for t in range(5, 8)]
    assert same(masks("out"), backward[:0:-1] + forward)
    assert len(list(open_video("out/overlay.mp4").frames())) == 8


def test_the_network_learns_from_the_masks_first(segment, monkeypatch) -> None:
    few = partial(AdaptConfig, iterations=3, clips=1, num_frames=2, size=48, blend=1.0)
    monkeypatch.setattr("stma.training.adapting.AdaptConfig", few)
    segment("--mask=first.png", "--save=masks", "-o", "plain")
    answers = iter([False, True])
    with monkeypatch.context() as context:
        context.setattr("stma.cli._interruptions", lambda: nullcontext(lambda: next(answers)))
        with pytest.raises(SystemExit):
            segment("--mask=first.png", "--adapt", "--save=masks", "-o", "out")
    assert not Path("out/adapted.safetensors").exists()
    segment("--mask=first.png", "--adapt", "--save=masks", "-o", "out")
    adapted = Path("out/adapted.safetensors")
    assert same(masks("out"), expected(adapted, {0: FIRST}))
    before = adapted.stat()
    shutil.rmtree("out/masks")
    segment("--mask=first.png", "--adapt", "--save=masks", "-o", "out")  # and no learning again
    assert adapted.stat().st_mtime_ns == before.st_mtime_ns
    assert len(masks("out")) == len(masks("plain"))


def test_every_kind_of_output_is_written(segment) -> None:
    segment("--mask=first.png", "--save=cutout,webm,coco,overlay", "-o", "out")
    assert len(list(Path("out/cutout").iterdir())) == 8
    for name in ("cutout.webm", "overlay.mp4", "masks.json"):
        assert Path("out", name).stat().st_size > 0


def test_pictures_are_segmented_too(clip, weights) -> None:
    Path("frames").mkdir()
    for number in range(3):
        save_picture(Path(f"frames/{number + 1}.jpg"), gradient(number))
    arguments = ["--mask=first.png", "--mask=3=late.png", f"--weights={weights}", "--device=cpu"]
    main(["segment", "frames", *arguments])
    assert sorted(os.listdir("frames-segmented/masks")) == ["1.png", "2.png", "3.png"]
    assert len(list(open_video("frames-segmented/overlay.mp4").frames())) == 3


def test_an_output_below_the_folder_of_pictures_goes_on(clip, weights, monkeypatch) -> None:
    Path("frames").mkdir()
    for number in range(3):
        save_picture(Path(f"frames/{number}.png"), gradient(number))
    command = ["segment", "frames", "--mask=first.png", f"--weights={weights}", "-o", "frames/out"]
    main(command)
    monkeypatch.setattr(Segmenter, "step", None)
    main(command)


class Stop:
    """Presses Ctrl-C when a number of frames has been segmented."""

    def __init__(self, monkeypatch, after: int) -> None:
        self.left = after
        step = Segmenter.step

        def counting(segmenter, *arguments, **keywords):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), 2)
            return step(segmenter, *arguments, **keywords)

        monkeypatch.setattr(Segmenter, "step", counting)


@pytest.mark.parametrize("backward", [False, True])
def test_interrupted_the_same_command_goes_on(segment, monkeypatch, capsys, backward) -> None:
    arguments = ["--mask=4=first.png", "--mask=6=late.png", *(["--backward"] if backward else [])]
    arguments += ["--memory-every=2"]
    segment(*arguments, "-o", "whole")
    total = 9 if backward else 4
    for after in (2, 1):
        stop = Stop(monkeypatch, after)
        with pytest.raises(SystemExit) as left:
            segment(*arguments, "-o", "out")
        assert left.value.code == 130
        if not backward:  # what is done can be looked at
            assert len(list(open_video("out/overlay.mp4").frames())) == len(masks("out"))
        assert "run the same command" in capsys.readouterr().err
        total -= after
        assert stop.left == 0
    counter = Stop(monkeypatch, 10**6)
    segment(*arguments, "-o", "out")
    assert 10**6 - counter.left == total  # nothing is segmented twice
    assert same(masks("out"), masks("whole"))
    assert Path("out/scores.csv").read_text() == Path("whole/scores.csv").read_text()
    assert len(list(open_video("out/overlay.mp4").frames())) == 8
    assert not list(Path("out").glob("*.safetensors"))


def test_killed_at_any_moment_it_goes_on_from_the_last_state(segment, monkeypatch) -> None:
    segment("--mask=first.png", "-o", "whole")
    monkeypatch.setattr("stma.video.segmenting.SAVE_EVERY", 0.0)
    step = Segmenter.step

    def dying(segmenter, *arguments, **keywords):
        if segmenter.num_frames == 5:
            raise RuntimeError("killed")
        return step(segmenter, *arguments, **keywords)

    monkeypatch.setattr(Segmenter, "step", dying)
    with pytest.raises(RuntimeError):
        segment("--mask=first.png", "-o", "out")
    monkeypatch.setattr(Segmenter, "step", step)
    counter = Stop(monkeypatch, 10**6)
    segment("--mask=first.png", "-o", "out")
    assert 10**6 - counter.left == 3
    assert same(masks("out"), masks("whole"))


def test_done_it_only_makes_what_is_missing(segment, monkeypatch) -> None:
    segment("--mask=first.png", "-o", "out", "--save=masks")
    monkeypatch.setattr(Segmenter, "step", None)
    segment("--mask=first.png", "-o", "out", "--save=masks")
    segment("--mask=first.png", "-o", "out", "--save=coco,overlay")
    assert len(list(open_video("out/overlay.mp4").frames())) == 8
    assert Path("out/masks.json").exists()


def test_masks_that_are_gone_are_made_again(segment, monkeypatch, capsys) -> None:
    """After the end with none or some of them left, and in the middle, with any outputs."""
    first = ("--mask=3=first.png", "--backward")
    segment(*first, "-o", "whole", "--save=masks")
    whole = masks("whole")
    segment(*first, "-o", "out", "--save=masks")
    shutil.rmtree("out/masks")
    segment(*first, "-o", "out", "--save=masks")
    assert same(masks("out"), whole)
    Path("out/masks/00001.png").unlink()
    Path("out/masks/00007.png").write_bytes(b"")
    capsys.readouterr()
    segment(*first, "-o", "out")
    assert "8 frames" in capsys.readouterr().out
    assert same(masks("out"), whole)
    Stop(monkeypatch, 6)  # two of those after the first mask
    with pytest.raises(SystemExit):
        segment(*first, "-o", "half")
    Path("half/masks/00000.png").unlink()
    segment(*first, "-o", "half", "--save=masks,coco")
    assert same(masks("half"), whole)


def changed(content: bytes) -> bytes:
    """With another byte near the end, among the tensors."""
    return content[:-9] + bytes([content[-9] ^ 0x40]) + content[-8:]


# In the frames before the first mask, and after it.
@pytest.mark.parametrize(("after", "damage"), [(2, lambda content: b""), (6, changed)])
def test_a_damaged_state_costs_time_alone(segment, monkeypatch, caplog, after, damage) -> None:
    first = ("--mask=3=first.png", "--backward", "--save=masks")
    segment(*first, "-o", "whole")
    Stop(monkeypatch, after)
    with pytest.raises(SystemExit):
        segment(*first, "-o", "out")
    (state,) = Path("out").glob("*.safetensors")
    state.write_bytes(damage(state.read_bytes()))
    segment(*first, "-o", "out")
    assert f"{state}: " in caplog.text
    assert same(masks("out"), masks("whole"))
    assert not list(Path("out").glob("*.safetensors"))


def test_a_damaged_mask_is_named_and_can_be_deleted(segment, capsys) -> None:
    first = ("--mask=first.png", "-o", "out")
    segment(*first, "--save=masks")
    whole = masks("out")
    mask = Path("out/masks/00004.png")
    mask.write_bytes(mask.read_bytes()[:40])
    assert "out/masks/00004.png: cannot be read" in refused(segment, capsys, *first)
    mask.unlink()
    segment(*first)
    assert same(masks("out"), whole)


def test_a_damaged_record_is_refused_or_started_over(segment, capsys) -> None:
    first = ("--mask=first.png", "-o", "out", "--save=masks")
    segment(*first)
    Path("out/run.json").write_text("[]")
    assert "out/run.json: damaged" in refused(segment, capsys, *first)
    segment(*first, "--overwrite")
    assert len(masks("out")) == 8


def refused(run, capsys, *arguments: str) -> str:
    """The one line with which the command ends."""
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    message = str(caught.value.code)
    if caught.value.code == 2:  # argparse's
        message = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in message
    assert "\n" not in message
    return message


def test_bad_masks_are_refused_before_anything_is_written(segment, capsys) -> None:
    save_mask(Path("small.png"), FIRST[:40])
    save_picture(Path("rgb.png"), gradient(1))
    save_mask(Path("empty.png"), FIRST * 0)
    Path("nothing").mkdir()
    Path("odd").mkdir()
    save_mask(Path("odd/first.png"), FIRST)
    for given, message in {
        "small.png": "small.png: 64 x 40 pixels, the video 64 x 48",
        "rgb.png": "rgb.png: the mask is RGB",
        "empty.png": "empty.png: the mask holds no object",
        "8=late.png": "late.png: the video has no frame 8; its frames are 00000 to 00007",
        "none.png": "none.png: no such mask",
        "nothing": "nothing: the folder holds no PNG",
        "odd": "odd/first.png: the video has no frame first",
    }.items():
        assert message in refused(segment, capsys, f"--mask={given}")
    told = refused(segment, capsys, "--mask=first.png", "--mask=00000=late.png")
    assert "two masks for frame 00000: first.png and late.png" in told
    assert not Path("clip-segmented").exists()


def test_a_mask_one_pixel_off_is_resized(segment, caplog) -> None:
    save_mask(Path("odd.png"), np.pad(FIRST, ((0, 1), (0, 1))))
    segment("--mask=odd.png", "-o", "out", "--save=masks")
    assert masks("out")[0].shape == SIZE
    assert caplog.text.count("odd.png: 65 x 49 pixels, one off its video; resized") == 1


def test_bad_settings_are_refused(segment, capsys, weights) -> None:
    first = "--mask=first.png"
    assert "--mask FIRST.png; `stma app clip.mp4`" in refused(segment, capsys)
    assert "no 'gif'; choose from masks, overlay" in refused(segment, capsys, first, "--save=gif")
    told = refused(segment, capsys, first, "--short-side=3")
    assert "--short-side 3: give 16 or more, or 0" in told
    assert "memory_interval is 0" in refused(segment, capsys, first, "--memory-every=0")
    assert "'many' is not a whole number" in refused(segment, capsys, first, "--memory-every=many")
    assert "none: no such weights file" in refused(segment, capsys, first, "--weights=none")
    assert "device is 'tpu'" in refused(segment, capsys, first, "--device=tpu", "-o", "out")


def test_bad_outputs_are_refused_and_nothing_is_lost(segment, capsys, clip) -> None:
    first = "--mask=first.png"
    assert "the folder of the video itself" in refused(segment, capsys, first, "-o", ".")
    Path("file").touch()
    assert "file: exists and is a file" in refused(segment, capsys, first, "-o", "file")
    Path("odd").mkdir()
    Path("odd/masks").touch()
    assert "masks" in refused(segment, capsys, first, "-o", "odd", "--overwrite")
    Path("full").mkdir()
    Path("full/thesis.txt").touch()
    for more in ([], ["--overwrite"]):
        told = refused(segment, capsys, first, "-o", "full", *more)
        assert "full: the folder holds other files (thesis.txt)" in told
    segment(first, "-o", "out", "--save=masks")
    before = masks("out")
    told = refused(segment, capsys, "--mask=late.png", "--short-side=32", "-o", "out")
    assert "out holds another run's result (masks.0: " in told
    assert "settings.short_side: None there, 32 here" in told
    assert same(masks("out"), before)
    told = refused(segment, capsys, "--mask=out/masks/00000.png", "-o", "out")
    assert "out/masks/00000.png: the mask is in the output" in told
    segment("--mask=2=late.png", "-o", "out", "--save=masks", "--overwrite")
    assert not same(masks("out"), before)


def test_what_failed_at_once_is_in_nobodys_way(segment, capsys) -> None:
    refused(segment, capsys, "--mask=first.png", "--device=tpu", "-o", "out")
    assert "%" not in capsys.readouterr().err  # no progress above the error
    segment("--mask=late.png", "-o", "out", "--save=masks")
    assert len(masks("out")) == 8


def test_two_runs_into_one_output(segment, capsys) -> None:
    from stma.runtime.outputs import holding

    with holding(Path("out")):
        told = refused(segment, capsys, "--mask=first.png", "-o", "out")
    assert "out is in use by a live run" in told


def test_a_full_disk_is_told_and_the_same_command_goes_on(segment, capsys, monkeypatch) -> None:
    import errno

    from stma.video import writing

    def full(path, *arguments) -> None:
        if path.name == "00003.png":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save_mask(path, *arguments)

    monkeypatch.setattr(writing, "save_mask", full)
    told = refused(segment, capsys, "--mask=first.png", "-o", "out")
    assert "out/masks/00003.png: cannot be written (No space left on device); make room" in told
    monkeypatch.setattr(writing, "save_mask", save_mask)
    segment("--mask=first.png", "-o", "out")
    assert len(masks("out")) == 8


def test_a_damaged_video_keeps_what_is_before(segment, capsys, clip, monkeypatch) -> None:
    from stma.errors import InputError
    from stma.video.reading import VideoFile

    frames = VideoFile.frames

    def damaged(video):
        for frame in frames(video):
            if frame.number == 5:
                raise InputError("clip.mp4: damaged")
            yield frame

    monkeypatch.setattr(VideoFile, "frames", damaged)
    assert "clip.mp4: damaged" in refused(segment, capsys, "--mask=first.png", "-o", "out")
    assert len(masks("out")) == 5
    monkeypatch.undo()
    assert len(list(open_video(clip.parent / "out/overlay.mp4").frames())) == 5


def test_a_video_that_ends_before_a_mask(segment, capsys, monkeypatch) -> None:
    from stma.video.reading import VideoFile

    monkeypatch.setattr(VideoFile, "__len__", lambda video: 100)
    told = refused(segment, capsys, "--mask=first.png", "--mask=50=late.png", "-o", "out")
    assert "late.png: the video has no frame 50; it ended after 8 frames" in told
    assert len(masks("out")) == 8


def test_a_part_of_a_video(segment, weights) -> None:
    """Its masks and its overlay are those of the frames by themselves, under their own names."""
    segment("--mask=2=first.png", "--start=2", "--end=6", "--step=2", "-o", "out")
    assert sorted(os.listdir("out/masks")) == ["00002.png", "00004.png", "00006.png"]
    segmenter = Segmenter(stma.load_model(weights))
    frames = [frame.image for frame in open_video("clip.mp4").frames()][2:7:2]
    wanted = [segmenter.step(f, FIRST if n == 0 else None).mask for n, f in enumerate(frames)]
    assert same(masks("out"), wanted)
    overlay = list(open_video("out/overlay.mp4").frames())
    assert [frame.pts * open_video("out/overlay.mp4").time_base for frame in overlay] == [
        0,
        Fraction(2, 25),
        Fraction(4, 25),
    ]


def test_no_such_part(segment, capsys) -> None:
    told = refused(segment, capsys, "--mask=first.png", "--start=9")
    assert "--start 9: the video has no frame 9; its frames are 00000 to 00007" in told
    told = refused(segment, capsys, "--mask=3=first.png", "--start=2", "--step=2")
    assert "first.png: the video has no frame 3; its frames are 00002 to 00006" in told
    assert "00005 to 00003" in refused(segment, capsys, "--mask=f.png", "--start=5", "--end=3")
    assert "the step is 0" in refused(segment, capsys, "--mask=first.png", "--step=0")


def test_several_videos_in_one_command(clip, weights, capsys) -> None:
    shutil.copy("clip.mp4", "other.mp4")
    Path("given/other").mkdir(parents=True)
    save_mask(Path("given/clip.png"), FIRST)
    save_mask(Path("given/other/3.png"), LATE)
    command = ["segment", "clip.mp4", "other.mp4", f"--weights={weights}", "--save=masks"]
    main([*command, "--masks=given", "-o", "out"])
    assert same(masks("out/clip"), expected(weights, {0: FIRST}))
    assert same(masks("out/other"), expected(weights, {3: LATE}))
    run = lambda *more: main([*command, *more])  # noqa: E731
    assert "--mask is of one video" in refused(run, capsys, "--mask=first.png")
    Path("given/other/3.png").unlink()
    Path("given/other").rmdir()
    assert "given: holds no other.png" in refused(run, capsys, "--masks=given", "-o", "new")
    assert not Path("new").exists()  # all are checked before the first begins
    again = lambda *more: main(["segment", "clip.mp4", "./clip.mp4", *more])  # noqa: E731
    assert "output of two videos" in refused(again, capsys, "--masks=given")


def test_paths_that_no_video_can_have(clip, capsys) -> None:
    os.symlink("loop", "loop")
    for video, message in {
        "rtsp://camera:554/stream": "rtsp://camera:554/stream: not a video file",
        "/dev/null": "/dev/null: not a video file",
        "loop": "loop: Too many levels of symbolic links",
        "x" * 300: "x: File name too long",
        "caf\udce9.mp4": r"caf\udce9.mp4': the name is not UTF-8",
        "first.png": "first.png: a single picture",
    }.items():
        told = refused(lambda video=video: main(["segment", video, "--mask=first.png"]), capsys)
        assert message in told


@pytest.mark.parametrize("option", ["-o", "--mask", "--weights", "--masks"])
def test_paths_that_no_other_file_can_have(segment, capsys, option: str) -> None:
    os.symlink("loop", "loop")
    given = [] if option in ("--mask", "--masks") else ["--mask=first.png"]
    for value, message in {
        "loop": "symbolic links",
        "x" * 300: "too long",
        "caf\udce9": "not UTF-8",
        "first.png/x": "first.png",
    }.items():
        assert message in refused(segment, capsys, *given, option, value)


def test_names_with_a_colon(clip, weights) -> None:
    for name in ("a:b.mp4", "concat:x.mp4"):
        shutil.copy("clip.mp4", name)
        main(["segment", name, "--mask=first.png", f"--weights={weights}", "--end=1"])
        overlay = Path(f"{Path(name).stem}-segmented/overlay.mp4")
        assert len(list(open_video(overlay).frames())) == 2


def test_a_name_need_not_fit_the_terminal(clip, weights, monkeypatch) -> None:
    shutil.copy("clip.mp4", "größe.mp4")
    command = ["segment", "größe.mp4", "--mask=first.png", f"--weights={weights}"]
    terminal = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, "ascii", write_through=True))
    main([*command, "--save=masks"])
    assert b"8 frames" in terminal.getvalue()


def test_a_lack_of_memory_is_one_line(segment, capsys, monkeypatch) -> None:
    def step(*_, **__) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Segmenter, "step", step)
    assert "--short-side" in refused(segment, capsys, "--mask=first.png")


@pytest.mark.parametrize("port", ["0", "99999", "-1", "x"])
def test_no_port(port: str, capsys) -> None:
    assert port in refused(lambda: main(["app", f"--port={port}"]), capsys)


def test_the_program_starts_without_torch() -> None:
    code = (
        "import sys, runpy; sys.argv = ['stma', 'segment', '--help']\n"
        "try: runpy.run_module('stma', run_name='__main__')\n"
        "except SystemExit: print(sorted({'torch', 'av', 'numpy', 'cv2', 'PIL'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "usage: stma segment" in done.stdout


def test_the_first_mask_waits_for_no_library_without_need() -> None:
    """timm imports torchvision, and that PyTorch's compiler: more than all the rest together."""
    code = (
        "import sys, stma.video.segmenting, stma.inference.segmenter, stma.model.weights\n"
        "print(sorted({'timm', 'torchvision', 'torch._dynamo', 'hydra', 'scipy'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
