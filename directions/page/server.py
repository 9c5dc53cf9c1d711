"""The server of `flowgrad ui`: Gradio's page, and the routes of our own on which photos come and go."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from directions.page.guard import LAYERS, guarded, known_names
from directions.page.painting import Easel
from directions.page.session import UPLOAD_LIMIT, Studio
from flowgrad.errors import FlowgradError, UsageError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp
    from uvicorn import Config

_JSON_LIMIT = 1 << 20  # bytes of a request that is no photo
_UPLOADS = 4  # photos whose bytes are in memory before they are decoded
_CONNECTIONS = 100  # at once; more are answered with 503


def require() -> None:
    """Raise FlowgradError unless the extra `ui` is installed."""
    if find_spec("gradio") is None:
        raise FlowgradError("the page needs Gradio, which is not installed. Run: pip install 'flowgrad[ui]'")


def serve(studio: Studio, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve the page until it is interrupted. Raises FlowgradError if the port is taken."""
    import uvicorn

    try:
        with suppress(KeyboardInterrupt):
            uvicorn.Server(settings(studio, host, port)).run()
    except SystemExit as error:
        raise FlowgradError(f"port {port} of {host} cannot be used. Choose another with --port.") from error


def settings(studio: Studio, host: str, port: int) -> "Config":
    """The server's settings for the page of a studio."""
    import uvicorn

    limits: dict[str, Any] = {"limit_concurrency": _CONNECTIONS, "proxy_headers": False, "server_header": False}
    return uvicorn.Config(build(studio, host), host, port, log_level="warning", **limits)


def build(studio: Studio, host: str = "127.0.0.1") -> "ASGIApp":
    """The whole application: our routes, Gradio's page, and the guards before both."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware import Middleware
    from starlette.middleware.body_limit import RequestBodyLimitMiddleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from directions.page.page import to_blocks

    guards = [
        Middleware(TrustedHostMiddleware, allowed_hosts=known_names(host), www_redirect=False),
        Middleware(RequestBodyLimitMiddleware, max_body_size=_JSON_LIMIT),
        Middleware(guarded),
    ]
    easel = Easel(studio)
    routes = _routes(studio, easel)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, routes=routes, middleware=guards)
    return gr.mount_gradio_app(
        app,
        to_blocks(studio, easel),
        "/",
        css_paths=[Path(__file__).with_name("page.css")],
        head=f"<script>{Path(__file__).with_name('page.js').read_text(encoding='utf-8')}</script>",
        # Fonts of the system: nothing is fetched from the network.
        theme=gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        show_error=False,  # our own errors are shown all the same; what others say stays in the terminal
        run_history=False,
        footer_links=[],
        ssr_mode=False,
    )


def _routes(studio: Studio, easel: Easel) -> list[Any]:
    """`POST /flowgrad/photo/try|train`: bytes in, token out. `GET /flowgrad/result/TOKEN`: an edited photo.

    `POST /gradio_api/upload`: a layer of the canvas in, as Gradio's canvas sends it, and a list with its token out.
    Gradio's own route would write it to disk. _JSON_LIMIT holds for it, up to which Starlette keeps forms in memory.
    """
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    uploads = asyncio.Semaphore(_UPLOADS)

    def receiver(take: Callable[[str, bytes], str]) -> Callable[["Request"], Any]:
        async def receive(request: "Request") -> Response:
            async with uploads:
                name, content = request.query_params.get("name", "photo"), await request.body()
                try:
                    return PlainTextResponse(await asyncio.to_thread(take, name, content))
                except FlowgradError as error:
                    return PlainTextResponse(str(error), 400)

        return receive

    async def receive_layer(request: "Request") -> Response:
        async with uploads, request.form(max_files=1, max_fields=0) as form:
            sent = form.get("files")
            if not isinstance(sent, UploadFile):
                raise HTTPException(400, "one layer of the canvas is sent at a time")
            try:
                return JSONResponse([await asyncio.to_thread(easel.receive, await sent.read())])
            except FlowgradError as error:
                return PlainTextResponse(str(error), 400)

    async def fetch_result(request: "Request") -> Response:
        try:
            mixture, limit = _read_query(request)
            made = await asyncio.to_thread(studio.download, request.path_params["token"], mixture, limit)
        except FlowgradError as error:
            return PlainTextResponse(str(error), 404)
        stem = made.name.rpartition(".")[0] or made.name
        file = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in stem)
        headers = {
            "Content-Disposition": f'attachment; filename="{file}-edited.{made.kind}"',
            "Cache-Control": "no-store",
        }
        return Response(made.content, media_type=f"image/{made.kind}", headers=headers)

    post: dict[str, Any] = {"methods": ["POST"], "max_body_size": UPLOAD_LIMIT}
    return [
        Route("/flowgrad/photo/try", receiver(studio.receive), **post),
        Route("/flowgrad/photo/train", receiver(lambda *sent: "\n".join(studio.keep(*sent))), **post),
        Route("/flowgrad/result/{token}", fetch_result),
        Route(LAYERS, receive_layer, methods=["POST"]),
    ]


def _read_query(request: "Request") -> tuple[dict[str, float], float | None]:
    """The mixture of "direction=smiling:1&direction=old:-0.8", and the identity budget of "within=0.5"."""
    parts = [part.rpartition(":") for part in request.query_params.getlist("direction")]
    limit = request.query_params.get("within")
    try:
        return {name: float(strength) for name, _, strength in parts}, float(limit) if limit else None
    except ValueError as error:
        raise UsageError(f"{request.url.query!r} names no directions and strengths") from error
