"""The Paint part of the page, in Gradio's parts: a canvas of two layers, what it shall show, and candidates."""

from collections.abc import Iterable

from directions.bank.pictures import image_url
from directions.page.painting import CANDIDATES, SIDE, Easel, own_strength
from directions.page.parts import figures, note, reported
from directions.paint.methods import DEFAULT_METHOD, Method
from directions.progress import Silent, T

PALETTE = (  # of faces: skin, hair, lips, backgrounds, eyes, and the white of a region
    *("#d8a488", "#f1c9ae", "#8d5a3c", "#46301f", "#1d1714", "#c9a063", "#b5504d"),
    *("#78909c", "#3d4a52", "#ffffff", "#4a6d8c", "#4d6b45"),
)
LAYERS = ["Painting", "Region"]
TOKENS = "canvas => (canvas?.layers ?? []).map(layer => layer.path).join(' ')"  # what the server answered for each
FRAMING = "A face fills the canvas: the eyes are at 0.3 and 0.7 of its width and 0.29 of its height, the mouth at 0.7."
REGION = "Strokes on the layer *Region*, in any colour, say where its words apply: choose the layer below the canvas."


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
            gr.Markdown(f"{FRAMING} {REGION}" if easel.studio.model.config.aligned_faces else REGION)
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
        return figures(shown, "the canvas") + "".join(map(note, painted.notes))

    method.change(
        lambda name: reported(own_strength, name), method, strength, show_progress="hidden", api_visibility="private"
    )
    sent = start.click(None, canvas, tokens, js=TOKENS, api_visibility="private")
    sent.then(paint, [tokens, text, words, method, strength, count, seed], view, api_visibility="private")
