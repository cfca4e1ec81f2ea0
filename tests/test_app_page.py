"""The page: what its server answers, and what a user does in a real browser."""

import errno
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, box, perturbed, write_clip_file
from PIL import Image

from stma.app.session import Limits
from stma.cli import main
from stma.errors import InputError
from stma.model.factory import build_model
from stma.model.stma import STMA

pytest.importorskip("starlette")
from starlette.testclient import TestClient  # needs starlette

from stma.app.page import Page, serving

CHROMIUM = shutil.which("chromium")
SIZE = (96, 160)
FRAMES = 10
PATIENCE = 600  # seconds; what fails is to be the page, not a busy machine
LIMITS = Limits(megabytes=2, frames=50)
SQUARE = (30, 40, 40, 40)  # top, left, height, width of what the clip shows in frame 0
V = "/videos/clip"


@pytest.fixture(scope="module")
def model() -> STMA:
    torch.manual_seed(0)
    return perturbed(build_model(TINY)).eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A red square that moves to the right on grey."""
    frames = []
    for number in range(FRAMES):
        frame = np.full((*SIZE, 3), 90, np.uint8)
        frame[30:70, 40 + 4 * number : 80 + 4 * number] = (220, 30, 30)
        frames.append(frame)
    return write_clip_file(tmp_path_factory.mktemp("clip") / "clip.mp4", frames)


@pytest.fixture
def page(clip: Path, model: STMA, tmp_path: Path) -> Iterator[Page]:
    folder = tmp_path / "session"
    folder.mkdir()
    page = Page(model, folder, LIMITS, engine="grabcut")
    page.open(clip)
    yield page
    page.close()


@pytest.fixture
def client(page: Page) -> TestClient:
    return TestClient(page.app("127.0.0.1"), base_url="http://localhost")


def png(mask: np.ndarray) -> bytes:
    """A change as the browser sends it: the ID in red, transparent where nothing changes."""
    image = np.zeros((*mask.shape, 4), np.uint8)
    image[..., 0], image[..., 3] = mask, np.where(mask > 0, 255, 0)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / max(1, (a | b).sum())


def wait_for(client: TestClient, kind: str) -> dict:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        job = client.get("/state?video=clip").json()["video"]["jobs"][kind]
        if not job["running"]:
            return job
        time.sleep(0.05)
    raise TimeoutError(kind)


def test_draw_segment_download(client: TestClient, page: Page) -> None:
    assert client.post(f"{V}/objects").json() == {"id": 1}
    drawn = np.ones((10, 20), np.uint8)
    client.post(f"{V}/masks/2?left=40&top=30", content=png(drawn)).raise_for_status()
    client.post(f"{V}/run").raise_for_status()
    job = wait_for(client, "run")
    assert (job["done"], job["total"], job["problem"]) == (8, 8, None)
    client.post(f"{V}/run?backward").raise_for_status()
    assert wait_for(client, "run")["problem"] is None
    video = client.get("/state?video=clip").json()["video"]
    assert (video["given"], video["begin"], video["end"]) == ([2], 0, FRAMES)
    client.post(f"{V}/export?kind=masks").raise_for_status()
    assert wait_for(client, "export")["done"] == FRAMES
    answer = client.get(f"{V}/export")
    assert 'filename="clip_masks.zip"' in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        masks = [np.asarray(Image.open(archive.open(name))) for name in archive.namelist()]
    assert len(masks) == FRAMES
    expected = box(30, 40, 10, 20, size=SIZE)
    assert np.array_equal(masks[2], expected)
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(client.get(f"{V}/masks/2").content))), expected
    )


def test_a_prompt_makes_a_mask_and_keeps_nothing(client: TestClient) -> None:
    top, left, height, width = SQUARE
    around = [left - 8, top - 8, left + width + 8, top + height + 8]
    asked = {"object": 1, "strokes": [], "box": around}
    answer = client.post(f"{V}/prompt/0", content=json.dumps(asked))
    found = np.asarray(Image.open(io.BytesIO(answer.content))) == 1
    assert overlap(found, box(*SQUARE, size=SIZE) > 0) > 0.8
    assert client.get("/state?video=clip").json()["video"]["given"] == []


STROKE = {"points": [[10, 10]], "inside": True}


@pytest.mark.parametrize(
    ("method", "path", "content", "named"),
    [
        ("POST", f"{V}/prompt/0", {"strokes": [{**STROKE, "points": [[400, 10]]}]}, "400,10"),
        ("POST", f"{V}/prompt/0", {"strokes": [], "box": [5, 5, 5, 40]}, "box 5,5,5,40"),
        ("POST", f"{V}/prompt/0", {"strokes": []}, "no object"),
        ("POST", f"{V}/prompt/0", {}, "strokes"),
        ("POST", f"{V}/prompt/10", {"strokes": [STROKE]}, "no frame 10; its last is 9"),
        ("POST", f"{V}/masks/0?left=0&top=0", b"x", "not a PNG"),
        ("POST", f"{V}/masks/0?left=150&top=0", png(np.ones((9, 20), np.uint8)), "larger"),
        ("POST", f"{V}/masks/0?left=-1&top=0", png(np.ones((9, 20), np.uint8)), "left is '-1'"),
        ("POST", f"{V}/run", b"", "nothing is drawn"),
        ("POST", f"{V}/export?kind=exe", b"", "'exe'; choose from masks"),
        ("GET", f"{V}/export", None, "no file was prepared"),
        ("DELETE", f"{V}/objects/3", None, "object 3"),
        ("POST", "/videos/other/run", b"", "this video was removed"),
        ("PUT", f"{V}/import/0?name=../mask.png", b"x", "mask.png"),
        ("PUT", "/videos?name=notes.txt", b"x", "notes.txt: cannot be read as a video"),
        ("PUT", "/videos?name=large.mp4", b"\0" * 2_000_001, "large.mp4: the limit is 2 MB"),
    ],
)
def test_bad_requests_end_in_one_line(
    client: TestClient, page: Page, method: str, path: str, content, named: str
) -> None:
    before = sorted(page.folder.rglob("*"))
    if isinstance(content, dict):
        content = json.dumps({"object": 1, **content})
    answer = client.request(method, path, content=content)
    if answer.status_code == 200:  # a job, which fails
        message = wait_for(client, path.rpartition("/")[2])["problem"]
    else:
        assert answer.status_code == 400
        message = answer.json()["error"]
    assert named in message
    assert "\n" not in message
    assert str(page.folder) not in message
    assert sorted(page.folder.rglob("*")) == before
    assert list(page.sessions) == ["clip"]


def test_an_upload_to_a_full_disk(client: TestClient, page: Page, clip: Path, monkeypatch) -> None:
    def full(source: str, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(page.folder.rglob("*"))
    monkeypatch.setattr("stma.app.session.shutil.move", full)
    answer = client.put("/videos?name=two.mp4", content=clip.read_bytes())
    assert (answer.status_code, "No space left" in answer.json()["error"]) == (400, True)
    assert sorted(page.folder.rglob("*")) == before


def test_a_video_is_segmented_once_at_a_time(client: TestClient, page: Page) -> None:
    page.sessions["clip"].draw(0, box(*SQUARE, size=SIZE))
    with page._turn:  # it waits for its turn
        client.post(f"{V}/run").raise_for_status()
        assert "already" in client.post(f"{V}/run").json()["error"]
        client.post(f"{V}/stop").raise_for_status()
    wait_for(client, "run")


def test_opened_again(client: TestClient, page: Page, model: STMA) -> None:
    page.sessions["clip"].draw(3, box(*SQUARE, size=SIZE))
    client.put(f"{V}/objects/1?name=a%20square").raise_for_status()
    damaged = page.folder / "damaged"
    damaged.mkdir()
    (damaged / "video.json").write_text("{")
    again = Page(model, page.folder, LIMITS)
    video = again.sessions["clip"].describe()
    assert (video["given"], video["objects"]) == ([3], [{"id": 1, "name": "a square"}])
    assert "damaged" in again.problems[0]


def test_other_hosts_and_sites_are_refused(client: TestClient) -> None:
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
    assert client.get("/state", headers={"Origin": "http://evil.example"}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1", "none.invalid"])
def test_an_address_that_cannot_be_served(page: Page, host: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"{host}.*--host|--host {host}"):
            serving(page, host, port).__enter__()


def test_the_command_refuses_early(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(SystemExit, match=r"none\.mp4: no such file or folder"):
        main(["app", str(tmp_path / "none.mp4")])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"needs starlette, .* pip install starlette"):
        main(["app"])


def run_app(*arguments: object, temporary: Path) -> subprocess.Popen:
    """`stma app`, once it serves."""
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "stma", "app", *map(str, arguments), "--no-browser", "--device=cpu"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()  # loading
    url = process.stdout.readline().split()[4]
    with urllib.request.urlopen(url) as answer:
        assert b"page.js" in answer.read()
    return process


@pytest.mark.slow
def test_the_command_cleans_up(weights: Path, clip: Path, tmp_path: Path) -> None:
    """After SIGHUP, and what a kill has left."""
    for number in (signal.SIGKILL, signal.SIGHUP):
        with run_app(clip, f"--weights={weights}", temporary=tmp_path) as process:
            assert len(list(tmp_path.glob("stma-app-*/clip/video.json"))) == 1
            process.send_signal(number)
            assert process.wait(PATIENCE) == (0 if number == signal.SIGHUP else -number)
    assert not list(tmp_path.glob("stma-app-*"))


@pytest.mark.slow
def test_a_session_is_kept_and_used_by_one(weights: Path, clip: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    arguments = ["--session", str(kept), f"--weights={weights}"]
    with run_app(clip, *arguments, temporary=tmp_path) as process:
        with pytest.raises(SystemExit, match="in use"):
            main(["app", *arguments])
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert [path.parent.name for path in kept.glob("*/video.json")] == ["clip"]


# ---- In a browser

browser = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or find_spec("playwright") is None, reason="needs chromium and playwright"
    ),
]


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
    """A user at the page; places are pixels of the frame."""

    def __init__(self, chromium, address: str, width: int = 1280, **context) -> None:
        # Playwright's wait_for_function evaluates strings, which the page forbids.
        self.context = chromium.new_context(
            viewport={"width": width, "height": 900}, bypass_csp=True, **context
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE)
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", self._check)
        self.page.goto(address)
        self.wait("Object.keys(state.limits).length")  # it has asked what there is
        self.wait("state.videos.length == 0 || (frame && frame.number == wanted)")

    def _check(self, request) -> None:
        if not request.url.startswith(("http://127.0.0.1", "data:", "blob:")):
            self.problems.append(f"asks for {request.url}")

    def wait(self, condition: str) -> None:
        self.page.wait_for_function(condition)

    def settle(self) -> None:
        """All that was drawn has been sent and shown."""
        self.wait("!stroke && !pending && !refreshing")

    def at(self, x: float, y: float) -> tuple[float, float]:
        self.page.locator("#view").scroll_into_view_if_needed()
        bounds = self.page.locator("#view").bounding_box()
        place = self.page.evaluate(
            """([x, y]) => { const p = placement();
            return [p.x + (x + 0.5) * p.sx, p.y + (y + 0.5) * p.sy]; }""",
            [x, y],
        )
        return bounds["x"] + place[0], bounds["y"] + place[1]

    def drag(self, *places: tuple[float, float], button: str = "left") -> None:
        self.page.mouse.move(*self.at(*places[0]))
        self.page.mouse.down(button=button)
        for place in places[1:]:
            self.page.mouse.move(*self.at(*place), steps=4)
        self.page.mouse.up(button=button)
        self.settle()

    def ids(self) -> np.ndarray:
        """The mask that is shown."""
        return np.array(self.page.evaluate("[...frame.ids]"), np.uint8).reshape(SIZE)

    def shade(self, x: int, y: int) -> int:
        """The red of a pixel of the stage."""
        left, top = self.at(x, y)
        shot = self.page.screenshot(clip={"x": left, "y": top, "width": 1, "height": 1})
        return Image.open(io.BytesIO(shot)).convert("RGB").getpixel((0, 0))[0]

    def key(self, *names: str) -> None:
        for name in names:
            self.page.keyboard.press(name)

    def go(self, number: int) -> None:
        self.page.click("#number", click_count=3)
        self.page.keyboard.type(str(number))
        self.key("Enter")
        self.wait(f"frame.number == {number}")

    def download(self, kind: str) -> Path:
        self.page.select_option("#kind", kind)
        with self.page.expect_download() as download:
            self.page.click("#download")
        return download.value.path()


@pytest.fixture
def address(page: Page) -> Iterator[str]:
    with serving(page) as url:
        yield url


@pytest.fixture
def tab(chromium, address: str) -> Iterator[Tab]:
    tab = Tab(chromium, address)
    yield tab
    tab.context.close()
    assert tab.problems == []


class TestInTheBrowser:
    pytestmark = browser

    def test_click_segment_correct_download(self, tab: Tab) -> None:
        top, left, height, width = SQUARE
        square = box(*SQUARE, size=SIZE) > 0
        tab.drag((60, 50))
        assert tab.ids()[50, 60] == 1
        assert set(np.unique(tab.ids()[~square])) == {0}
        tab.page.click("#new")
        tab.wait("video.objects.length == 2 && object == 2")
        tab.drag((left - 8, top - 8), (left + width + 8, top + height + 8))
        assert overlap(tab.ids() == 2, square) > 0.8
        tab.page.click("#segment")
        tab.wait(f"video.end == {FRAMES} && !job('run')")
        with zipfile.ZipFile(tab.download("masks")) as archive:
            assert len(archive.namelist()) == FRAMES
        before = tab.page.evaluate("video.revision")
        tab.go(6)
        tab.key("b")
        tab.drag((10, 10), (30, 10))
        tab.wait(f"video.revision > {before} && video.end == 6")
        assert tab.page.evaluate("[video.given, video.old]") == [[0, 6], [[6, FRAMES - 1]]]
        tab.key("ArrowRight")
        tab.page.wait_for_selector("#badge:visible")
        tab.page.reload()
        tab.wait("frame && frame.number == 7 && video.given.length == 2")

    def test_tools_and_keys(self, tab: Tab) -> None:
        tab.key("b")
        tab.drag((20, 20), (60, 20))
        assert (tab.ids()[20, 20:60] == 1).all()
        tab.key("e")
        tab.drag((40, 10), (40, 30))
        assert tab.ids()[20, 40] == 0
        tab.key("n")
        tab.wait("object == 2")
        tab.key("p")
        for place in ((100, 20), (140, 20), (140, 60)):
            tab.page.mouse.click(*tab.at(*place))
        tab.page.click("#forth")  # an unfinished polygon waits for one to come back
        tab.wait("frame.number == 1")
        tab.key("ArrowLeft")
        tab.wait("frame.number == 0 && polygon().length == 3")
        tab.key("Enter")
        tab.settle()
        assert tab.ids()[30, 135] == 2
        tab.key("Control+z", "Control+z")
        tab.wait("video.redo == 'erasing' && !frame.ids.includes(2)")
        assert tab.ids()[20, 40] == 1
        tab.key("Control+Shift+z")
        tab.wait("video.redo == 'polygon'")
        tab.wait(f"frame.ids[20 * {SIZE[1]} + 40] == 0")
        tab.key("1")
        assert tab.page.evaluate("object") == 1
        tab.page.locator("#objects li button[title=Hide]").first.click()
        assert tab.page.evaluate("hidden.has(1)")
        tab.page.locator("#objects input").nth(1).click()  # of one that is not chosen
        tab.key("Control+a")
        tab.page.keyboard.type("a dog")
        tab.key("Enter")
        tab.wait("video.objects[1].name == 'a dog' && object == 2")
        size = tab.page.evaluate("radius")
        tab.key("]", "]", "[")
        assert tab.page.evaluate("radius") > size
        for _ in range(7):
            tab.key("ArrowRight")
        tab.wait("frame.number == 7")

    def test_zoomed_in_the_brush_paints_where_it_is(self, tab: Tab) -> None:
        tab.key("b")
        tab.drag((80, 48))
        whole = (tab.ids() == 1).sum()
        tab.key("Control+z")
        tab.wait("!frame.ids.some(Boolean)")
        tab.page.mouse.move(*tab.at(120, 70))
        tab.page.mouse.wheel(0, -900)
        tab.wait("zoom.scale > 3")
        tab.drag((120, 70))
        rows, columns = np.nonzero(tab.ids())
        assert (round(rows.mean()), round(columns.mean())) == (70, 120)
        assert len(rows) < whole / 4
        tab.key("f")
        assert tab.page.evaluate("zoom.scale") == 1

    def test_a_pinch_paints_nothing_and_a_finger_paints(self, chromium, address: str) -> None:
        tab = Tab(chromium, address, width=390, has_touch=True)
        touch = tab.context.new_cdp_session(tab.page)

        def fingers(kind: str, *places: tuple[float, float]) -> None:
            points = [
                {"x": x, "y": y, "id": number}
                for number, (x, y) in enumerate(tab.at(*place) for place in places)
            ]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        tab.page.tap("[data-tool=brush]")
        fingers("touchStart", (60, 40))
        fingers("touchMove", (66, 40))
        fingers("touchStart", (66, 40), (100, 40))
        fingers("touchMove", (30, 40), (140, 40))
        fingers("touchEnd")
        tab.settle()
        assert tab.page.evaluate("zoom.scale") > 1.5
        assert not tab.ids().any()
        tab.page.tap("#fit")
        fingers("touchStart", (60, 40))
        fingers("touchMove", (90, 40))
        fingers("touchEnd")
        tab.wait("video.given.length == 1")
        assert (tab.ids()[40, 62:88] == 1).all()
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
        tab.context.close()
        assert tab.problems == []

    def test_videos_and_files(self, tab: Tab, tmp_path: Path) -> None:
        """Refused ones leave the open one; a second is opened; removing asks."""
        (tmp_path / "notes.mp4").write_text("no video")
        with (tmp_path / "large.mp4").open("wb") as file:
            file.truncate(3_000_000)
        for name, text in (("notes", "cannot be read"), ("large", "the limit is 2 MB")):
            tab.page.set_input_files("#video-file", tmp_path / f"{name}.mp4")
            tab.page.wait_for_selector(f"#message:has-text('{name}.mp4'):has-text('{text}')")
        assert tab.page.evaluate("video.id") == "clip"
        frames = [np.full((*SIZE, 3), shade, np.uint8) for shade in (50, 90)]
        tab.page.set_input_files("#video-file", write_clip_file(tmp_path / "two.mp4", frames))
        tab.wait("video && video.id == 'two' && frame && video.frames == 2")
        mask = tmp_path / "mask.png"
        Image.fromarray(box(*SQUARE, size=SIZE)).save(mask)
        tab.page.set_input_files("#mask-file", mask)
        tab.wait("video.given.length == 1 && frame.ids.some(Boolean)")
        bins = tab.page.locator("#videos button[aria-label='Remove two.mp4']")
        for answer, left in (("no", 2), ("yes", 1)):
            bins.click()
            tab.page.click(f"#confirm button[value={answer}]")
            tab.wait(f"state.videos.length == {left} && !refreshing")
        tab.wait("video && video.id == 'clip' && frame")
        other = write_clip_file(tmp_path / "other.mp4", [np.full((*SIZE, 3), 200, np.uint8)])
        tab.page.set_input_files("#video-file", other.rename(tmp_path / "two.mp4"))
        tab.wait("video && video.id == 'two' && frame && video.frames == 1")
        assert tab.shade(80, 48) == pytest.approx(200, abs=8)  # not a frame of the first
        assert tab.page.is_disabled("#play")

    def test_many_clicks_and_two_tabs(self, chromium, tab: Tab, address: str) -> None:
        """No click breaks another, and the other tab shows what came of them."""
        x, y = tab.at(60, 50)
        for number in range(30):
            tab.page.mouse.click(x + number % 7, y + number % 5)
        tab.settle()
        other = Tab(chromium, address)
        other.wait("frame && frame.ids.some(Boolean)")
        assert np.array_equal(other.ids(), tab.ids())
        other.key("b")
        other.drag((10, 10), (30, 10))
        tab.wait(f"frame.ids[10 * {SIZE[1]} + 20] == 1")
        other.context.close()
        assert other.problems == []
        assert tab.page.is_hidden("#message.problem")

    def test_the_policy_lets_the_page_work(self, chromium, address: str) -> None:
        page = chromium.new_page()
        refused: list[str] = []
        page.on("console", lambda message: refused.append(message.text))
        page.goto(address)
        page.wait_for_selector("#segment:disabled")
        page.click("#new")
        page.wait_for_selector("#objects .swatch")
        page.close()
        assert refused == []
