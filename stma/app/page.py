"""The page of `stma app`: a thin layer of Gradio over :class:`stma.app.session.Session`."""

import base64
import io
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from starlette.middleware import Middleware

from stma.app.guard import Guard
from stma.app.session import Limits, Session
from stma.data.pictures import bright_palette
from stma.errors import InputError
from stma.model.stma import STMA
from stma.model.weights import load_model
from stma.runtime.device import resolve_device
from stma.runtime.opencv import cv2
from stma.video.reading import open_video

OBJECTS = 8  # colours to draw with
COLOUR_NAMES = ("red", "green", "yellow", "blue", "magenta", "cyan", "white", "dark red")
SHOWN_EVERY = 0.1  # seconds; a GPU is faster than a browser
SHOWN = 7  # components that show a video
TEXT = 3  # among them, the line about its state
STALE = 24 * 3600  # seconds after which a downloaded file is deleted

DOWNLOAD_NAMES = {
    "Masks (PNGs, zipped)": "masks",
    "Overlay (MP4, with sound)": "overlay",
    "Cut-out (WebM with alpha)": "webm",
    "Cut-out (PNGs with alpha, zipped)": "cutout",
    "Run lengths (COCO's JSON)": "coco",
}
HOW_TO = (
    "**1** Open a video. **2** Draw every object in its own colour, on any frame. "
    "**3** Press *Segment*. **4** If a mask is wrong, stop, correct it, and press *Segment* "
    "again: it continues from there."
)
CSS = Path(__file__).with_name("canvas.css").read_text()
JS = Path(__file__).with_name("canvas.js").read_text()


def canvas_html() -> str:
    """Tools and the canvas."""
    palette = bright_palette()
    swatches = "".join(
        f'<button data-object="{i}" title="object {i}" class="swatch{" chosen" * (i == 1)}" '
        f'style="--colour: rgb({",".join(map(str, palette[i]))})">{i}</button>'
        for i in range(1, OBJECTS + 1)
    )
    return f"""
<div class="stma-canvas locked">
  <div class="tools">
    <span>Object</span>{swatches}
    <button data-tool="brush" class="chosen" title="paint">Brush</button>
    <button data-tool="eraser" title="remove paint">Eraser</button>
    <button data-tool="polygon" title="click its corners, the first again to end">Polygon</button>
    <label>Size <input type="range" min="1" max="60" value="12"></label>
    <button data-action="undo" title="undo the last stroke or corner">Undo</button>
    <button data-action="clear" title="clear this frame">Clear</button>
  </div>
  <canvas width="854" height="480"></canvas>
</div>"""


def picture_url(frame: np.ndarray) -> str:
    """A frame as the browser reads it: a JPEG in the page."""
    encoded = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def mask_url(mask: np.ndarray) -> str:
    """A mask as the canvas reads it: a PNG whose grey value is the ID."""
    encoded = cv2.imencode(".png", mask)[1]
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode()


def mask_of(url: str) -> np.ndarray:
    """A mask as the canvas writes it: a PNG whose red value is the ID."""
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    return np.asarray(image)[..., 0].copy()


def canvas_value(session: Session, number: int, locked: bool = False) -> dict[str, Any]:
    """What the canvas shows."""
    height, width = session.video.size
    return {
        "number": number,
        "aspect": float(session.video.pixel_aspect * width / height),
        "frame": picture_url(session.frame(number)),
        "mask": mask_url(session.mask(number)),
        "locked": locked,
    }


def take(session: Session | None, canvas: dict[str, Any] | None) -> None:
    """Pass new drawings to the session."""
    if session is not None and canvas is not None and canvas.get("edited"):
        session.draw(canvas["number"], mask_of(canvas["mask"]))


@contextmanager
def told() -> Iterator[None]:
    """Show an :class:`InputError` on the page."""
    try:
        yield
    except InputError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error


def status(session: Session | None) -> str:
    """A line about the state and what to do next."""
    if session is None:
        return "No video is open."
    line = f"**{session.video.path.name}**, {session.num_frames} frames. "
    if not session.ids:
        return line + "Nothing is drawn yet."
    drawn = session.drawn_frames
    line += f"Drawn on frame{'s' * (len(drawn) > 1)} {', '.join(map(str, drawn))}. "
    if session.done >= session.num_frames:
        return line + "All frames are segmented."
    if session.done:
        return line + f"Segmented up to frame {session.done - 1}; *Segment* continues."
    return line + "Press *Segment*."


def object_choices(session: Session | None) -> Any:
    """The objects that can be removed."""
    ids = [] if session is None else session.ids
    choices = [(f"object {i}, {COLOUR_NAMES[i - 1]}", i) for i in ids]
    return gr.Dropdown(choices=choices, value=ids[-1] if ids else None)


def no_file() -> Any:
    """Takes away a file that was prepared before something changed."""
    return gr.File(value=None, visible="hidden")


class Page:
    """Event handlers, and what all tabs share.

    Args:
        model: in evaluation mode; tabs take turns using it, a frame each.
        folder: for the sessions' files.
        video: opened in every tab at the start; None starts empty.
    """

    def __init__(
        self, model: STMA, folder: Path, limits: Limits | None = None, video: Path | None = None
    ) -> None:
        self.model, self.folder, self.limits, self.video = model, folder, limits, video
        self.turn = threading.Lock()
        self.sessions: dict[str | None, Session] = {}  # by Gradio's name of the tab

    def blocks(self) -> gr.Blocks:
        """The page."""
        with gr.Blocks(
            title="stma",
            analytics_enabled=False,
            delete_cache=(STALE, STALE),
            fill_width=True,
        ) as blocks:
            session = gr.State(None)  # of the tab
            gr.Markdown("## Video object segmentation\n" + HOW_TO)
            with gr.Row():
                with gr.Column(scale=4):
                    canvas = gr.HTML(
                        None,
                        html_template=canvas_html(),
                        css_template=CSS,
                        js_on_load=JS,
                        colours=bright_palette().tolist(),
                        elem_id="canvas",
                    )
                    with gr.Row():
                        back = gr.Button("◀", min_width=40, scale=0, elem_id="back")
                        slider = gr.Slider(
                            0, 1, 0, step=1, label="Frame", interactive=False, elem_id="frame"
                        )
                        forth = gr.Button("▶", min_width=40, scale=0, elem_id="forth")
                with gr.Column(scale=1, min_width=260):
                    upload = gr.File(label="Open a video", height=140, elem_id="upload")
                    text = gr.Markdown(status(None), elem_id="status")
                    with gr.Row():
                        start = gr.Button(
                            "Segment", variant="primary", interactive=False, elem_id="segment"
                        )
                        stop = gr.Button(
                            "Stop", variant="stop", interactive=False, elem_id="stop", min_width=80
                        )
                    with gr.Group():
                        chosen = gr.Dropdown([], label="Objects", elem_id="objects")
                        remove = gr.Button("Remove this object", size="sm", elem_id="remove")
                    kind = gr.Dropdown(
                        list(DOWNLOAD_NAMES.items()),
                        label="Download",
                        value="masks",
                        elem_id="kind",
                    )
                    prepare = gr.Button("Prepare the file", elem_id="prepare")
                    file = gr.File(
                        label="File",
                        interactive=False,
                        height=90,
                        elem_id="file",
                        visible="hidden",
                    )

            shown = [session, canvas, slider, text, chosen, start, file]
            quiet: dict[str, Any] = {"show_progress": "hidden"}
            upload.upload(self.open, upload, [*shown, upload])
            if self.video is not None:
                blocks.load(self.open_given, None, shown)
            slider.input(
                self.go,
                [session, canvas, slider],
                [canvas, text],
                trigger_mode="always_last",
                **quiet,
            )
            for button, step in ((back, -1), (forth, 1)):
                button.click(
                    partial(self.step, step),
                    [session, canvas, slider],
                    [canvas, text, slider],
                    **quiet,
                )
            canvas.input(self.drawn, [session, canvas], [text, chosen, file], **quiet)
            start.click(
                self.run,
                [session, canvas],
                [canvas, slider, text, chosen, start, stop, remove, back, forth, file],
                concurrency_limit=None,
                **quiet,
            )
            stop.click(lambda session: session and session.stop(), session, None, queue=False)
            remove.click(
                self.remove,
                [session, canvas, slider, chosen],
                [canvas, text, chosen, file],
                **quiet,
            )
            prepare.click(self.write, [session, kind], file)
            blocks.unload(self.leave)
        return blocks

    def open(self, path: str | None, request: gr.Request) -> list[Any]:
        """Make an uploaded file the tab's video; the previous one is closed."""
        assert path is not None
        try:
            new = Session(Path(path), self.model, self.folder, self.limits, owned=True)
        except InputError as error:
            # Not a Gradio error: it would leave the file there, and no room for another.
            shown = [gr.skip()] * SHOWN
            before = status(self.sessions.get(request.session_hash))
            shown[TEXT] = f"**Not opened:** {error}\n\n{before}"
            return [*shown, None]
        return [*self._opened(new, request), None]

    def open_given(self, request: gr.Request) -> list[Any]:
        """Open the video named on the command line."""
        assert self.video is not None
        with told():
            session = Session(self.video, self.model, self.folder, self.limits)
            return self._opened(session, request)

    def leave(self, request: gr.Request) -> None:
        """Called when the tab is closed or reloads the page."""
        if (session := self.sessions.pop(request.session_hash, None)) is not None:
            session.close()

    def _opened(self, session: Session, request: gr.Request) -> list[Any]:
        self.leave(request)  # what it had open before
        self.sessions[request.session_hash] = session
        return [
            session,
            canvas_value(session, 0),
            gr.Slider(maximum=max(1, session.num_frames - 1), value=0, interactive=True),
            status(session),
            object_choices(session),
            gr.Button(interactive=True),
            no_file(),
        ]

    def go(self, session: Session | None, canvas: Any, number: int) -> list[Any]:
        """Show another frame."""
        take(session, canvas)
        if session is None:
            return [gr.skip(), gr.skip()]
        with told():
            return [canvas_value(session, number), status(session)]

    def step(self, by: int, session: Session | None, canvas: Any, number: int) -> list[Any]:
        """Show the previous or the next frame."""
        last = 0 if session is None else session.num_frames - 1
        number = min(max(0, number + by), last)
        return [*self.go(session, canvas, number), number]

    def drawn(self, session: Session | None, canvas: Any) -> list[Any]:
        """Take a finished stroke."""
        take(session, canvas)
        return [status(session), object_choices(session), no_file()]

    def run(self, session: Session | None, canvas: Any) -> Iterator[list[Any]]:
        """Segment, and show masks as they appear."""
        if session is None:
            raise gr.Error("Open a video first.", print_exception=False)
        take(session, canvas)
        free, busy = gr.Button(interactive=True), gr.Button(interactive=False)
        number = canvas["number"]
        start = shown = time.monotonic()
        count = 0
        problem = ""
        run = session.run()
        while True:
            try:
                with self.turn:
                    following = next(run, None)
            except InputError as error:
                name = session.video.path.name  # without the folder, which is ours
                problem = str(error).replace(str(session.video.path), name)
                problem = f"**Not segmented:** {problem}\n\n"
                break
            if following is None:
                break
            number, count = following, count + 1
            now = time.monotonic()
            if count > 1 and now - shown < SHOWN_EVERY:
                continue
            shown = now
            rate = count / (now - start)
            left = (session.num_frames - number - 1) / rate
            line = f"Frame {number} of {session.num_frames - 1}: {rate:.1f} frames/s, "
            yield [
                canvas_value(session, number, locked=True),
                gr.Slider(value=number, interactive=False),
                line + f"{left:.0f} s left.",
                gr.skip(),
                busy,
                free,
                busy,
                busy,
                busy,
                no_file() if count == 1 else gr.skip(),
            ]
        if session.closed:  # the tab has another video now
            return
        yield [
            canvas_value(session, number),
            gr.Slider(value=number, maximum=max(1, session.num_frames - 1), interactive=True),
            problem + status(session),
            object_choices(session),
            free,
            busy,
            free,
            free,
            free,
            gr.skip(),
        ]

    def remove(
        self, session: Session | None, canvas: Any, number: int, chosen: int | None
    ) -> list[Any]:
        """Remove an object."""
        take(session, canvas)
        if session is None or chosen is None:
            raise gr.Error("There is no object to remove.", print_exception=False)
        with told():
            session.remove(chosen)
            return [
                canvas_value(session, number),
                status(session),
                object_choices(session),
                no_file(),
            ]

    def write(self, session: Session | None, kind: str) -> Any:
        """Make the file to download."""
        if session is None:
            raise gr.Error("Open a video first.", print_exception=False)
        with told():
            return gr.File(value=str(session.write(kind)), visible=True)


@contextmanager
def serving(
    model: STMA,
    host: str = "127.0.0.1",
    port: int | None = None,
    limits: Limits | None = None,
    video: Path | None = None,
    browser: bool = False,
) -> Iterator[str]:
    """Serve the page and yield its address. At the end, all files of all tabs are deleted.

    Args:
        port: None takes the first free one from 7860 on.
        video: opened in every tab.
        browser: open one.

    Raises:
        InputError: the port or the host is not available.
    """
    limits = limits or Limits()
    folder = Path(tempfile.mkdtemp(prefix="stma-app-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    blocks = Page(model, folder, limits, video).blocks()
    try:
        try:
            _, url, _ = blocks.queue(default_concurrency_limit=None).launch(
                server_name=host,
                server_port=port,
                max_file_size=f"{limits.megabytes}mb",
                inbrowser=browser,
                prevent_thread_lock=True,
                quiet=True,
                footer_links=[],
                share=False,
                app_kwargs={"middleware": [Middleware(Guard, host=host)]},
            )
        except OSError as error:
            raise InputError(
                f"the page cannot be served at {host}:{port or 'any port'} ({error}); give another "
                "--host or --port"
            ) from error
        yield url
    finally:
        blocks.close(verbose=False)
        shutil.rmtree(folder, ignore_errors=True)


def serve(weights: str, device: str, video: Path | None, **keywords: Any) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        weights: see :func:`stma.model.weights.load_model`.
        device: see :func:`stma.runtime.device.resolve_device`.
        video, keywords: see :func:`serving`.
    """
    if video is not None:
        open_video(video)  # refused here rather than on the page
    model = load_model(weights, resolve_device(device))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with serving(model, video=video, **keywords) as url:
        print(f"The page is at {url} (Ctrl-C ends it and deletes its files).", flush=True)  # noqa: T201
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
