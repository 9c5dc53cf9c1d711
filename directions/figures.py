"""Pictures for people: strips, contact sheets, before and after, and the curves of a training.

Images are drawn with Pillow, so that applying a direction never waits for matplotlib; curves with matplotlib.
"""

import base64
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image, ImageDraw, ImageFont

from flowgrad.errors import UsageError
from flowgrad.files import atomic_path, printable, refuse_existing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


TILE = 128  # pixels a small image is enlarged to, about
GAP, MARGIN = 6, 16
PAPER, INK, MUTED = "white", "#1d1d22", "#6a6a74"
TITLE_SIZE, LABEL_SIZE = 18, 13
PER_BLOCK = 10  # photos side by side before a figure goes on below
THUMBNAIL_FACES, THUMBNAIL_SIDE = 3, 96
THUMBNAIL_LIMIT = 30_000  # bytes: `bank list` reads them
COLOURS = ("#1f5fa8", "#c8501e", "#2e8b57", "#7d4bb0", "#8a6d1b")


class Evaluation(Protocol):
    """What a figure needs of one evaluation in a training; see `flowgrad.optimize.Step`."""

    @property
    def iteration(self) -> int: ...
    @property
    def terms(self) -> Mapping[str, float]: ...
    @property
    def best(self) -> bool: ...


def strength_label(strength: float) -> str:
    """Write a strength as a label: "photo" for 0, else signed, with a true minus: "−1", "+0.5"."""
    return "photo" if strength == 0 else f"{strength:+g}".replace("-", "−")


def enlarge(image: Image.Image) -> Image.Image:
    """Enlarge a small image by a whole factor to about TILE pixels, smoothly; larger ones stay as they are."""
    factor = max(1, round(TILE / max(image.size)))
    size = (image.width * factor, image.height * factor)
    return image if factor == 1 else image.resize(size, Image.Resampling.LANCZOS)


def contact_sheet(
    images: Sequence[Image.Image], labels: Sequence[str] = (), columns: int = 8, title: str = ""
) -> Image.Image:
    """Images of one size in rows of `columns`, each above its label; no labels at all save the space.

    Raises UsageError for no image, or another number of labels than of images.
    """
    if not images or (labels and len(labels) != len(images)):
        raise UsageError(f"a contact sheet needs images and one label each; got {len(images)} and {len(labels)}")
    tiles = [enlarge(image) for image in images]
    columns, (across, down), top = min(columns, len(tiles)), tiles[0].size, _top(title)
    row = down + GAP + (LABEL_SIZE + 7 if any(labels) else 0)
    width = 2 * MARGIN + columns * (across + GAP) - GAP
    sheet, draw = _new_sheet(width, top + math.ceil(len(tiles) / columns) * row - GAP + MARGIN, title)
    for index, image in enumerate(tiles):
        x, y = MARGIN + index % columns * (across + GAP), top + index // columns * row
        sheet.paste(image, (x, y))
        if any(labels):
            text = _fitted(labels[index], across, LABEL_SIZE)
            draw.text((x + across // 2, y + down + 3), text, MUTED, _font(LABEL_SIZE), anchor="ma")
    return sheet


def strip(images: Sequence[Image.Image], labels: Sequence[str], title: str = "") -> Image.Image:
    """One row: a photo at several strengths, each above its label."""
    return contact_sheet(images, labels, max(1, len(images)), title)


def before_after(rows: Mapping[str, Sequence[Image.Image]], title: str = "") -> Image.Image:
    """Rows of the same photos, each with its label on the left: the photo, and below it what became of it.

    More than PER_BLOCK photos go on in a further block below. Raises UsageError for no photo, or rows that differ in
    length.
    """
    counts = {len(images) for images in rows.values()}
    if len(counts) != 1 or counts == {0}:
        raise UsageError(f"rows of a figure need the same number of photos, at least 1; got {sorted(counts)}")
    tiles = [[enlarge(image) for image in images] for images in rows.values()]
    (count,), side, top = counts, max(tiles[0][0].size), _top(title)
    left = MARGIN + int(max(_font(LABEL_SIZE).getlength(label) for label in rows)) + 10
    columns, block = min(count, PER_BLOCK), len(rows) * (side + GAP) + GAP
    height = top + math.ceil(count / columns) * block - 2 * GAP + MARGIN
    sheet, draw = _new_sheet(left + columns * (side + GAP) - GAP + MARGIN, height, title)
    for row, (label, images) in enumerate(zip(rows, tiles, strict=True)):
        for index, image in enumerate(images):
            y = top + index // columns * block + row * (side + GAP)
            sheet.paste(image, (left + index % columns * (side + GAP), y))
            if index % columns == 0:
                draw.text((left - 10, y + side // 2), label, INK, _font(LABEL_SIZE), anchor="rm")
    return sheet


def preview(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> bytes:
    """A PNG for the bank: samples of the model above, and what the direction makes of them below.

    Give samples that no training used, never a user's photos: a bank is there to be passed on.
    """
    buffer = io.BytesIO()
    _above_and_below(before, after, max(enlarge(before[0]).size), 2).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def thumbnail(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> str:
    """A data URL (JPEG, THUMBNAIL_LIMIT bytes at most) of a few samples before and after, for a file's header.

    Give samples of the model, never a user's photos: the header travels with the file wherever it is sent.
    """
    side = min(THUMBNAIL_SIDE, max(before[0].size))
    sheet = _above_and_below(before[:THUMBNAIL_FACES], after[:THUMBNAIL_FACES], side, 0)
    for quality in (90, 75, 50, 25):
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= THUMBNAIL_LIMIT:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _above_and_below(before: Sequence[Image.Image], after: Sequence[Image.Image], side: int, gap: int) -> Image.Image:
    """Two rows of squares of `side` pixels, `gap` pixels apart."""
    sheet = Image.new("RGB", (len(before) * (side + gap) - gap, 2 * side + gap), PAPER)
    for y, images in enumerate((before, after)):
        for x, image in enumerate(images):
            tile = image.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(tile, (x * (side + gap), y * (side + gap)))
    return sheet


def curves(
    history: Sequence[Evaluation],
    straightness: Sequence[float],
    knots: Sequence[int],
    path: Path,
    overwrite: bool = False,
) -> Path:
    """Draw a training into a PNG: the loss and its terms, and the straightness over time with the grid's knots.

    straightness: S(k) of Eq. 11 for the N Euler steps, averaged over the photos; knots: the M + 1 ends of the
    intervals, in steps. Returns the path. Raises UsageError for a file that exists (unless `overwrite`).
    """
    refuse_existing(path, overwrite)
    with chart(path, (10, 3.6), 2) as (left, right):
        _draw_losses(left, history)
        _draw_straightness(right, straightness, knots)
    return path


@contextmanager
def chart(path: Path, size: tuple[float, float], columns: int) -> "Iterator[list[Axes]]":
    """Yield axes side by side, of `size` in inches together, to draw on; then write them, replacing what is there.

    The file's suffix says the format: .png or .svg. An SVG is the same bytes whenever it is written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": path.name,
        "svg.fonttype": "none",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=size, dpi=120, layout="constrained")
        yield list(figure.subplots(1, columns, squeeze=False)[0])
        with atomic_path(path) as temporary:
            figure.savefig(temporary, metadata={"Date": None} if path.suffix == ".svg" else None)


def line_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How each of the lines of a chart is drawn, by name: in another colour, and then in another dash."""
    dashes = ("-", "--", ":")
    return {
        name: {"color": COLOURS[i % len(COLOURS)], "linestyle": dashes[i // len(COLOURS) % len(dashes)], "label": name}
        for i, name in enumerate(dict.fromkeys(names))
    }


def legend_below(places: "Sequence[Axes]") -> None:
    """One legend for all lines of a chart, each label once, below its axes."""
    figure = places[0].get_figure()
    assert figure
    pairs = [pair for axes in places for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    lines: dict[str, Any] = {}
    for line, label in pairs:
        lines.setdefault(label, line)
    figure.legend(
        list(lines.values()),
        list(lines),
        loc="outside lower center",
        ncols=min(4, 2 * len(places)),
        frameon=False,
        fontsize=9,
    )


def _draw_losses(axes: "Axes", history: Sequence[Evaluation]) -> None:
    at = [record.iteration for record in history]
    for colour, name in zip(COLOURS[1:], history[0].terms, strict=False):
        axes.plot(at, [record.terms[name] for record in history], color=colour, lw=1.3, label=name)
    totals = [sum(record.terms.values()) for record in history]
    axes.plot(at, totals, color=COLOURS[0], lw=2, label="loss")
    best = [(i, total) for i, total, record in zip(at, totals, history, strict=True) if record.best][-1:]
    for i, total in best:
        axes.plot(i, total, "o", color=COLOURS[0], ms=6, label="kept")
    axes.set(xlabel="iteration", ylabel="mean over the photos", title="Loss and its terms")
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False, fontsize=9)


def _draw_straightness(axes: "Axes", straightness: Sequence[float], knots: Sequence[int]) -> None:
    steps = len(straightness)
    axes.plot([k / steps for k in range(steps)], straightness, color=COLOURS[0], lw=1.5)
    if max(straightness) > 10 * min(straightness) > 0:  # less than a decade has no ticks on a logarithmic scale
        axes.set_yscale("log")
    for knot in knots:
        axes.axvline(knot / steps, 0, 0.04, color=COLOURS[1], lw=1.2)
    axes.set(xlabel="t (0 noise, 1 photo)", ylabel="S", xlim=(-0.02, 1.02))
    axes.set_title(f"Straightness, and the grid's {len(knots) - 1} intervals")


def write_png(raw: bytes, path: Path) -> Path:
    """Write an encoded image, through a temporary file. Returns the path."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(raw)
    return path


def _new_sheet(width: int, height: int, title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    text = _fitted(title, width - 2 * MARGIN, TITLE_SIZE)
    draw.text((MARGIN, MARGIN - 3), text, INK, _font(TITLE_SIZE))
    return sheet, draw


def _top(title: str) -> int:
    return MARGIN + (TITLE_SIZE + 12 if title else 0)


def _fitted(text: str, width: int, size: int) -> str:
    """Shorten a text with an ellipsis until it fits into `width` pixels."""
    text, font = printable(text), _font(size)
    if font.getlength(text) <= width:
        return text
    kept = next((n for n in range(len(text), 0, -1) if font.getlength(text[:n].rstrip() + "…") <= width), 0)
    return text[:kept].rstrip() + "…"


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans from matplotlib's files, found without importing it; Pillow's own has no true minus."""
    spec = find_spec("matplotlib")
    assert spec and spec.origin
    try:
        return ImageFont.truetype(Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf", size)
    except OSError:  # a distribution that keeps its fonts elsewhere
        return ImageFont.load_default(size)
