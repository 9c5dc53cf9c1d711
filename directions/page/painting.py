"""What the Paint part of the page does, without the page: layers of a canvas, kept in memory, become pictures.

It is the job of `flowgrad paint`. Layers come as PNG bytes and are forgotten when newer ones need the room.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from directions.file.rules import INTEGER_LIMIT
from directions.page.session import Studio
from directions.page.shelf import Shelf
from directions.paint.checks import check_known, of_unheard, reads_words, to_target
from directions.paint.job import STRENGTHS, Job, Plan, open_job, to_job
from directions.paint.methods import Method, check_strength
from directions.paint.request import Masked, to_mask, to_strokes
from directions.paint.run import candidates, labelled
from directions.photo.reading import read_photo
from directions.progress import Reporter
from flowgrad.errors import UsageError
from flowgrad.guidance.contrast import Contrast

SIDE = 512  # of the canvas in pixels, so that a layer takes 1 MiB in memory
KEPT_LAYERS = 64
CANDIDATES = 8  # at once, at most


@dataclass(frozen=True)
class Painted:
    """The painting, its blur and candidates, with their labels, and what whoever painted may want to know."""

    pictures: list[tuple[str, Image.Image]]
    notes: tuple[str, ...]


def to_method(name: str) -> Method:
    """A method by its name. Raises UsageError for another."""
    try:
        return Method(name)
    except ValueError as error:
        known = ", ".join(method.value for method in Method)
        raise UsageError(f"no method is called {str(name)[:80]!r}: choose one of {known}") from error


def own_strength(name: str) -> float:
    """The strength of a method where nothing else is asked for."""
    return STRENGTHS[to_method(name)]


class Easel:
    """The model of a studio, and the layers that were painted for it."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.layers: Shelf[Image.Image] = Shelf(KEPT_LAYERS, "the painting is no longer in memory. Press Paint again.")
        self.reads = reads_words(studio.model.config)

    def receive(self, content: bytes) -> str:
        """Decode a layer of the canvas; its token. Raises FlowgradError for what is none."""
        with self.studio.decoding:
            pixels = read_photo(Path("the layer"), io.BytesIO(content)).pixels
        if pixels.size != (SIDE, SIDE):
            raise UsageError(f"a layer has {SIDE} x {SIDE} pixels, and this one {pixels.width} x {pixels.height}")
        return self.layers.add(pixels.convert("RGBA"))

    def paint(
        self,
        tokens: Sequence[str],
        text: str,
        words: str,
        method: str,
        strength: float,
        count: int,
        seed: int,
        reporter: Reporter,
    ) -> Painted:
        """Paint candidates that follow the first layer; `words` are for what is painted on the second.

        Raises UsageError for a wrong call before anything is computed.
        """
        plan, model = Plan(to_method(method), strength, None, seed), self.studio.model
        check_strength(strength)
        if not 1 <= count <= CANDIDATES:
            raise UsageError(f"from 1 to {CANDIDATES} candidates are painted at once; got {count}")
        if not 0 <= seed < INTEGER_LIMIT:
            raise UsageError(f"a seed is a whole number from 0 to {INTEGER_LIMIT - 1}; got {seed}")
        layers = [self.layers.get(token) for token in tokens]
        if not layers or not is_painted(layers[0]):
            raise UsageError("paint something on the layer Painting first: coarse strokes will do")
        strokes = to_strokes(layers[0], model.config.size, "the painting")
        masked = self._masked(layers[1:], words.strip())
        target = to_target(text.strip(), None, model.config, self.reads, None, False)
        if not self.reads:
            check_known([part.target for part in masked], model.config, None, False)
        job = self._job(target, masked, text.strip())
        outcome = candidates(job, strokes, plan, count, reporter)
        unheard = of_unheard(target, plan.method, self.reads, model.name)
        return Painted(labelled(outcome, strokes), (*strokes.warnings, *unheard))

    def _masked(self, layers: Sequence[Image.Image], words: str) -> tuple[Masked, ...]:
        """Words for what is painted, in any colour, on a layer; nothing without either."""
        config, painted = self.studio.model.config, bool(layers) and is_painted(layers[0])
        if not painted and not words:
            return ()
        if not words:
            raise UsageError("the region has no words: write what it shall show, or clear the layer Region")
        if not painted:
            raise UsageError("the region is not painted: paint it on the layer Region, or leave its words out")
        mask = to_mask(layers[0].getchannel("A"), config.size, "the layer Region")
        return (Masked(mask, words, Contrast.parse(words, config.subject)),)

    def _job(self, target: Contrast | None, masked: Sequence[Masked], text: str) -> Job:
        """The loaded model, or another one at the words, where it reads them itself."""
        model = self.studio.model
        if self.reads and (text or masked):
            return open_job(model.config, str(model.device), self.studio.precision, None, target, masked, text)
        return to_job(model, None, target, masked, self.reads)


def is_painted(layer: Image.Image) -> bool:
    """Whether anything of an RGBA layer is visible."""
    return layer.getchannel("A").getbbox() is not None
