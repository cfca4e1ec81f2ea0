"""Requests that must not be answered; see also test_app_page.py."""

import socket

import pytest

pytest.importorskip("starlette")
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from stma.app.guard import Guard

HERE = "127.0.0.1:7860"


def problem(served: str = "127.0.0.1", **headers: str) -> str | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Guard(Starlette(), served).problem(Headers(named))


@pytest.mark.parametrize(
    "headers",
    [
        {"host": HERE},
        {"host": "localhost:7860"},
        {"host": "LOCALHOST"},
        {"host": "[::1]:7860"},
        {"host": "localhost:8000"},  # forwarded by ssh
        {"host": HERE, "origin": f"http://{HERE}"},
        {"host": HERE, "sec_fetch_site": "same-origin"},
        {"host": HERE, "sec_fetch_site": "cross-site", "sec_fetch_dest": "document"},  # a link
    ],
)
def test_who_is_answered(headers: dict[str, str]) -> None:
    assert problem(**headers) is None


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"host": "evil.example:7860"}, "evil.example"),  # DNS rebinding
        ({"host": "127.0.0.1.evil.example"}, "evil.example"),
        ({"host": "192.168.1.7:7860"}, "192.168.1.7"),
        ({"host": ""}, "not served as"),
        ({}, "not served as"),
        ({"host": "[::1"}, "not served as"),
        ({"host": HERE, "origin": "http://evil.example"}, "evil.example"),
        ({"host": HERE, "origin": "http://127.0.0.1:8888"}, "8888"),  # another program here
        ({"host": HERE, "origin": "null"}, "null"),
        ({"host": HERE, "origin": "http://[::1"}, "refused"),
        ({"host": HERE, "sec_fetch_site": "cross-site", "sec_fetch_dest": "image"}, "other sites"),
        ({"host": HERE, "sec_fetch_site": "same-site"}, "other sites"),
        ({"host": HERE, "sec_fetch_site": "cross-site", "sec_fetch_dest": "iframe"}, "other sites"),
    ],
)
def test_who_is_not(headers: dict[str, str], named: str) -> None:
    answer = problem(**headers)
    assert answer is not None
    assert named in answer


def test_the_given_host_is_answered() -> None:
    assert problem("10.0.0.5", host="10.0.0.5:7860") is None
    assert problem("10.0.0.5", host="10.0.0.6:7860") is not None
    assert problem("gpu3", host="GPU3:7860") is None


@pytest.mark.parametrize("everywhere", ["0.0.0.0", "::"])
def test_on_all_addresses_a_foreign_name_is_refused(everywhere: str) -> None:
    """Names can be made to point here, addresses cannot."""
    assert problem(everywhere, host="192.168.1.7:7860") is None
    assert problem(everywhere, host="[fe80::1]:7860") is None
    assert problem(everywhere, host=socket.gethostname()) is None
    assert problem(everywhere, host="evil.example:7860") is not None


def test_nothing_behind_it_is_reached() -> None:
    seen = []

    def answer(request):
        seen.append(request.url.path)
        return PlainTextResponse("secret")

    client = TestClient(Guard(Starlette(routes=[Route("/", answer)]), "127.0.0.1"))
    refused = client.get("/", headers={"host": "evil.example"})
    assert (refused.status_code, "secret" in refused.text, seen) == (403, False, [])
    assert client.get("/", headers={"host": HERE}).text == "secret"
