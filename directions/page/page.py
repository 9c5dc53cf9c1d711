"""`flowgrad ui`: a page to browse, try and train directions, on this machine alone. Needs the extra `ui` (Gradio).

Photos are sent to a route of our own and stay in memory; Gradio's routes that write or read files are closed.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from html import escape
from importlib.util import find_spec
from typing import Any
from urllib.parse import unquote, urlencode

from directions.bank.gallery import STYLE, image_url, to_cards
from directions.figures import strength_label, strip
from directions.page.session import CHOSEN, STRIP, TRAINING_PHOTOS, UPLOAD_LIMIT, Progress, Studio
from directions.train.recipe import load_recipe
from flowgrad.errors import FlowgradError, UsageError

_JSON_LIMIT = 1 << 20  # bytes of any other request
_CLOSED = ("upload", "file", "proxy", "process_recording", "vibe-edit", "stream", "run-history", "deep_link", "dev")
LOCAL = ("127.0.0.1", "localhost", "[::1]")

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

_STYLE = (
    STYLE
    + """
.fg-drop { display: block; border: 2px dashed #9a9aa5; border-radius: 10px; padding: 22px; text-align: center;
  cursor: pointer; }
.fg-drop:focus-within { outline: 3px solid #1f5fa8; }
.fg-drop input { display: block; margin: 8px auto 0 !important; padding: 0 !important; border: 0 !important;
  width: auto !important; max-width: 100%; font-size: 14px !important; }
.fg-pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 12px; }
.fg-pair figure { margin: 0; } .fg-pair img { width: 100%; height: auto; border-radius: 6px; }
.fg-small .fg-pair { grid-template-columns: repeat(4, minmax(60px, 150px)); margin: 8px 0; }
.fg-wide img { max-width: 100%; }
.fg-button { display: inline-block; padding: 8px 16px; border-radius: 8px; background: #1f5fa8; color: #fff !important;
  text-decoration: none; }
.fg-note { background: #fff6e0; color: #5c4300; border-radius: 8px; padding: 8px 12px; }
.fg-token { display: none !important; }
"""
)
# Sends chosen or dropped files to our own route and tells Gradio the token it answers with.
_HEAD = """<script>
async function fgSend(zone, files) {
  const said = zone.querySelector("output"), most = Number(zone.dataset.most), tokens = [], odd = [];
  for (const file of [...files].slice(0, most)) {
    if (file.size > Number(zone.dataset.limit)) { said.textContent = `${file.name} is too large`; return; }
    said.textContent = `reading ${file.name} …`;
    const way = `${zone.dataset.route}?name=${encodeURIComponent(file.name)}`;
    const answer = await fetch(way, { method: "POST", body: file }).catch(() => null);
    if (!answer) { said.textContent = "flowgrad does not answer: is it still running?"; return; }
    const [token, warning] = (await answer.text()).split("\\n");
    if (!answer.ok) { said.textContent = token; return; }
    tokens.push(token);
    if (warning) odd.push(`${file.name}: ${warning}`);
  }
  if (files.length > most && most > 1) odd.push(`only the first ${most} were taken`);
  said.textContent = most > 1 ? [`${tokens.length} photos`, ...odd].join("; ") : "";
  const box = document.querySelector(`#${zone.dataset.target} textarea, #${zone.dataset.target} input`);
  box.value = tokens.join(" ");
  box.dispatchEvent(new Event("input", { bubbles: true }));
}
const fgZone = event => event.target.closest ? event.target.closest(".fg-drop") : null;
document.addEventListener("change", event => {
  const zone = fgZone(event);
  if (zone && event.target.type === "file") { fgSend(zone, event.target.files); event.target.value = ""; }
});
document.addEventListener("dragover", event => { if (fgZone(event)) event.preventDefault(); });
document.addEventListener("drop", event => {
  const zone = fgZone(event);
  if (zone) { event.preventDefault(); fgSend(zone, event.dataTransfer.files); }
});
</script>"""


def require() -> None:
    """Raise FlowgradError unless the extra `ui` is installed."""
    if find_spec("gradio") is None:
        raise FlowgradError("the page needs Gradio, which is not installed. Run: pip install 'flowgrad[ui]'")


def serve(studio: Studio, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve the page until it is interrupted. Raises FlowgradError if the port is taken."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(build(studio, host), host, port, log_level="warning"))
    try:
        server.run()
    except SystemExit as error:
        raise FlowgradError(f"port {port} of {host} cannot be used. Choose another with --port.") from error


def build(studio: Studio, host: str = "127.0.0.1") -> App:
    """The whole application: our routes, Gradio's page, and the guard before both."""
    require()
    import gradio as gr
    from fastapi import FastAPI

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_routes(app, studio)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # nothing from the network
    page = gr.mount_gradio_app(
        app, _page(studio), "/", css=_STYLE, head=_HEAD, theme=theme, show_error=True, footer_links=[], ssr_mode=False
    )
    return guarded(page, LOCAL if host in LOCAL else ())


def guarded(app: App, hosts: tuple[str, ...]) -> App:
    """Refuse requests that are too large, come from another page, or ask for what is closed.

    hosts: the names that this machine may be called by; () for any, where it serves others too.
    """

    async def guard(scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        refusal = _refusal(scope, hosts)
        if refusal:
            await _answer(send, *refusal)
            return
        await _counted(app, scope, receive, send)

    return guard


async def _counted(app: App, scope: Scope, receive: Any, send: Any) -> None:
    """Pass a request on; one whose body grows beyond its limit is answered here, and gone for the application."""
    body, limit, refused = 0, _limit(scope), False

    async def take() -> Any:
        nonlocal body, refused
        message = {"type": "http.disconnect"} if refused else await receive()
        body += len(message.get("body", b""))
        if body > limit and not refused:
            refused = True
            await _answer(send, 413, _too_large(limit))
        return {"type": "http.disconnect"} if refused else message

    async def give(message: Any) -> None:
        if not refused:
            await send(message)

    try:
        await app(scope, take, give)
    except Exception:
        if not refused:
            raise


def _limit(scope: Scope) -> int:
    return UPLOAD_LIMIT if scope["path"].startswith("/flowgrad/photo") else _JSON_LIMIT


def _too_large(limit: int) -> str:
    return f"that is too large: at most {limit >> 20} MB are taken. Scale the photo down first."


def _refusal(scope: Scope, hosts: tuple[str, ...]) -> tuple[int, str] | None:
    headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
    path = unquote(scope["path"])
    host, origin = headers.get("host", ""), headers.get("origin")
    if hosts and host.rpartition(":")[0] not in hosts and host not in hosts:
        return 403, "this page is for this machine alone"
    if origin and origin.partition("://")[2] != host:
        return 403, "a request from another page"
    parts = path.split("/")
    if ".." in parts or any(part.startswith(_CLOSED) for part in parts if "gradio_api" in parts):
        return 403, "there is nothing here"
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > _limit(scope):
        return 413, _too_large(_limit(scope))
    return None


async def _answer(send: Any, status: int, text: str) -> None:
    head = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": text.encode()})


def _add_routes(app: Any, studio: Studio) -> None:
    """`POST /flowgrad/photo/try|train`: bytes in, token out. `GET /flowgrad/result/TOKEN`: an edited photo."""
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response

    def taken(purpose: str, name: str, content: bytes) -> str:
        return studio.receive(name, content) if purpose == "try" else "\n".join(studio.keep(name, content))

    async def send_photo(request: Request) -> Response:
        purpose, name = request.path_params["purpose"], request.query_params.get("name", "photo")
        if purpose not in ("try", "train"):
            return PlainTextResponse("there is nothing here", 404)
        try:
            return PlainTextResponse(await asyncio.to_thread(taken, purpose, name, await request.body()))
        except FlowgradError as error:
            return PlainTextResponse(str(error), 400)

    async def fetch_result(request: Request) -> Response:
        try:
            mixture = _mixture(request.query_params.items())
            made = await asyncio.to_thread(studio.download, request.path_params["token"], mixture)
        except FlowgradError as error:
            return PlainTextResponse(str(error), 404)
        stem = made.name.rpartition(".")[0] or made.name
        file = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in stem)
        told = {"Content-Disposition": f'attachment; filename="{file}-edited.{made.kind}"'}
        return Response(made.content, media_type=f"image/{made.kind}", headers=told)

    app.add_route("/flowgrad/photo/{purpose}", send_photo, methods=["POST"])
    app.add_route("/flowgrad/result/{token}", fetch_result, methods=["GET"])


def _mixture(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Names and strengths of an address. Raises UsageError for a strength that is no number."""
    try:
        return {name: float(strength) for name, strength in pairs}
    except ValueError as error:
        raise UsageError(f"a strength is no number ({error})") from error


# --- the page ----------------------------------------------------------------------------------------------------


def _page(studio: Studio) -> Any:
    import gradio as gr

    with gr.Blocks(title="flowgrad", analytics_enabled=False) as page:
        gr.Markdown(f"# flowgrad\nDirections for `{studio.model.name}`. Photos are kept in memory, never on a disk.")
        with gr.Tab("Browse"):
            cards, tag = _browse(studio)
        with gr.Tab("Try"):
            choice = _try(studio)
        with gr.Tab("Train"):
            trained = _train(studio)

        def refreshed() -> tuple[str, Any, Any]:
            return _cards(studio), gr.update(choices=_tags(studio)), gr.update(choices=studio.names())

        for when in (page.load, trained.then):  # a page that is opened later shows what was trained meanwhile
            when(refreshed, None, [cards, tag, choice], show_progress="hidden", api_visibility="private")
    return page


def _tags(studio: Studio) -> list[tuple[str, str]]:
    return [("all", ""), *((tag, tag) for tag in studio.tags())]


def _browse(studio: Studio) -> tuple[Any, Any]:
    import gradio as gr

    with gr.Row():
        words = gr.Textbox(label="Search by name, text or tag", elem_id="fg-search")
        tag = gr.Dropdown(_tags(studio), value="", label="Tag")
    cards = gr.HTML(_cards(studio), elem_classes="fg", elem_id="fg-cards", js_on_load=None)

    def find(words: str, tag: str) -> str:
        return _cards(studio, words, tag or "")

    for each in (words, tag):
        each.change(find, [words, tag], cards, show_progress="hidden", api_visibility="private")
    return cards, tag


def _cards(studio: Studio, words: str = "", tag: str = "") -> str:
    found = studio.entries(words, tag)
    return to_cards(found) if found else "<p>No direction has these words.</p>"


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
            sliders = _sliders()
        with gr.Column(scale=2):
            view = gr.HTML("", elem_id="fg-view", elem_classes="fg", js_on_load=None)
            line = gr.Textbox(label="The same on the command line", interactive=False, elem_id="fg-command")
            more = gr.Button("Show a strip")
            row = gr.HTML("", elem_classes="fg fg-wide", elem_id="fg-strip", js_on_load=None)

    def edited(token: str, names: list[str] | None, *strengths: float) -> tuple[str, str]:
        return _edited(studio, token, dict(zip(names or (), strengths, strict=False)))

    def in_strip(token: str, names: list[str] | None, *strengths: float) -> str:
        return _strip(studio, token, dict(zip(names or (), strengths, strict=False)))

    def labelled(names: list[str] | None, before: list[str], *strengths: float) -> list[Any]:
        return _labelled(studio, list(names or ())[:CHOSEN], dict(zip(before, strengths, strict=False)))

    before = gr.State([])
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


def _sliders() -> list[Any]:
    """As many as directions can be mixed, hidden until some are chosen."""
    import gradio as gr

    return [
        gr.Slider(-1.5, 1.5, 0, step=0.05, label=f"strength {i + 1}", visible=False, elem_id=f"fg-slider-{i}")
        for i in range(CHOSEN)
    ]


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
    result = _reported(studio.edit, token, mixture)
    link = escape(f"/flowgrad/result/{token}?{urlencode({name: f'{s:g}' for name, s in mixture.items() if s})}")
    told = escape("; ".join(filter(None, (subject.warning, result.verdict))))
    figures = _figures((("before", subject.small), ("after", result.image)))
    size = "{} x {}".format(*subject.size)
    download = f'<p><a class="fg-button" href="{link}" download>Download at full size ({size})</a></p>'
    note = f'<p class="fg-note">Note: {told}.</p>' if told else ""
    return f"{figures}{note}{download}", studio.command(subject.name, mixture)


def _figures(pairs: Any) -> str:
    made = (
        f'<figure><img src="{image_url(pixels)}" alt="the photo, {escape(label)}">'
        f"<figcaption>{escape(label)}</figcaption></figure>"
        for label, pixels in pairs
    )
    return f'<div class="fg-pair">{"".join(made)}</div>'


def _strip(studio: Studio, token: str, mixture: dict[str, float]) -> str:
    chosen = {name: strength or 1.0 for name, strength in mixture.items()}
    if not token or not chosen:
        return "<p>Take a photo and a direction first.</p>"
    picture = strip(_reported(studio.strip, token, chosen), [strength_label(s) for s in STRIP])
    return f'<img src="{image_url(picture)}" alt="the face at several strengths">'


def _train(studio: Studio) -> Any:
    import gradio as gr

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
            view = gr.HTML("", elem_classes="fg fg-small", elem_id="fg-training", js_on_load=None)

    def train(tokens: str, text: str, source: str, name: str, count: float) -> Iterator[str]:
        steps = studio.train((tokens or "").split(), text or "", (name or "").strip(), source or "", int(count))
        while (progress := _reported(next, steps, None)) is not None:
            yield _progress(progress)

    return start.click(train, [photos, text, source, name, count], view, api_visibility="private")


def _progress(progress: Progress) -> str:
    """The losses as a curve, and photos before and after."""
    said = f"evaluation {len(progress.losses)}, loss {progress.losses[-1]:.3f}"
    if progress.entry:
        said = f"saved as {progress.entry.name}: it is under Browse and Try now"
    rows = (("before", progress.before), ("after", progress.after))
    shown = "".join(_figures([(f"{label} {i}", image) for i, image in enumerate(images, 1)]) for label, images in rows)
    return f'<p role="status">{escape(said)}</p>{loss_curve(progress.losses)}{shown}'


def loss_curve(losses: tuple[float, ...]) -> str:
    """Losses as an SVG; one evaluation is a point."""
    width, height = 520, 150
    low, high = min(losses), max(losses)
    steps = max(len(losses) - 1, 1)
    points = [
        (60 + (width - 80) * i / steps, 25 + (height - 50) * (high - loss) / max(high - low, 1e-9))
        for i, loss in enumerate(losses)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    x, y = points[-1]
    texts = [(52.0, points[0][1] + 4, "end", f"{losses[0]:.3f}"), (60.0, 12.0, "start", "loss")]
    texts += [(x, y + 18, "end", f"{losses[-1]:.3f}")] if len(losses) > 1 else []
    labels = "".join(
        f'<text x="{a:.1f}" y="{b:.1f}" font-size="12" text-anchor="{anchor}" fill="#4a4a54">{text}</text>'
        for a, b, anchor, text in texts
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="loss from {losses[0]:.3f} to {losses[-1]:.3f}">'
        f'<polyline points="{path}" fill="none" stroke="#1f5fa8" stroke-width="2.5"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#c8501e"/>{labels}</svg>'
    )


def in_thread(studio: Studio, port: int) -> Callable[[], None]:
    """Serve from a thread, for tests and notebooks; returns what stops it."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(build(studio), "127.0.0.1", port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(10)

    return stop
