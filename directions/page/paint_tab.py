"""The Paint part of the page, in Gradio's parts: a canvas of two layers, what it shall show, and candidates."""

from collections.abc import Iterable, Sequence

from PIL import Image

from directions.bank.pictures import data_url, image_url, to_png
from directions.page.painting import CANDIDATES, SIDE, Easel, own_strength
from directions.page.parts import figures, note, reported
from directions.paint.methods import DEFAULT_METHOD, Method, candidate_name
from directions.progress import Silent, T

PALETTE = (  # of faces: skin, hair, lips, backgrounds, eyes, and the white of a region
    *("#d8a488", "#f1c9ae", "#8d5a3c", "#46301f", "#1d1714", "#c9a063", "#b5504d"),
    *("#78909c", "#3d4a52", "#ffffff", "#4a6d8c", "#4d6b45"),
)
LAYERS = ["Painting", "Region"]
TOKENS = "canvas => (canvas?.layers ?? []).map(layer => layer.path).join(' ')"  # what the server answered for each
EYES, MOUTH = ((30, 29), (70, 29)), (50, 70)  # where an aligned face has them, in hundredths of its width and height
FRAMING = (
    f"A face fills the canvas: the eyes are at {EYES[0][0]} and {EYES[1][0]} % of its width and {EYES[0][1]} % of its "
    f"height, the mouth at {MOUTH[1]} %, and the chin touches the lower edge."
)
REGION = "Strokes on the layer *Region*, in any colour, say where its words apply: choose the layer below the canvas."


def framing_guide() -> str:
    """How a face is framed, as a line drawing of the canvas, in SVG."""
    eyes = "".join(f'<ellipse cx="{x}" cy="{y}" rx="9" ry="4"/>' for x, y in EYES)
    mouth = '<ellipse cx="{}" cy="{}" rx="14" ry="5"/>'.format(*MOUTH)
    outline = '<path d="M10 0 C4 60 26 98 50 99 C74 98 96 60 90 0"/>'
    return (
        '<svg class="fg-framing" viewBox="0 0 100 100" role="img" aria-label="Where eyes, mouth and chin belong">'
        f"{outline}{eyes}{mouth}</svg>"
    )


def downloads(candidates: Sequence[tuple[str, Image.Image]], seed: int) -> str:
    """Links to candidates with their labels, as PNG files named as the command names them."""
    files = [(candidate_name(seed, i), data_url(to_png(image), "image/png")) for i, (_, image) in enumerate(candidates)]
    link = '<a class="fg-button" href="{}" download="{}">Download {}</a>'
    return f"<p>{' '.join(link.format(url, name, i) for i, (name, url) in enumerate(files))}</p>"


def paint_tab(easel: Easel) -> None:
    """The parts of a tab, and what its button does."""
    import gradio as gr

    class Shown(Silent):
        """A Reporter that shows progress on the page."""

        def __init__(self, progress: gr.Progress) -> None:
            super().__init__()
            self.progress = progress

        def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
            """Return the items unchanged."""
            shown: Iterable[T] = self.progress.tqdm(items, desc=label, total=total)
            return shown

    with gr.Row():
        with gr.Column(scale=1, min_width=600):
            canvas = gr.ImageEditor(
                label="Canvas",
                placeholder="Choose the brush on the left, then paint",
                sources=(),
                transforms=(),
                buttons=[],
                brush=gr.Brush(default_size=40, colors=list(PALETTE), default_color=PALETTE[0]),
                layers=gr.LayerOptions(allow_additional_layers=False, layers=LAYERS),
                canvas_size=(SIDE, SIDE),
                fixed_canvas=True,
                height=SIDE + 120,
                elem_id="fg-canvas",
            )
            framed = easel.studio.model.config.aligned_faces
            if framed:
                gr.HTML(framing_guide(), elem_classes="fg", js_on_load=None)
            gr.Markdown(f"{FRAMING} {REGION}" if framed else REGION)
        with gr.Column(scale=1):
            text = gr.Textbox(label="What it shows", placeholder="an old face", elem_id="fg-paint-text")
            words = gr.Textbox(label="Words for the region", placeholder="a smiling face", elem_id="fg-paint-words")
            with gr.Row():
                method = gr.Dropdown([each.value for each in Method], value=DEFAULT_METHOD.value, label="Method")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=80)
            strength = gr.Slider(
                *(0.05, 0.95, own_strength(DEFAULT_METHOD.value)),
                step=0.05,
                label="Strength",
                info="Low: as it was painted. High: its rough colours alone.",
            )
            count = gr.Slider(1, CANDIDATES, 4, step=1, label="Candidates", elem_id="fg-paint-count")
            start = gr.Button("Paint", variant="primary", elem_id="fg-paint-start")
    view = gr.HTML("", elem_id="fg-painted", elem_classes="fg", js_on_load=None)
    tokens = gr.Textbox(elem_id="fg-layers", elem_classes="fg-token", label="layers")

    def paint(
        tokens: str | None,
        text: str | None,
        words: str | None,
        method: str,
        strength: float,
        count: float,
        seed: float | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  how Gradio passes it
    ) -> str:
        numbers = (float(strength), int(count), int(seed or 0), Shown(progress))
        painted = reported(easel.paint, (tokens or "").split(), text or "", words or "", method, *numbers)
        shown = [(label, image_url(image)) for label, image in painted.pictures]
        links = downloads(painted.pictures[-int(count) :], int(seed or 0))
        return figures(shown, "the canvas") + links + "".join(map(note, painted.notes))

    method.change(
        lambda name: reported(own_strength, name), method, strength, show_progress="hidden", api_visibility="private"
    )
    sent = start.click(None, canvas, tokens, js=TOKENS, api_visibility="private")
    sent.then(paint, [tokens, text, words, method, strength, count, seed], view, api_visibility="private")
