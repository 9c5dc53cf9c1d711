"""The page of `flowgrad ui`, in Gradio's parts: browse, try and train directions, and paint, on this machine alone."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

from PIL import Image

from directions.apply.identity import SAME_PERSON, SURELY_THE_SAME
from directions.bank.gallery import image_url, to_page
from directions.figures import strength_label, strip
from directions.page.paint_tab import paint_tab
from directions.page.painting import Easel
from directions.page.parts import figures, note, reported
from directions.page.session import CHOSEN, STRIP, TRAINING_PHOTOS, UPLOAD_LIMIT, Studio, View
from directions.page.shelf import Subject
from directions.train.recipe import load_recipe

_WAITING = 64  # events of all visitors that wait to be answered
_LIMIT = 0.5  # identity distance that is kept, where nothing else is chosen


def to_blocks(studio: Studio, easel: Easel) -> Any:
    """The page of a studio, with an easel to paint on. Needs the extra `ui`."""
    import gradio as gr

    with gr.Blocks(title="flowgrad", analytics_enabled=False) as page:
        gr.Markdown(f"# flowgrad\nDirections for `{studio.model.name}`. Photos are kept in memory, never on a disk.")
        with gr.Tab("Browse"):
            gallery = gr.HTML(_gallery(studio), elem_id="fg-browse", js_on_load=None)
        with gr.Tab("Try"):
            choice = _try(studio)
        with gr.Tab("Train"):
            trained = _train(studio)
        with gr.Tab("Paint"):
            paint_tab(easel)

        def refreshed() -> tuple[str, Any]:
            return _gallery(studio), gr.update(choices=studio.names())

        for when in (page.load, trained.then):  # a page that is opened later shows what was trained meanwhile
            when(refreshed, None, [gallery, choice], show_progress="hidden", api_visibility="private")
    return page.queue(max_size=_WAITING)


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
            with gr.Row():
                token = gr.Textbox(elem_id="fg-token", elem_classes="fg-token", label="photo")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=80, scale=1)
                sample = gr.Button("Take a sample of the model", min_width=160, scale=3)
            choice = gr.Dropdown(
                studio.names(), multiselect=True, max_choices=CHOSEN, label="Directions", elem_id="fg-choice"
            )
            sliders = [  # as many as directions can be mixed, hidden until some are chosen
                gr.Slider(-1.5, 1.5, 0, step=0.05, label=f"{i + 1}", visible=False, elem_id=f"fg-slider-{i}")
                for i in range(CHOSEN)
            ]
            keep = gr.Checkbox(label="Keep the person", visible=studio.keeps_identity, elem_id="fg-keep")
            limit = gr.Slider(
                *(0.1, SAME_PERSON, _LIMIT),
                step=0.05,
                label="Identity distance, at most",
                info=f"{SAME_PERSON:g} is the same person to dlib, {SURELY_THE_SAME:g} surely. "
                "It holds until it is switched off.",
                visible=False,
                elem_id="fg-limit",
            )
        with gr.Column(scale=2):
            view = gr.HTML("", elem_id="fg-view", elem_classes="fg", js_on_load=None)
            line = gr.Textbox(label="As a command", interactive=False, buttons=["copy"], elem_id="fg-command")
            more = gr.Button("Show a strip")
            row = gr.HTML("", elem_classes="fg fg-wide", elem_id="fg-strip", js_on_load=None)

    def edited(token: str, kept: bool, most: float, names: list[str] | None, *strengths: float) -> tuple[str, str]:
        mixture = dict(zip(names or (), strengths, strict=False))
        return _edited(studio, token, mixture, most if kept else None)

    def in_strip(token: str, names: list[str] | None, *strengths: float) -> str:
        return _strip(studio, token, dict(zip(names or (), strengths, strict=False)))

    def labelled(names: list[str] | None, before: list[str], *strengths: float) -> list[Any]:
        return _labelled(studio, list(names or ())[:CHOSEN], dict(zip(before, strengths, strict=False)))

    before = gr.State([])
    inputs = [token, keep, limit, choice, *sliders]
    quick: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
    chosen = choice.change(labelled, [choice, before, *sliders], [before, *sliders], **quick)
    chosen.then(edited, inputs, [view, line], **quick)
    keep.change(lambda kept: gr.update(visible=kept), keep, limit, **quick)
    parts: list[Any] = [token, keep, limit, *sliders]
    for part in parts:
        part.change(edited, inputs, [view, line], **quick)
    token.change(lambda: "", None, row, **quick)  # the strip was another photo's
    sample.click(lambda number: reported(studio.sample, int(number or 0)), seed, token, api_visibility="private")
    more.click(in_strip, [token, choice, *sliders], row, api_visibility="private")
    return choice


def _labelled(studio: Studio, names: list[str], strengths: Mapping[str, float]) -> list[Any]:
    """The names, and a slider for each; a direction that was chosen before keeps its strength."""
    import gradio as gr

    visible = [
        gr.update(visible=True, label=name, info=reported(studio.safe_range, name), value=strengths.get(name, 0.0))
        for name in names
    ]
    return [names, *visible, *(gr.update(visible=False, value=0.0) for _ in range(CHOSEN - len(names)))]


def _edited(studio: Studio, token: str, mixture: Mapping[str, float], limit: float | None = None) -> tuple[str, str]:
    """Before and after as HTML, and the command line."""
    if not token:
        return "", ""
    subject = reported(studio.subjects.get, token)
    view = reported(studio.edit, token, mixture, limit)
    query = [("direction", f"{name}:{strength:g}") for name, strength in mixture.items() if strength]
    query += [("within", f"{limit:g}")] if limit is not None else []
    link = escape(f"/flowgrad/result/{token}?{urlencode(query)}")
    size = "{} x {}".format(*subject.size)
    download = f'<p><a class="fg-button" href="{link}" download>Download at full size ({size})</a></p>'
    said = f'<p role="status">{_said(subject, view)}</p>'
    shown = figures([("before", subject.url), ("after", image_url(view.image))])
    remarks = "".join(map(note, subject.notes))
    return f"{shown}{said}{remarks}{download}", studio.command(subject.name, mixture, limit)


def _said(subject: Subject, view: View) -> str:
    """How many faces were edited, and what the identity budget left of the strength."""
    count = len(subject.faces)
    if subject.has_faces:
        told = f"{view.changed} of {count} face{'s' * (count > 1)} edited."
    else:
        told = "The photo was edited as one image." if view.changed else "Nothing was edited."
    for number, (share, distance) in enumerate(view.kept, 1):
        whose = f"Face {number} from the left" if len(view.kept) > 1 else "It"
        told += f" {whose} took {share:.0%} of the strength, at identity distance {distance:.2f}."
    return told


def _strip(studio: Studio, token: str, mixture: Mapping[str, float]) -> str:
    chosen = {name: strength or 1.0 for name, strength in mixture.items()}
    if not token or not chosen:
        return "<p>Take a photo and a direction first.</p>"
    picture = strip(reported(studio.strip, token, chosen), [strength_label(s) for s in STRIP])
    return f'<img src="{image_url(picture)}" alt="the face at several strengths, without a limit on identity">'


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
        while (progress := reported(next, steps, None)) is not None:
            message = f"evaluation {len(progress.losses)}, loss {progress.losses[-1]:.3f}"
            if progress.entry:
                message = f"saved as {progress.entry.name}: it is under Browse and Try now"
            curve = pd.DataFrame({"evaluation": range(len(progress.losses)), "loss": progress.losses})
            shown = _numbered("before", progress.before) + _numbered("after", progress.after)
            yield curve, f'<p role="status">{escape(message)}</p>{shown}'

    return start.click(train, [photos, text, source, name, count], [losses, view], api_visibility="private")


def _numbered(label: str, images: Sequence[Image.Image]) -> str:
    return figures([(f"{label} {i}", image_url(image)) for i, image in enumerate(images, 1)])
