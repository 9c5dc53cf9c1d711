"""Which requests the page's server answers: those of the page itself, under this machine's own names.

Starlette and Gradio keep the limits that they know. This guard lets through only what the page asks for, so that a
route of Gradio's that reads or writes files is closed, also one that a later version brings.
"""

import ipaddress
import json
import socket
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_CALL = "/gradio_api/queue/join"  # runs a function of the page
# All that Gradio's page asks for, and our own routes.
_OPEN: tuple[str, ...] = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/gradio_api/startup-events")
_OPEN += (_CALL, "/gradio_api/queue/data", "/gradio_api/cancel", "/gradio_api/reset")
LAYERS = "/gradio_api/upload"  # where Gradio's canvas sends its layers: a route of our own, in place of Gradio's
_OPEN += (LAYERS,)
_OPEN_BELOW = ("/assets/", "/static/", "/gradio_api/heartbeat/", "/flowgrad/")
_HEADERS = {
    # Nothing from the network, and no other page may show this one within it.
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address to serve on."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def known_names(host: str) -> list[str]:
    """The names under which a page served on `host` is asked for, as a request's Host header has them.

    They are this machine's own: another site's name that is made to lead here, as in DNS rebinding, is none of them.
    """
    if is_local(host):
        return [*_LOOPBACK, _in_header(host)]
    import psutil

    internet = (socket.AF_INET, socket.AF_INET6)
    places = chain.from_iterable(psutil.net_if_addrs().values())
    addresses = [place.address for place in places if place.family in internet]
    name = socket.gethostname()
    names = (host, name, f"{name}.local", socket.getfqdn(), *addresses)
    return [*_LOOPBACK, *dict.fromkeys(_in_header(each).lower() for each in names)]


def _in_header(host: str) -> str:
    return f"[{host.partition('%')[0]}]" if ":" in host else host


def guarded(app: "ASGIApp") -> "ASGIApp":
    """Refuse requests of another page, those for what is closed, and files named in calls; send `_HEADERS`."""
    from starlette.datastructures import MutableHeaders
    from starlette.requests import Request

    async def guard(scope: "Scope", receive: "Receive", send: "Send") -> None:
        async def send_with_headers(message: "Message") -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        refusal = _refusal(scope) if scope["type"] == "http" else None
        if refusal is None and scope["type"] == "http" and scope["path"] == _CALL:
            body = await Request(scope, receive).body()
            refusal, receive = _refused_call(body), _again(body, receive)
        await (refusal or app)(scope, receive, send_with_headers)

    return guard


def _again(body: bytes, receive: "Receive") -> "Receive":
    """What receives a body that was read already, and then what follows it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> "Message":
        return messages.pop() if messages else await receive()

    return receive_again


def _refusal(scope: "Scope") -> "Response | None":
    from starlette.datastructures import Headers
    from starlette.responses import PlainTextResponse

    headers, path = Headers(scope=scope), scope["path"]
    origin = headers.get("origin")
    if origin and urlsplit(origin).netloc != headers.get("host"):
        return PlainTextResponse("a request from another page", 403)
    if path not in _OPEN and not path.startswith(_OPEN_BELOW):
        return PlainTextResponse("there is nothing here", 404)
    return None


def _refused_call(body: bytes) -> "Response | None":
    """Gradio copies every file, and fetches every address, that a call names, whatever the function takes.

    The page's own functions take texts, numbers and lists of them.
    """
    from starlette.responses import PlainTextResponse

    def plain(found: dict[str, Any]) -> dict[str, Any]:
        if "path" in found:
            raise ValueError("a file")
        return found

    try:
        json.loads(body, object_hook=plain)
    except (ValueError, RecursionError):
        return PlainTextResponse("no call of the page", 400)
    return None
