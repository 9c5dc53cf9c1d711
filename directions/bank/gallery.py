"""The bank as one HTML page that can be mailed or put on a server: previews inside, no network, usable by keyboard.

Everything a direction's file says is a stranger's text: the templates escape it, pictures are decoded and encoded anew,
and the page's own policy forbids every script but its one and every address.
"""

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from directions.bank.card import facts, in_words, is_notable, side_effects
from directions.bank.entry import Entry
from directions.bank.pictures import data_url, image_url, read_data_url, read_picture
from directions.file.calibration import Calibration, at_strength
from directions.file.header import DirectionInfo
from flowgrad.files import atomic_path, refuse_existing

PREVIEW_SIDE = 640  # pixels

_FOLDER = Path(__file__).with_name("templates")
_TEMPLATES = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True)
STYLE = (_FOLDER / "cards.css").read_text(encoding="utf-8")


def write_gallery(entries: Sequence[Entry], path: Path, title: str = "Directions", overwrite: bool = False) -> Path:
    """Write the page. Returns its path. Raises UsageError for a file that exists (unless `overwrite`)."""
    refuse_existing(path, overwrite)
    with atomic_path(path) as temporary:
        temporary.write_text(to_page(entries, title), encoding="utf-8")
    return path


def to_page(entries: Sequence[Entry], title: str = "Directions") -> str:
    """Return a whole HTML page of directions, complete in itself."""
    script, style = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("gallery.js", "gallery.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _TEMPLATES.get_template("gallery.html").render(
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        title=title,
        style=STYLE + style,
        tags=sorted({tag for entry in entries if entry.info for tag in entry.info.tags}),
        cards=[_card(entry) for entry in entries],
        script=script,
    )


def to_cards(entries: Iterable[Entry]) -> str:
    """Return the cards of directions, as a list in HTML."""
    return _TEMPLATES.get_template("cards.html").render(cards=[_card(entry) for entry in entries])


def _card(entry: Entry) -> dict[str, Any]:
    """Return what the template shows of a direction."""
    info = entry.info
    if info is None:
        return {"title": entry.name, "words": entry.name, "error": entry.error}
    words = (entry.name, entry.model, info.title, info.text, info.source_text, *info.tags, info.description)
    card = {"title": info.title, "name": entry.name, "model": entry.model, "tags": info.tags, "words": " ".join(words)}
    measured = _measured(info, info.calibration) if info.calibration else {}
    return {**card, **measured, "picture": _picture(entry, info), "facts": facts(info)}


def _picture(entry: Entry, info: DirectionInfo) -> str:
    """Return the preview, else the header's thumbnail, as a data URL; "" for none."""
    preview = entry.read_preview()
    picture = (read_picture(io.BytesIO(preview)) if preview else None) or read_data_url(info.thumbnail)
    if picture is None:
        return ""
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return image_url(picture)


def _measured(info: DirectionInfo, calibration: Calibration) -> dict[str, Any]:
    strengths, effects, (low, high) = calibration.strengths, calibration.effect, calibration.safe
    line = f"Effect {calibration.level:+.1f} log-odds at strength 1; safe from {low:g} to {high:g}"
    if calibration.kept:
        line += f"; {at_strength(calibration, calibration.kept, 1):.0%} of faces stay the same person"
    notable = {text: change for text, change in side_effects(info).items() if is_notable(info, change)}
    return {
        "curve": curve(strengths, effects, calibration.safe) if len(strengths) > 1 else "",
        "ends": f"{effects[0]:+.1f} at {strengths[0]:g}, {effects[-1]:+.1f} at {strengths[-1]:g}",
        "measured": f"{line}.",
        "side_effects": [in_words(text, change) for text, change in notable.items()],
    }


@lru_cache(maxsize=1000)
def curve(strengths: tuple[float, ...], effects: tuple[float, ...], safe: tuple[float, float]) -> str:
    """Return the effect by strength as the data URL of an SVG, with the safe range behind it."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",  # texts stay texts
        "font.sans-serif": "DejaVu Sans",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(4, 2), layout="constrained")
        axes = figure.subplots()
        axes.axvspan(*safe, color="#e3edf9")
        axes.axhline(0, color="#b5b5be")
        axes.axvline(0, color="#b5b5be")
        axes.plot(strengths, effects, "o-", color="#1f5fa8")
        axes.set(xlabel="strength (shaded: safe)", ylabel="effect (log-odds)")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return data_url(buffer.getvalue(), "image/svg+xml")
