"""`flowgrad ui`: a page to browse, try and train directions, on this machine alone. Needs the extra `ui` (Gradio).

Photos are sent to a route of our own and stay in memory; Gradio's routes that write or read files are closed.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlencode, urlsplit

from PIL import Image

from directions.bank.gallery import image_url, to_page
from directions.figures import strength_label, strip
from directions.page.session import CHOSEN, STRIP, TRAINING_PHOTOS, Studio
from directions.train.recipe import load_recipe
from flowgrad.errors import FlowgradError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

UPLOAD_LIMIT = 40 << 20  # bytes of a photo
_JSON_LIMIT = 1 << 20  # bytes of any other request
LOCAL = ("127.0.0.1", "localhost", "[::1]")
# How the names of Gradio's routes begin that read or write files, run code or reach the network.
_CLOSED: tuple[str, ...] = ("upload", "file", "proxy", "process_recording", "stream", "run-history", "deep_link", "dev")
_CLOSED += ("vibe", "undo-vibe")


def require() -> None:
    """Raise FlowgradError unless the extra `ui` is installed."""
    if find_spec("gradio") is None:
        raise FlowgradError("the page needs Gradio, which is not installed. Run: pip install 'flowgrad[ui]'")


def serve(studio: Studio, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve the page until it is interrupted. Raises FlowgradError if the port is taken."""
    import uvicorn

    try:
        uvicorn.run(build(studio, host), host=host, port=port, log_level="warning")
    except SystemExit as error:
        raise FlowgradError(f"port {port} of {host} cannot be used. Choose another with --port.") from error


def build(studio: Studio, host: str = "127.0.0.1") -> "ASGIApp":
    """The whole application: our routes, Gradio's page, and the guards before both.

    On a local `host` it answers under the names of this machine alone.
    """
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware import Middleware
    from starlette.middleware.body_limit import RequestBodyLimitMiddleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    guards = [
        Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL if host in LOCAL else ["*"], www_redirect=False),
        Middleware(RequestBodyLimitMiddleware, max_body_size=_JSON_LIMIT),
        Middleware(guarded),
    ]
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, routes=_routes(studio), middleware=guards)
    return gr.mount_gradio_app(
        app,
        _page(studio),
        "/",
        css_paths=[Path(__file__).with_name("page.css")],
        head=f"<script>{Path(__file__).with_name('page.js').read_text(encoding='utf-8')}</script>",
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # nothing from the network
        show_error=True,
        footer_links=[],
        ssr_mode=False,
    )


def guarded(app: "ASGIApp") -> "ASGIApp":
    """Refuse requests that come from another page, and those for what is closed."""

    async def guard(scope: "Scope", receive: "Receive", send: "Send") -> None:
        refusal = _refusal(scope) if scope["type"] == "http" else None
        await (refusal or app)(scope, receive, send)

    return guard


def _refusal(scope: "Scope") -> "Response | None":
    from starlette.datastructures import Headers
    from starlette.responses import PlainTextResponse

    headers = Headers(scope=scope)
    origin = headers.get("origin")
    if origin and urlsplit(origin).netloc != headers.get("host"):
        return PlainTextResponse("a request from another page", 403)
    parts = unquote(scope["path"]).split("/")
    if ".." in parts or ("gradio_api" in parts and any(part.startswith(_CLOSED) for part in parts)):
        return PlainTextResponse("there is nothing here", 403)
    return None


def _routes(studio: Studio) -> list[Any]:
    """`POST /flowgrad/photo/try|train`: bytes in, token out. `GET /flowgrad/result/TOKEN`: an edited photo."""
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    def receiver(take: Callable[[str, bytes], str]) -> Callable[["Request"], Any]:
        async def receive(request: "Request") -> Response:
            name, content = request.query_params.get("name", "photo"), await request.body()
            try:
                return PlainTextResponse(await asyncio.to_thread(take, name, content))
            except FlowgradError as error:
                return PlainTextResponse(str(error), 400)

        return receive

    async def fetch_result(request: "Request") -> Response:
        try:
            mixture = {name: float(strength) for name, strength in request.query_params.items()}
            made = await asyncio.to_thread(studio.download, request.path_params["token"], mixture)
        except (FlowgradError, ValueError) as error:  # ValueError: a strength that is no number
            return PlainTextResponse(str(error), 404)
        stem = made.name.rpartition(".")[0] or made.name
        file = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in stem)
        headers = {"Content-Disposition": f'attachment; filename="{file}-edited.{made.kind}"'}
        return Response(made.content, media_type=f"image/{made.kind}", headers=headers)

    post: dict[str, Any] = {"methods": ["POST"], "max_body_size": UPLOAD_LIMIT}
    return [
        Route("/flowgrad/photo/try", receiver(studio.receive), **post),
        Route("/flowgrad/photo/train", receiver(lambda *sent: "\n".join(studio.keep(*sent))), **post),
        Route("/flowgrad/result/{token}", fetch_result),
    ]


# --- the page ----------------------------------------------------------------------------------------------------


def _page(studio: Studio) -> Any:
    import gradio as gr

    with gr.Blocks(title="flowgrad", analytics_enabled=False) as page:
        gr.Markdown(f"# flowgrad\nDirections for `{studio.model.name}`. Photos are kept in memory, never on a disk.")
        with gr.Tab("Browse"):
            gallery = gr.HTML(_gallery(studio), elem_id="fg-browse", js_on_load=None)
        with gr.Tab("Try"):
            choice = _try(studio)
        with gr.Tab("Train"):
            trained = _train(studio)

        def refreshed() -> tuple[str, Any]:
            return _gallery(studio), gr.update(choices=studio.names())

        for when in (page.load, trained.then):  # a page that is opened later shows what was trained meanwhile
            when(refreshed, None, [gallery, choice], show_progress="hidden", api_visibility="private")
    return page


def _gallery(studio: Studio) -> str:
    """The gallery of `bank gallery`, in a frame that reaches neither the page nor the network."""
    page = to_page(studio.entries(), "Directions")
    return f'<iframe class="fg-gallery" title="Directions" sandbox="allow-scripts" srcdoc="{escape(page)}"></iframe>'


def _drop(route: str, target: str, label: str, most: int = 1) -> str:
    more = "multiple" if most > 1 else ""
    return (
        f'<label class="fg-drop" data-route="/flowgrad/photo/{route}" data-target="{target}" '
        f'data-limit="{UPLOAD_LIMIT}" data-most="{most}">{label}'
        f'<input type="file" accept="image/*,.heic,.heif" {more}><output role="status"></output></label>'
    )


def _try(studio: Studio) -> Any:
    import gradio as gr

    with gr.Row():
        with gr.Column(scale=1):
            gr.HTML(_drop("try", "fg-token", "Drop a photo, or choose one"), elem_id="fg-drop", js_on_load=None)
            token = gr.Textbox(elem_id="fg-token", elem_classes="fg-token", label="photo")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            sample = gr.Button("Take a sample of the model")
            choice = gr.Dropdown(
                studio.names(), multiselect=True, max_choices=CHOSEN, label="Directions", elem_id="fg-choice"
            )
            sliders = [  # as many as directions can be mixed, hidden until some are chosen
                gr.Slider(-1.5, 1.5, 0, step=0.05, label=f"{i + 1}", visible=False, elem_id=f"fg-slider-{i}")
                for i in range(CHOSEN)
            ]
        with gr.Column(scale=2):
            view = gr.HTML("", elem_id="fg-view", elem_classes="fg", js_on_load=None)
            line = gr.Textbox(label="The same on the command line", interactive=False, elem_id="fg-command")
            more = gr.Button("Show a strip")
            row = gr.HTML("", elem_classes="fg fg-wide", elem_id="fg-strip", js_on_load=None)

    def mixed(job: Callable[..., Any]) -> Callable[..., Any]:
        return lambda token, names, *strengths: job(studio, token, dict(zip(names or (), strengths, strict=False)))

    def labelled(names: list[str] | None, before: list[str], *strengths: float) -> list[Any]:
        return _labelled(studio, list(names or ())[:CHOSEN], dict(zip(before, strengths, strict=False)))

    before = gr.State([])
    edited, in_strip = mixed(_edited), mixed(_strip)
    inputs = [token, choice, *sliders]
    quick: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
    chosen = choice.change(labelled, [choice, before, *sliders], [before, *sliders], **quick)
    chosen.then(edited, inputs, [view, line], **quick)
    token.change(edited, inputs, [view, line], **quick)
    for slider in sliders:
        slider.change(edited, inputs, [view, line], **quick)
    sample.click(lambda number: _reported(studio.sample, int(number or 0)), seed, token, api_visibility="private")
    more.click(in_strip, inputs, row, api_visibility="private")
    return choice


def _labelled(studio: Studio, names: list[str], strengths: Mapping[str, float]) -> list[Any]:
    """The names, and a slider for each; a direction that was chosen before keeps its strength."""
    import gradio as gr

    visible = [
        gr.update(visible=True, label=name, info=_reported(studio.safe_range, name), value=strengths.get(name, 0.0))
        for name in names
    ]
    return [names, *visible, *(gr.update(visible=False, value=0.0) for _ in range(CHOSEN - len(names)))]


def _reported(job: Callable[..., Any], *arguments: Any) -> Any:
    """Run a job; what goes wrong is shown on the page."""
    import gradio as gr

    try:
        return job(*arguments)
    except FlowgradError as error:
        raise gr.Error(escape(str(error))) from error


def _edited(studio: Studio, token: str, mixture: dict[str, float]) -> tuple[str, str]:
    """Before and after as HTML, and the command line."""
    if not token:
        return "", ""
    subject = _reported(studio.subjects.get, token)
    after = _reported(studio.edit, token, mixture)
    link = escape(f"/flowgrad/result/{token}?{urlencode({name: f'{s:g}' for name, s in mixture.items() if s})}")
    size = "{} x {}".format(*subject.size)
    download = f'<p><a class="fg-button" href="{link}" download>Download at full size ({size})</a></p>'
    note = f'<p class="fg-note">Note: {escape(subject.warning)}.</p>' if subject.warning else ""
    figures = _figures([("before", subject.small), ("after", after)])
    return f"{figures}{note}{download}", studio.command(subject.name, mixture)


def _figures(pairs: Sequence[tuple[str, Image.Image]]) -> str:
    figures = (
        f'<figure><img src="{image_url(image)}" alt="the photo, {label}"><figcaption>{label}</figcaption></figure>'
        for label, image in pairs
    )
    return f'<div class="fg-pair">{"".join(figures)}</div>'


def _strip(studio: Studio, token: str, mixture: dict[str, float]) -> str:
    chosen = {name: strength or 1.0 for name, strength in mixture.items()}
    if not token or not chosen:
        return "<p>Take a photo and a direction first.</p>"
    picture = strip(_reported(studio.strip, token, chosen), [strength_label(s) for s in STRIP])
    return f'<img src="{image_url(picture)}" alt="the face at several strengths">'


def _train(studio: Studio) -> Any:
    import gradio as gr
    import pandas as pd

    with gr.Row():
        with gr.Column(scale=1):
            gr.HTML(_drop("train", "fg-photos", "Drop ten photos, or choose them", TRAINING_PHOTOS), js_on_load=None)
            photos = gr.Textbox(elem_id="fg-photos", elem_classes="fg-token", label="photos")
            text = gr.Textbox(label="What they shall become", placeholder="a smiling face", elem_id="fg-text")
            source = gr.Textbox(label="What they are", placeholder="a serious face", elem_id="fg-source")
            name = gr.Textbox(label="Name in the bank", placeholder="my-smile", elem_id="fg-name")
            count = gr.Slider(1, 100, load_recipe().iterations, step=1, label="Iterations", elem_id="fg-iterations")
            start = gr.Button("Train and save", variant="primary", elem_id="fg-start")
        with gr.Column(scale=2):
            losses = gr.LinePlot(x="evaluation", y="loss", height=180, elem_id="fg-losses")
            view = gr.HTML("", elem_classes="fg fg-small", elem_id="fg-training", js_on_load=None)

    def train(tokens: str, text: str, source: str, name: str, count: float) -> Iterator[tuple[Any, str]]:
        steps = studio.train((tokens or "").split(), text or "", (name or "").strip(), source or "", int(count))
        while (progress := _reported(next, steps, None)) is not None:
            message = f"evaluation {len(progress.losses)}, loss {progress.losses[-1]:.3f}"
            if progress.entry:
                message = f"saved as {progress.entry.name}: it is under Browse and Try now"
            curve = pd.DataFrame({"evaluation": range(len(progress.losses)), "loss": progress.losses})
            figures = _numbered("before", progress.before) + _numbered("after", progress.after)
            yield curve, f'<p role="status">{escape(message)}</p>{figures}'

    return start.click(train, [photos, text, source, name, count], [losses, view], api_visibility="private")


def _numbered(label: str, images: Sequence[Image.Image]) -> str:
    return _figures([(f"{label} {i}", image) for i, image in enumerate(images, 1)])
