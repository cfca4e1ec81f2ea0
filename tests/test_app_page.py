"""The page, in a real browser where there is one."""

import base64
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from conftest import TINY, box, perturbed, random_frame, write_clip_file
from PIL import Image

from stma.app.session import Limits, Session
from stma.cli import main
from stma.errors import InputError
from stma.model.factory import build_model
from stma.model.stma import STMA

gr = pytest.importorskip("gradio")
from stma.app.page import (  # noqa: E402  # needs gradio
    DOWNLOAD_NAMES,
    OBJECTS,
    TEXT,
    Page,
    canvas_html,
    canvas_value,
    mask_of,
    mask_url,
    serving,
    status,
    take,
)

CHROMIUM = shutil.which("chromium")
SIZE = (96, 160)
FRAMES = 10
PATIENCE = 600  # seconds; what fails is to be the page, not a busy machine
in_browser = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None, reason="needs chromium and playwright"
)


@pytest.fixture(scope="module")
def model() -> STMA:
    torch.manual_seed(0)
    return perturbed(build_model(TINY)).eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    frames = [random_frame(rng, *SIZE) for _ in range(FRAMES)]
    return write_clip_file(tmp_path_factory.mktemp("clip") / "clip.mp4", frames)


@pytest.fixture
def session(clip: Path, model: STMA, tmp_path: Path) -> Session:
    return Session(clip, model, tmp_path)


def as_drawn(number: int, mask: np.ndarray) -> dict:
    """What the canvas hands over: a PNG whose red is the ID."""
    image = np.zeros((*mask.shape, 4), np.uint8)
    image[..., 0], image[..., 3] = mask, 255
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    url = mask_url(mask).partition(",")[0] + ","
    return {
        "number": number,
        "mask": url + base64.b64encode(file.getvalue()).decode(),
        "edited": True,
    }


def test_masks_go_to_the_canvas_and_back(session: Session) -> None:
    mask = box(10, 20, 30, 40, value=OBJECTS, size=SIZE)
    canvas = as_drawn(2, mask)
    assert np.array_equal(mask_of(canvas["mask"]), mask)
    take(session, canvas)
    assert session.drawn_frames == [2]
    take(session, {"number": 3, "mask": mask_url(mask), "edited": False})
    take(None, canvas)
    assert session.drawn_frames == [2]


def test_pixels_that_are_not_square_are_shown_so(session: Session) -> None:
    session.video.pixel_aspect = Fraction(4, 3)
    assert canvas_value(session, 0)["aspect"] == pytest.approx(160 / 96 * 4 / 3)


def test_every_object_has_a_swatch() -> None:
    html = canvas_html()
    assert [f'data-object="{i}"' in html for i in range(10)] == [
        0 < i <= OBJECTS for i in range(10)
    ]


def test_status_says_what_to_do(session: Session) -> None:
    assert status(None) == "No video is open."
    assert status(session) == "**clip.mp4**, 10 frames. Nothing is drawn yet."
    session.draw(1, box(10, 20, 30, 40, size=SIZE))
    assert status(session).endswith("Drawn on frame 1. Press *Segment*.")
    for number in session.run():
        if number == 4:
            session.stop()
    assert status(session).endswith("Segmented up to frame 4; *Segment* continues.")
    list(session.run())
    assert status(session).endswith("All frames are segmented.")


def test_a_refused_upload_leaves_the_video_and_no_file(
    session: Session, model: STMA, tmp_path: Path
) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    upload = folder / "notes.txt"
    upload.write_text("no video")
    page = Page(model, folder)
    tab = SimpleNamespace(session_hash="a")
    page.sessions["a"] = session
    text = page.open(str(upload), tab)[TEXT]
    assert text.startswith("**Not opened:** notes.txt: cannot be read as a video")
    assert text.endswith(status(session))
    assert list(page.sessions.values()) == [session]
    assert not session.closed
    assert list(folder.iterdir()) == []


def test_another_video_closes_the_one_before(clip: Path, model: STMA, tmp_path: Path) -> None:
    page = Page(model, tmp_path, video=clip)
    tab = SimpleNamespace(session_hash="a")
    before = page.open_given(tab)[0]
    after = page.open_given(tab)[0]
    assert before.closed
    assert not after.closed
    page.leave(tab)
    page.leave(tab)
    assert after.closed
    with pytest.raises(gr.Error, match="this video was closed"):
        page.write(after, "masks")
    assert clip.exists()
    assert list(tmp_path.iterdir()) == []


def test_handlers_without_a_video(model: STMA, tmp_path: Path) -> None:
    page = Page(model, tmp_path)
    for call in (
        lambda: next(page.run(None, None)),
        lambda: page.write(None, "masks"),
        lambda: page.remove(None, None, 0, None),
    ):
        with pytest.raises(gr.Error):
            call()


def test_a_run_that_fails_gives_the_page_back(
    session: Session, model: STMA, tmp_path: Path
) -> None:
    """Nothing is drawn: it says so where it says what to do, and the buttons are free again."""
    ((canvas, _, text, *_),) = Page(model, tmp_path).run(session, {"number": 3})
    assert canvas["number"] == 3
    assert text.startswith("**Not segmented:** nothing is drawn yet")
    assert text.endswith(status(session))


def test_a_video_that_is_damaged(
    session: Session, model: STMA, tmp_path: Path, monkeypatch
) -> None:
    def run():
        raise InputError(f"{session.video.path}: damaged")
        yield

    monkeypatch.setattr(session, "run", run)
    ((_, _, text, *_),) = Page(model, tmp_path).run(session, {"number": 3})
    assert text.startswith("**Not segmented:** clip.mp4: damaged")


def test_other_hosts_and_sites_are_refused(model: STMA) -> None:
    with serving(model) as url:
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(urllib.request.Request(url, headers=headers))


def test_a_port_that_is_taken(model: STMA) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(InputError, match=f"cannot be served at 127.0.0.1:{port}"),
            serving(model, port=port),
        ):
            pass


def test_the_command_refuses_early(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(SystemExit, match=r"none\.mp4: no such file or folder"):
        main(["app", str(tmp_path / "none.mp4")])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"needs gradio, .* pip install 'gradio>"):
        main(["app"])


@pytest.mark.slow
def test_the_command_ends_and_cleans_up(weights: Path, clip: Path, tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    arguments = ["app", str(clip), f"--weights={weights}", "--no-browser", "--device=cpu"]
    with subprocess.Popen(
        [sys.executable, "-m", "stma", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        line = process.stdout.readline()
        url = line.split()[4]
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(url) as answer:
            assert b"gradio" in answer.read()
        assert list(tmp_path.glob("stma-app-*"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert not list(tmp_path.glob("stma-app-*"))


@pytest.fixture(scope="module")
def address(model: STMA, tmp_path_factory) -> Iterator[str]:
    with serving(model, limits=Limits(megabytes=2, frames=50)) as url:
        yield url


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=1000 * PATIENCE
        )
        yield browser
        browser.close()


class Tab:
    """A user at the page."""

    def __init__(self, chromium, address: str) -> None:
        self.page = chromium.new_page(viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(1000 * PATIENCE)
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", self._check)
        self.page.goto(address)
        self.page.wait_for_selector("#canvas canvas", state="attached")

    def _check(self, request) -> None:
        if not request.url.startswith(("http://127.0.0.1", "data:", "blob:")):
            self.problems.append(f"asks for {request.url}")

    def open(self, clip: Path) -> None:
        self.page.set_input_files("#upload input[type=file]", clip)

    def wait_for_frame(self, number: int) -> None:
        self.page.wait_for_selector(f'#canvas canvas[data-frame="{number}"]')

    def wait_for_status(self, text: str) -> None:
        self.page.wait_for_selector(f'#status:has-text("{text}")')

    def draw(self, start: tuple[float, float], end: tuple[float, float], number: int = 1) -> None:
        """A stroke; places from 0 to 1."""
        self.page.click(f'#canvas button[data-object="{number}"]')
        bounds = self.page.locator("#canvas canvas").bounding_box()
        mouse = self.page.mouse
        for step, (x, y) in enumerate((start, end)):
            mouse.move(
                bounds["x"] + x * bounds["width"], bounds["y"] + y * bounds["height"], steps=5
            )
            mouse.down() if step == 0 else mouse.up()

    def colour(self, x: float, y: float) -> list[int]:
        """Of a pixel of the canvas."""
        return self.page.evaluate(
            """([x, y]) => { const c = document.querySelector("#canvas canvas");
            return [...c.getContext("2d").getImageData(x * c.width, y * c.height, 1, 1).data]; }""",
            [x, y],
        )

    def segment(self) -> None:
        self.page.click("#segment")
        self.wait_for_status("All frames are segmented")

    def download(self, kind: str) -> Path:
        label = next(label for label, each in DOWNLOAD_NAMES.items() if each == kind)
        self.page.click("#kind input")
        self.page.get_by_role("option", name=label, exact=True).click()
        self.page.click("#prepare")
        with self.page.expect_download() as download:
            self.page.click(f'#file a[download*="_{kind}."]')
        return download.value.path()

    def masks(self) -> list[np.ndarray]:
        """By downloading them."""
        with zipfile.ZipFile(self.download("masks")) as archive:
            return [np.asarray(Image.open(archive.open(name))) for name in archive.namelist()]


@pytest.fixture
def tab(chromium, address: str) -> Iterator[Tab]:
    tab = Tab(chromium, address)
    yield tab
    tab.page.close()
    assert tab.problems == []


@in_browser
@pytest.mark.browser
@pytest.mark.slow
def test_open_draw_run_correct_download(tab: Tab, clip: Path) -> None:
    assert not tab.page.locator("#file").is_visible()
    tab.open(clip)
    tab.wait_for_frame(0)
    tab.draw((0.3, 0.3), (0.5, 0.3), number=1)
    tab.wait_for_status("Drawn on frame 0")
    tab.segment()
    first = tab.masks()
    assert len(first) == FRAMES
    assert first[0][int(0.3 * 96), int(0.4 * 160)] == 1
    assert set(np.unique(first[0])) == {0, 1}
    with av.open(tab.download("overlay")) as video:
        assert len(list(video.decode(video=0))) == FRAMES
    with zipfile.ZipFile(tab.download("cutout")) as archive:
        assert len(archive.namelist()) == FRAMES

    tab.page.fill("#frame input[type=number]", "6")
    tab.page.keyboard.press("Enter")
    tab.wait_for_frame(6)
    tab.draw((0.6, 0.7), (0.8, 0.7), number=2)
    tab.wait_for_status("Drawn on frames 0, 6")
    tab.segment()
    second = tab.masks()
    assert second[6][int(0.7 * 96), int(0.7 * 160)] == 2
    assert all(np.array_equal(a, b) for a, b in zip(first[:6], second[:6], strict=True))

    tab.page.click("#remove")
    tab.page.wait_for_function(
        "!document.querySelector('#objects input').value.includes('object 2')"
    )
    assert not any((mask == 2).any() for mask in tab.masks())


@in_browser
@pytest.mark.browser
@pytest.mark.slow
def test_tools(tab: Tab, clip: Path) -> None:
    """Polygon, eraser and undo."""
    tab.open(clip)
    tab.wait_for_frame(0)
    before = tab.colour(0.5, 0.5)
    bounds = tab.page.locator("#canvas canvas").bounding_box()
    tab.page.click('#canvas button[data-object="4"]')
    tab.page.click('#canvas button[data-tool="polygon"]')
    for x, y in ((0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8), (0.2, 0.2)):
        tab.page.mouse.click(bounds["x"] + x * bounds["width"], bounds["y"] + y * bounds["height"])
    tab.wait_for_status("Drawn on frame 0")
    blue = tab.colour(0.5, 0.5)
    assert blue[2] > 140
    tab.page.click('#canvas button[data-tool="eraser"]')
    tab.page.mouse.click(bounds["x"] + 0.5 * bounds["width"], bounds["y"] + 0.5 * bounds["height"])
    tab.page.mouse.move(10, 10)
    assert tab.colour(0.5, 0.5) == before
    tab.page.click('#canvas button[data-action="undo"]')
    assert tab.colour(0.5, 0.5) == blue
    tab.page.click('#canvas button[data-tool="polygon"]')
    tab.page.mouse.click(bounds["x"] + 5, bounds["y"] + 5)
    tab.page.click('#canvas button[data-action="undo"]')  # the corner, not the stroke before
    assert tab.colour(0.5, 0.5) == blue


@in_browser
@pytest.mark.browser
@pytest.mark.slow
def test_layout(tab: Tab, clip: Path) -> None:
    """Tools stand in one line, and a narrow window is used up."""
    tools = tab.page.locator("#canvas button").all()
    assert len({tool.bounding_box()["y"] for tool in tools}) == 1
    tab.page.set_viewport_size({"width": 900, "height": 900})
    tab.open(clip)
    tab.wait_for_frame(0)
    assert tab.page.locator("#canvas canvas").bounding_box()["width"] > 480


@in_browser
@pytest.mark.browser
@pytest.mark.slow
def test_no_video_and_too_long_a_video(tab: Tab, tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("no video")
    tab.open(text)
    tab.page.wait_for_selector("text=notes.mp4: cannot be read as a video")
    rng = np.random.default_rng(0)
    frames = [random_frame(rng, 48, 64) for _ in range(60)]
    tab.open(write_clip_file(tmp_path / "long.mp4", frames))
    tab.page.wait_for_selector("text=long.mp4: 60 frames, and the limit is 50")
    large = tmp_path / "large.mp4"
    with large.open("wb") as file:
        file.truncate(3_000_000)
    tab.open(large)
    tab.page.wait_for_selector("text=exceed the maximum allowed size of 2.0 Mb")


@in_browser
@pytest.mark.browser
@pytest.mark.slow
def test_tabs_do_not_mix_and_are_cleaned_up(chromium, model: STMA, clip: Path) -> None:
    with serving(model) as address:
        folder = Path(os.environ["GRADIO_TEMP_DIR"]).parent
        one, other = Tab(chromium, address), Tab(chromium, address)
        for tab, number in ((one, 1), (other, 3)):
            tab.open(clip)
            tab.wait_for_frame(0)
            tab.draw((0.3, 0.3), (0.5, 0.3), number=number)
            tab.wait_for_status("Drawn on frame 0")
        one.page.click("#segment")
        other.segment()
        one.wait_for_status("All frames are segmented")
        assert set(np.unique(one.masks()[0])) == {0, 1}
        assert set(np.unique(other.masks()[0])) == {0, 3}
        assert len(list(folder.glob("video-*"))) == 2
        one.page.close()
        deadline = time.monotonic() + PATIENCE
        while len(list(folder.glob("video-*"))) == 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert len(list(folder.glob("video-*"))) == 1
        other.page.close()
    assert not folder.exists()
