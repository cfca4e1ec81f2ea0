"""The page of `stma app`: a small web server over :class:`stma.app.session.Session`.

All tabs show the same videos. What they ask for is in :meth:`Page.app`; they ask for changes again
and again, so that nothing breaks when one sleeps.
"""

import io
import itertools
import json
import logging
import shutil
import signal
import socket
import tempfile
import threading
import time
import webbrowser
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from stma.app.guard import EVERYWHERE, Guard
from stma.app.prompts import (
    Prompt,
    PromptedFrame,
    PromptEngine,
    Stroke,
    is_installed,
    load_engine,
    place,
)
from stma.app.session import DOWNLOADS, RECORD, Limits, Session
from stma.data.pictures import bright_palette, save_mask
from stma.errors import InputError
from stma.model.stma import STMA
from stma.model.weights import load_model
from stma.runtime.device import resolve_device
from stma.runtime.opencv import cv2
from stma.runtime.outputs import LOCK, full_disks_told, holding
from stma.video.reading import open_video

PORTS = range(7860, 7960)
LOOKED_AT = 6  # frames whose features are kept
MASK_MEGABYTES = 64  # of a file with masks
TEMPORARY = "stma-app-"
FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
UNCHANGED, PAINTED = 0, 255  # alpha of a change's pixels

log = logging.getLogger(__name__)


class Job:
    """Something that takes long, in its own thread.

    Args:
        work: called with the job, whose ``done`` and ``total`` it counts.

    Attributes:
        problem: that ended it, or None.
        result: of the work, once it has ended well.
    """

    def __init__(self, number: int, total: int, work: Callable[["Job"], Any]) -> None:
        self.number, self.total = number, total
        self.done, self.frame = 0, -1
        self.problem: str | None = None
        self.result: Any = None
        self._start = time.monotonic()
        self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self.thread.start()

    def _run(self, work: Callable[["Job"], Any]) -> None:
        self.problem = "it failed unexpectedly; the terminal says more"
        try:
            self.result = work(self)
            self.problem = None
        except InputError as error:
            self.problem = str(error)

    def describe(self) -> dict[str, Any]:
        """Its progress."""
        rate = self.done / max(1e-3, time.monotonic() - self._start)
        left = (self.total - self.done) / rate if self.done else None
        return {
            "number": self.number,
            "running": self.thread.is_alive(),
            "done": self.done,
            "total": self.total,
            "frame": self.frame,
            "rate": rate,
            "left": left,
            "problem": None if self.thread.is_alive() else self.problem,
        }


class Page:
    """What the tabs share.

    Args:
        model: in evaluation mode; videos that are segmented at once take turns, a frame each.
        folder: of the session: a folder for each video.
        engine: for :mod:`stma.app.prompts`.

    Raises:
        InputError: a video of the session is damaged.
    """

    def __init__(
        self, model: STMA, folder: Path, limits: Limits | None = None, engine: str = "auto"
    ) -> None:
        self.model, self.folder, self.limits = model, folder, limits or Limits()
        self.sessions: dict[str, Session] = {}
        self.problems: list[str] = []
        for record in sorted(folder.glob(f"*/{RECORD}")):
            try:
                self.sessions[record.parent.name] = Session(record.parent)
            except InputError as error:
                self.problems.append(f"Not opened: {error}")
        self.jobs: dict[tuple[str, str], Job] = {}  # by video and kind
        self._closing = False
        self._numbers = itertools.count()
        self._turn = threading.Lock()
        self._engine_name = engine
        self._engine: PromptEngine | None = None
        self._looking = threading.Lock()
        self._looked_at: OrderedDict[tuple[str, int], PromptedFrame] = OrderedDict()
        self._wanted: tuple[str, int] | None = None

    def app(self, host: str) -> Starlette:
        """The web application; see :class:`~stma.app.guard.Guard` for ``host``."""
        video = "/videos/{video}"
        routes = [
            *(Route(path, self._file) for path in FILES),
            Route("/state", self._state),
            Route("/videos", self._upload, methods=["PUT"]),
            Route(video, self._remove_video, methods=["DELETE"]),
            Route(video + "/frames/{number:int}", self._frame),
            Route(video + "/masks/{number:int}", self._mask),
            Route(video + "/masks/{number:int}", self._draw, methods=["POST"]),
            Route(video + "/import/{number:int}", self._import, methods=["PUT"]),
            Route(video + "/look/{number:int}", self._look, methods=["POST"]),
            Route(video + "/prompt/{number:int}", self._prompt, methods=["POST"]),
            Route(video + "/undo", self._undo, methods=["POST"]),
            Route(video + "/redo", self._redo, methods=["POST"]),
            Route(video + "/objects", self._add_object, methods=["POST"]),
            Route(video + "/objects/{object:int}", self._rename, methods=["PUT"]),
            Route(video + "/objects/{object:int}", self._remove_object, methods=["DELETE"]),
            Route(video + "/run", self._run, methods=["POST"]),
            Route(video + "/stop", self._stop, methods=["POST"]),
            Route(video + "/export", self._export, methods=["POST"]),
            Route(video + "/export", self._exported),
        ]
        return Starlette(
            routes=routes,
            middleware=[Middleware(Guard, host=host)],
            exception_handlers={InputError: self._refused},
        )

    def open(self, path: Path, owned: bool = False) -> str:
        """Add a video; see :meth:`Session.create`.

        Returns:
            Its name here.
        """
        session = Session.create(path, self.folder, self.limits, owned)
        self.sessions[session.folder.name] = session
        return session.folder.name

    def warm_up(self) -> None:
        """Load the engine before the first click, in the background."""

        def load() -> None:
            with self._looking:
                self._load_engine()

        threading.Thread(target=load, daemon=True).start()

    def close(self) -> None:
        """Stop all work, and wait for it."""
        self._closing = True
        for session in self.sessions.values():
            session.stop()
        for job in self.jobs.values():
            job.thread.join()

    async def _refused(self, request: Request, error: Exception) -> Response:
        message = str(error).replace(f"{self.folder}/", "")
        return JSONResponse({"error": message}, 400, HEADERS)

    def _file(self, request: Request) -> Response:
        name, kind = FILES[request.url.path]
        content = Path(__file__).with_name(name).read_bytes()
        return Response(content, headers=HEADERS, media_type=kind)

    def _session(self, request: Request) -> Session:
        name = request.path_params["video"]
        if name not in self.sessions:
            raise InputError("this video was removed; open it again")
        return self.sessions[name]

    def _state(self, request: Request) -> Response:
        """All videos, and all about one of them."""
        name = request.query_params.get("video", "")
        videos = [
            {"id": each, "name": session.video.path.name, "running": self._running(each)}
            for each, session in list(self.sessions.items())
        ]
        state: dict[str, Any] = {
            "videos": videos,
            "problems": self.problems,
            "limits": {"megabytes": self.limits.megabytes, "frames": self.limits.frames},
            "network": is_installed("mobilesam") and self._engine_name != "grabcut",
        }
        if name in self.sessions:
            jobs = {kind: job.describe() for (of, kind), job in self.jobs.items() if of == name}
            state["video"] = {"id": name, **self.sessions[name].describe(), "jobs": jobs}
        if "colours" in request.query_params:
            state["colours"] = bright_palette().tolist()
        return JSONResponse(state, headers=HEADERS)

    def _running(self, name: str) -> bool:
        job = self.jobs.get((name, "run"))
        return job is not None and job.thread.is_alive()

    async def _upload(self, request: Request) -> Response:
        name = Path(request.query_params.get("name", "")).name or "video"
        with self._receiving() as folder:
            path = folder / name
            await _receive(request, path, self.limits.megabytes, "--max-megabytes")
            opened = await run_in_threadpool(self.open, path, owned=True)
        return JSONResponse({"id": opened}, headers=HEADERS)

    @contextmanager
    def _receiving(self) -> Iterator[Path]:
        """A folder for a file that comes in; what is left in it is deleted."""
        with (
            full_disks_told(self.folder),
            tempfile.TemporaryDirectory(
                prefix=".upload-", dir=self.folder, ignore_cleanup_errors=True
            ) as name,
        ):
            yield Path(name)

    def _remove_video(self, request: Request) -> Response:
        session = self._session(request)
        del self.sessions[request.path_params["video"]]
        session.delete()
        return _done()

    def _frame(self, request: Request) -> Response:
        frame = self._session(request).frame(request.path_params["number"])
        encoded = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        return Response(encoded.tobytes(), headers=HEADERS, media_type="image/jpeg")

    def _mask(self, request: Request) -> Response:
        """A mask of IDs in grey, for the canvas; or a palette PNG, to keep."""
        session, number = self._session(request), request.path_params["number"]
        mask = session.mask(number)
        if "save" not in request.query_params:
            return _grey(mask)
        file = io.BytesIO()
        save_mask(file, mask)
        name = f"{session.video.path.stem}_{session.video.name(number)}.png"
        return Response(file.getvalue(), headers=_attached(name), media_type="image/png")

    async def _draw(self, request: Request) -> Response:
        """Take a change: a PNG whose red is the ID, where it is not transparent."""
        change = await _picture(request)
        return await run_in_threadpool(self._drawn, request, change)

    def _drawn(self, request: Request, change: np.ndarray) -> Response:
        session, number = self._session(request), request.path_params["number"]
        left, top = _integer(request, "left"), _integer(request, "top")
        mask = session.mask(number).copy()
        part = mask[top : top + change.shape[0], left : left + change.shape[1]]
        if part.shape != change.shape[:2]:
            raise InputError("what was drawn is larger than the frame")
        painted = change[..., 3] == PAINTED
        part[painted] = change[..., 0][painted]
        session.draw(number, mask, request.query_params.get("what", "drawing"))
        return _done(revision=session.revision)

    async def _import(self, request: Request) -> Response:
        session = self._session(request)
        name = Path(request.query_params.get("name", "")).name or "mask.png"
        with self._receiving() as folder:
            await _receive(request, folder / name, MASK_MEGABYTES)
            number = request.path_params["number"]
            try:
                frames = await run_in_threadpool(session.give, number, folder / name)
            except InputError as error:
                raise InputError(str(error).replace(f"{folder}/", "")) from error
        return _done(frames=frames)

    def _look(self, request: Request) -> Response:
        """Compute what does not depend on a prompt, while the user still looks."""
        session, number = self._session(request), request.path_params["number"]
        self._look_at(request.path_params["video"], session, number, waits=False)
        return _done()

    def _look_at(
        self, name: str, session: Session, number: int, waits: bool
    ) -> PromptedFrame | None:
        """
        Args:
            waits: False gives up when another frame is wanted meanwhile.
        """
        key = name, number
        self._wanted = key
        with self._looking:
            if key in self._looked_at:
                self._looked_at.move_to_end(key)
                return self._looked_at[key]
            if not waits and self._wanted != key:
                return None
            self._looked_at[key] = self._load_engine().look_at(session.frame(number))
            while len(self._looked_at) > LOOKED_AT:
                self._looked_at.popitem(last=False)
            return self._looked_at[key]

    def _load_engine(self) -> PromptEngine:
        if self._engine is None:
            self._engine = load_engine(self._engine_name, str(self.model.mean.device))
        return self._engine

    async def _prompt(self, request: Request) -> Response:
        """A mask of one object, not kept yet: grey, 1 where it is."""
        try:
            asked = json.loads(await request.body())
            strokes = [
                Stroke([(float(x), float(y)) for x, y in each["points"]], bool(each["inside"]))
                for each in asked["strokes"]
            ]
            box = asked.get("box") and tuple(float(value) for value in asked["box"])
            identity = int(asked["object"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"not a prompt ({error})") from error
        return await run_in_threadpool(self._prompted, request, strokes, box, identity)

    def _prompted(
        self, request: Request, strokes: list[Stroke], box: Any, identity: int
    ) -> Response:
        session, number = self._session(request), request.path_params["number"]
        known = None if box else session.mask(number) == identity
        prompt = Prompt(strokes, box, known if known is not None and known.any() else None)
        prompt.check(session.video.size)
        frame = self._look_at(request.path_params["video"], session, number, waits=True)
        assert frame is not None
        return _grey(place(frame.segment(prompt), 1))

    def _undo(self, request: Request) -> Response:
        return _done(frame=self._session(request).undo())

    def _redo(self, request: Request) -> Response:
        return _done(frame=self._session(request).redo())

    def _add_object(self, request: Request) -> Response:
        return _done(id=self._session(request).add_object())

    def _rename(self, request: Request) -> Response:
        name = request.query_params.get("name", "")
        self._session(request).rename(request.path_params["object"], name)
        return _done()

    def _remove_object(self, request: Request) -> Response:
        self._session(request).remove(request.path_params["object"])
        return _done()

    def _run(self, request: Request) -> Response:
        session, name = self._session(request), request.path_params["video"]
        backward = "backward" in request.query_params
        if self._running(name):
            raise InputError("the video is being segmented already")
        total = session.begin if backward else session.num_frames - session.end

        def work(job: Job) -> None:
            run = session.run(self.model, backward)
            while True:
                with self._turn:
                    number = next(run, None)
                if number is None:
                    return
                job.done, job.frame = job.done + 1, number

        return self._start((name, "run"), total, work)

    def _stop(self, request: Request) -> Response:
        self._session(request).stop()
        return _done()

    def _export(self, request: Request) -> Response:
        session, name = self._session(request), request.path_params["video"]
        kind = request.query_params.get("kind", "")
        if kind not in DOWNLOADS:
            raise InputError(f"no {kind!r}; choose from {', '.join(DOWNLOADS)}")
        ids = [_integer(request, "object")] if "object" in request.query_params else None
        earlier = self.jobs.get((name, "export"))
        if earlier is not None and earlier.thread.is_alive():
            raise InputError("another file is being prepared; wait for it")

        def work(job: Job) -> Path:
            def count(done: int) -> None:
                job.done = done
                if self._closing:
                    raise InputError("the page was closed")

            return session.write(kind, ids, count)

        return self._start((name, "export"), max(1, session.end), work)

    def _start(self, key: tuple[str, str], total: int, work: Callable[[Job], Any]) -> Response:
        self.jobs[key] = job = Job(next(self._numbers), total, work)
        return _done(job=job.number)

    def _exported(self, request: Request) -> Response:
        self._session(request)
        job = self.jobs.get((request.path_params["video"], "export"))
        if job is None or job.result is None or not job.result.is_file():
            raise InputError("no file was prepared; press Download again")
        return FileResponse(job.result, headers=_attached(job.result.name))


def _done(**values: Any) -> Response:
    return JSONResponse(values, headers=HEADERS)


def _attached(name: str) -> dict[str, str]:
    plain = name.encode("ascii", "replace").decode().replace('"', "'").replace("?", "_")
    return HEADERS | {"Content-Disposition": f'attachment; filename="{plain}"'}


def _grey(mask: np.ndarray) -> Response:
    encoded = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
    return Response(encoded.tobytes(), headers=HEADERS, media_type="image/png")


def _integer(request: Request, name: str) -> int:
    text = request.query_params.get(name, "")
    if not text.isdecimal():
        raise InputError(f"{name} is {text!r}; give a number")
    return int(text)


async def _picture(request: Request) -> np.ndarray:
    """``(H, W, 4)`` uint8, from the request's PNG."""
    try:
        image = Image.open(io.BytesIO(await request.body()), formats=["PNG"])
        return np.asarray(image.convert("RGBA"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"not a PNG ({error})") from error


async def _receive(request: Request, path: Path, megabytes: int, option: str = "") -> None:
    """Write a request's body to a file.

    Raises:
        InputError: it is too large, or broke off.
    """
    limit = megabytes * 10**6
    size = 0
    announced = request.headers.get("content-length", "0")
    try:
        with path.open("wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if max(size, int(announced) if announced.isdecimal() else 0) > limit:
                    hint = f"; start the page with a larger {option}" if option else ""
                    raise InputError(f"{path.name}: the limit is {megabytes} MB{hint}")
                file.write(chunk)
    except ClientDisconnect as error:
        raise InputError(f"{path.name}: the upload broke off") from error


def _listen(host: str, port: int | None) -> socket.socket:
    """A socket to serve at.

    Args:
        port: None takes the first free one of ``PORTS``.

    Raises:
        InputError: none is free, or the host is another machine.
    """
    try:
        family, *_, (address, *_) = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InputError(f"--host {host}: there is no such host ({error.strerror})") from error
    problem: OSError | None = None
    for each in PORTS if port is None else (port,):
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((address, each))
            listening.listen(128)
            return listening
        except OSError as error:
            listening.close()
            problem = error
    assert problem is not None
    where = f"{host}:{port or f'{PORTS[0]} to {PORTS[-1]}'}"
    raise InputError(
        f"the page cannot be served at {where} ({problem.strerror}); give another --host or --port"
    ) from problem


@contextmanager
def serving(page: Page, host: str = "127.0.0.1", port: int | None = None) -> Iterator[str]:
    """Serve the page and yield its address.

    Raises:
        InputError: the port or the host is not available.
    """
    listening = _listen(host, port)
    config = uvicorn.Config(
        page.app(host), log_level="warning", access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        shown = "127.0.0.1" if host in EVERYWHERE else host
        shown = f"[{shown}]" if ":" in shown else shown
        yield f"http://{shown}:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
        page.close()


@contextmanager
def _temporary() -> Iterator[Path]:
    """A folder that is deleted at the end. What a killed program left is deleted first."""
    for leftover in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        if (leftover / LOCK).exists():
            with suppress(InputError, OSError), holding(leftover):  # or it is of a live one
                shutil.rmtree(leftover)
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def serve(
    weights: str,
    device: str,
    video: Path | None,
    *,
    session: Path | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    limits: Limits | None = None,
    browser: bool = False,
) -> None:
    """Serve the page until Ctrl-C, SIGTERM or SIGHUP.

    Args:
        weights: see :func:`stma.model.weights.load_model`.
        device: see :func:`stma.runtime.device.resolve_device`.
        video: added to the session unless it is there.
        session: a folder that keeps all, and may hold what an earlier call has left; None for a
            temporary one.
        browser: open one.

    Raises:
        InputError: an argument is wrong, or another program uses the folder.
    """
    if video is not None:
        open_video(video)  # refused here rather than on the page
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    with ExitStack() as stack:
        stack.enter_context(suppress(KeyboardInterrupt))
        folder = stack.enter_context(_temporary()) if session is None else session
        stack.enter_context(holding(folder))
        for leftover in folder.glob(".upload-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        page = Page(load_model(weights, resolve_device(device)), folder, limits)
        paths = [each.video.path.resolve() for each in page.sessions.values()]
        if video is not None and video.resolve() not in paths:
            page.open(video)
        page.warm_up()
        url = stack.enter_context(serving(page, host, port))
        keeps = "ends it; --session FOLDER would keep its files"
        if session is not None:
            keeps = f"ends it; {folder} keeps all"
        print(f"The page is at {url} (Ctrl-C {keeps}).", flush=True)  # noqa: T201
        if browser:
            webbrowser.open(url)
        threading.Event().wait()
