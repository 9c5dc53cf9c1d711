"""The bank as one HTML page that can be mailed or put on a server: previews inside, no network, usable by keyboard.

Everything a direction's file says is a stranger's text: it is escaped, pictures are decoded and encoded anew, and the
page's own policy forbids every script but its one and every address.
"""

import base64
import hashlib
import io
import warnings
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from directions.bank.bank import Entry
from directions.bank.card import at_strength, facts, is_notable, side_effects
from directions.file.direction import Calibration, DirectionInfo
from flowgrad.files import atomic_path, refuse_existing

PREVIEW_LIMIT = 8_000_000  # pixels of a preview that is decoded
_PREVIEW_SIDE, _QUALITY = 640, 85
_WIDTH, _HEIGHT = 300, 150  # of a curve, in its own units
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 286, 20, 112  # of its axes

STYLE = """
.fg { font: 15px/1.45 system-ui, sans-serif; color: #1d1d22; }
.fg-cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 18px; padding: 0;
  list-style: none; margin: 18px 0; }
.fg-card { border: 1px solid #d5d5dc; border-radius: 10px; overflow: hidden; background: #fff; color: #1d1d22; }
.fg-card img { display: block; width: 100%; height: auto; background: #eee; }
.fg-body { padding: 10px 14px 14px; }
.fg-body h2 { font-size: 17px; margin: 0; overflow-wrap: anywhere; color: #1d1d22; }
.fg-body p { margin: 4px 0; overflow-wrap: anywhere; }
.fg-body code { font-size: 12px; background: #f1f1f5; padding: 1px 4px; border-radius: 4px; overflow-wrap: anywhere; }
.fg-muted { color: #5c5c66; font-size: 13px; }
.fg-error { color: #a32020; }
.fg-tags { display: flex; flex-wrap: wrap; gap: 6px; margin: 10px 0; }
.fg-tags button { font: inherit; font-size: 13px; padding: 3px 10px; border: 1px solid #9a9aa5; border-radius: 14px;
  background: #fff; color: inherit; cursor: pointer; }
.fg-tags button[aria-pressed=true] { background: #1f5fa8; color: #fff; border-color: #1f5fa8; }
.fg summary { cursor: pointer; padding: 4px 0; }
.fg table { border-collapse: collapse; font-size: 13px; }
.fg td, .fg th { text-align: left; padding: 2px 10px 2px 0; vertical-align: top; overflow-wrap: anywhere; }
.fg :focus-visible { outline: 3px solid #1f5fa8; outline-offset: 2px; }
.fg-body ul { margin: 2px 0 6px; padding-left: 18px; list-style: disc; }
.fg svg { width: 100%; height: auto; }
"""
_PAGE_STYLE = """
body { margin: 0 auto; max-width: 1200px; padding: 20px; background: #fafafc; }
input[type=search] { font: inherit; padding: 8px 10px; width: 100%; max-width: 420px; border: 1px solid #9a9aa5;
  border-radius: 8px; box-sizing: border-box; }
"""
# Filters the cards by words and by a tag; texts are compared, never inserted.
_SCRIPT = """
const box = document.getElementById("search"), said = document.getElementById("said");
const cards = [...document.querySelectorAll(".fg-card")], tags = [...document.querySelectorAll("[data-tag]")];
function show() {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  const tag = tags.find(each => each.getAttribute("aria-pressed") === "true")?.dataset.tag;
  let count = 0;
  for (const card of cards) {
    const fits = words.every(word => card.dataset.words.includes(word));
    card.hidden = !(fits && (!tag || card.dataset.tags.split(",").includes(tag)));
    count += !card.hidden;
  }
  said.textContent = `${count} of ${cards.length} directions`;
}
box.addEventListener("input", show);
for (const each of tags) each.addEventListener("click", () => {
  const pressed = each.getAttribute("aria-pressed") === "true";
  tags.forEach(other => other.setAttribute("aria-pressed", "false"));
  each.setAttribute("aria-pressed", String(!pressed));
  show();
});
show();
"""


def write_gallery(entries: Sequence[Entry], path: Path, title: str = "Directions", overwrite: bool = False) -> Path:
    """Write the page. Returns its path. Raises UsageError for a file that exists (unless `overwrite`)."""
    refuse_existing(path, overwrite)
    with atomic_path(path) as temporary:
        temporary.write_text(to_page(entries, title), encoding="utf-8")
    return path


def to_page(entries: Sequence[Entry], title: str = "Directions") -> str:
    """A whole HTML page of directions, complete in itself."""
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    tags = sorted({tag for entry in entries if entry.info for tag in entry.info.tags})
    buttons = "".join(
        f'<button type="button" aria-pressed="false" data-tag="{escape(tag)}">{escape(tag)}</button>' for tag in tags
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{STYLE}{_PAGE_STYLE}</style>
</head>
<body class="fg">
<h1>{escape(title)}</h1>
<p><label for="search">Search by name, text or tag</label><br><input type="search" id="search"></p>
<div class="fg-tags" role="group" aria-label="Tags">{buttons}</div>
<p class="fg-muted" id="said" role="status"></p>
{to_cards(entries)}
<script>{_SCRIPT}</script>
</body>
</html>
"""


def to_cards(entries: Iterable[Entry]) -> str:
    """The cards of directions, as a list in HTML."""
    return f'<ul class="fg-cards">{"".join(map(_card, entries))}</ul>'


def _card(entry: Entry) -> str:
    info = entry.info
    if info is None:
        name, said = escape(entry.name), f'<p class="fg-error">{escape(entry.error or "")}</p>'
        head = f'<li class="fg-card" data-words="{name}" data-tags=""><div class="fg-body">'
        return f"{head}<h2>{name}</h2>{said}</div></li>"
    words = " ".join([entry.name, entry.model, info.title, info.text, info.source_text, *info.tags, info.description])
    return "".join(
        [
            f'<li class="fg-card" data-words="{escape(words.lower())}" data-tags="{escape(",".join(info.tags))}">',
            _picture(entry, info),
            f'<div class="fg-body"><h2>{escape(info.title)}</h2>',
            f'<p class="fg-muted">{escape(entry.model)} / {escape(entry.name)}</p>',
            f"<p><code>flowgrad apply-direction {escape(entry.name)} photo.jpg</code></p>",
            _details(info),
            "</div></li>",
        ]
    )


def _picture(entry: Entry, info: DirectionInfo) -> str:
    source = (to_data_url(entry.preview) if entry.preview else "") or _thumbnail(info)
    text = f"Four samples of {entry.model} above, and below what “{info.title}” makes of them"
    return f'<img src="{source}" alt="{escape(text)}">' if source else ""


def _thumbnail(info: DirectionInfo) -> str:
    """The header's picture, which a file from elsewhere has even without a preview; "" for none."""
    data = info.thumbnail.partition(",")[2]
    try:
        return to_data_url(io.BytesIO(base64.b64decode(data, validate=True))) if data else ""
    except ValueError:  # no base64 after all
        return ""


def to_data_url(path: Path | BinaryIO) -> str:
    """A picture as a JPEG data URL, decoded and encoded anew; "" for what is no picture, or an enormous one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
                if image.width * image.height > PREVIEW_LIMIT:
                    return ""
                picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    picture.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    return image_url(picture)


def image_url(picture: Image.Image) -> str:
    """An RGB image as a JPEG data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _details(info: DirectionInfo) -> str:
    rows = "".join(f"<tr><th>{escape(label)}</th><td>{escape(text)}</td></tr>" for label, text in facts(info))
    measured = _measured(info, info.calibration) if info.calibration else ""
    return f"{measured}<details><summary>How it was made</summary><table>{rows}</table></details>"


def _measured(info: DirectionInfo, calibration: Calibration) -> str:
    low, high = calibration.safe
    notable = [(text, change) for text, change in side_effects(info).items() if is_notable(info, change)]
    kept = at_strength(calibration, calibration.kept, 1.0) if calibration.kept else None
    same = f"; {kept:.0%} of faces stay the same person" if kept is not None else ""
    line = f"Effect {calibration.level:+.1f} log-odds at strength 1; safe from {low:g} to {high:g}{same}."
    others = "".join(f"<li>{escape(_told(text, change))}</li>" for text, change in notable)
    aside = f'<div class="fg-muted">Side effects<ul>{others}</ul></div>' if others else ""
    return f'{curve(calibration)}<p class="fg-muted">{line}</p>{aside}'


def _told(text: str, change: float) -> str:
    """The change of a text ("one - other": of one against the other) in words."""
    one, contrast, other = text.partition(" - ")
    if not contrast:
        return f"{'more' if change > 0 else 'less'} “{text}” ({change:+.1f})"
    more, less = (one, other) if change > 0 else (other, one)
    return f"more “{more}”, less “{less}” ({abs(change):.1f})"


def curve(calibration: Calibration) -> str:
    """The calibration as an SVG: effect by strength, with the safe range behind it."""
    strengths, effects = calibration.strengths, calibration.effect
    if len(strengths) < 2:
        return ""
    low, high = min(*effects, 0.0), max(*effects, 0.0)

    def x(strength: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (strength - strengths[0]) / (strengths[-1] - strengths[0])

    def y(effect: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (effect - low) / max(high - low, 1e-9)

    places = [(x(s), y(e)) for s, e in zip(strengths, effects, strict=True)]
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    left, right = (x(min(max(edge, strengths[0]), strengths[-1])) for edge in calibration.safe)
    told = f"Effect by strength: {effects[0]:+.1f} at {strengths[0]:g}, {effects[-1]:+.1f} at {strengths[-1]:g}"
    ticks = [_label(x(s), _BOTTOM + 15, f"{s:+.2g}") for s in (strengths[0], strengths[-1])]
    ticks += [_label(x(0), _BOTTOM + 15, "0")] if strengths[0] < 0 < strengths[-1] else []
    levels = [0.0, *(e for e in (low, high) if abs(e) > (high - low) / 8)]  # further apart than a line of text
    ticks += [_label(_LEFT - 5, y(e) + 4, f"{e:+.1f}" if e else "0", "end") for e in levels]
    ticks += [_label(_LEFT, 12, "effect (log-odds)", "start"), _label((left + right) / 2, _TOP + 13, "safe")]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(told)}">'
        f'<rect x="{left:.1f}" y="{_TOP}" width="{max(right - left, 0):.1f}" height="{_BOTTOM - _TOP}" fill="#e3edf9"/>'
        f'<path d="M{_LEFT} {y(0):.1f}H{_RIGHT}M{x(0):.1f} {_TOP}V{_BOTTOM}" stroke="#b5b5be"/>'
        f'<polyline points="{line}" fill="none" stroke="#1f5fa8" stroke-width="2.5"/>'
        + "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="#1f5fa8"/>' for a, b in places)
        + "".join(ticks)
        + _label((_LEFT + _RIGHT) / 2, _HEIGHT - 6, "strength")
        + "</svg>"
    )


def _label(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" text-anchor="{anchor}" fill="#4a4a54">{text}</text>'
