"""Who may talk to the page: no page of another site, and none who came by a name that is not ours.

Browsers let any page send requests to this machine. One of another site is known by its ``Origin``,
and one that had its own name point here (DNS rebinding) by its ``Host``.
"""

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
EVERYWHERE = frozenset({"0.0.0.0", "::"})


class Guard:
    """Answers 403 to requests for other hosts, or from pages of other origins.

    Args:
        host: the address that is served; beside it, this machine's local names are answered. If it
            is every address of the machine, so is any address in numbers, and the machine's name.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._anywhere = host in EVERYWHERE
        self._hosts = LOCAL | {host.lower()} | (_own_names() if self._anywhere else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        problem = self.problem(Headers(scope=scope))
        if problem is None:
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008, "reason": problem})
        await PlainTextResponse(problem, 403)(scope, receive, send)

    def problem(self, headers: Headers) -> str | None:
        """What is wrong with a request; None if nothing is."""
        host = headers.get("host", "")
        name = _host_name(host)
        if name not in self._hosts and not (self._anywhere and _is_address(name)):
            return f"This page is not served as {host!r}; open the address that stma app printed."
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return f"Requests from {origin} are refused."
        # Pictures and forms of other sites come without an origin; links to the page are welcome.
        site = headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin") and headers.get("sec-fetch-dest") != "document":
            return "Requests from other sites are refused."
        return None


def _host_name(host: str) -> str:
    """Without the port, in lower case; empty if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _own_names() -> set[str]:
    name = socket.gethostname().lower()
    return {name, f"{name}.local", socket.getfqdn().lower()}
