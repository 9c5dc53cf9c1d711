"""Tables and panels for a terminal, as Rich renderables: nothing here prints."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from directions.bank.bank import Entry
from directions.bank.card import NOTABLE, at_strength, effect_rows, facts, is_notable, side_effects
from directions.file.header import Calibration, DirectionInfo

if TYPE_CHECKING:
    from directions.measure.evaluation import Measured
    from directions.measure.model_check import Fitness
    from directions.train.run import Trained

ANSWERS_SHOWN = 6


def bank_table(entries: Iterable[Entry]) -> Table:
    """One row for each direction: name, text, effect and safe range, or why it cannot be read."""
    table = _table("name", "model", "text", "safe", "from")
    for entry in entries:
        origin = "flowgrad" if entry.shipped else "you"
        if entry.info is None:
            table.add_row(entry.name, entry.model, Text(entry.error or "", "red"), "", origin)
            continue
        calibration = entry.info.calibration
        safe = f"{calibration.safe[0]:g} to {calibration.safe[1]:g}" if calibration else ""
        table.add_row(Text(entry.name, "bold"), entry.model, entry.info.text or entry.info.title, safe, origin)
    return table


def direction_card(entry: Entry) -> Group:
    """Everything that a direction's file says."""
    info = entry.info
    if info is None:
        return Group(Text(entry.name, "bold"), Text(entry.error or "", "red"))
    table = Table.grid(padding=(0, 2))
    rows = [*facts(info), ("file", f"{entry.path} ({entry.size / 1e6:.2f} MB)")]
    if entry.preview:
        rows.append(("preview", str(entry.preview)))
    elif info.thumbnail:
        rows.append(("preview", "in the file itself: flowgrad bank gallery shows it"))
    for label, text in rows:
        table.add_row(Text(label, "dim"), text)
    head = Text(f"{entry.name}: {info.title}", "bold")
    return Group(head, Padding(table, (1, 0)), *(_calibration(info, info.calibration) if info.calibration else ()))


def _calibration(info: DirectionInfo, calibration: Calibration) -> list[Table | Text]:
    low, high = calibration.safe
    measured = f"Measured on {calibration.photos} {calibration.source} not trained on; safe from {low:g} to {high:g}."
    effects = _table(*((name, "right") for name in ("strength", "effect", "identity distance", "same person")))
    for row in effect_rows(calibration):
        effects.add_row(*row)
    others = _table("side effect at strength 1", ("change", "right"))
    for text, change in side_effects(info).items():
        others.add_row(text, Text(f"{change:+.2f}", "yellow" if is_notable(info, change) else ""))
    return [Text(measured), effects, *([others] if others.row_count else [])]


def training_summary(trained: "Trained") -> Table:
    """What a new direction does at strength 1, what else it does, how far it may go, and how long it took."""
    table = Table.grid(padding=(0, 2))
    rows = [("effect at strength 1", "not measured")]
    if calibration := trained.direction.info.calibration:
        low, high = calibration.safe
        rows = [("effect at strength 1", f"{calibration.level:+.2f} log-odds, {calibration.source}")]
        rows += [("side effects", _notable(trained.direction.info)), ("same person", _kept(calibration))]
        rows += [("safe strengths", f"{low:g} to {high:g}")]
    rows += [("seconds", ", ".join(f"{stage} {s:.0f}" for stage, s in trained.seconds.items()))]
    for label, text in rows:
        table.add_row(Text(label, "dim"), text)
    return table


def _notable(info: DirectionInfo) -> str:
    found = [f"{text} {change:+.2f}" for text, change in side_effects(info).items() if is_notable(info, change)]
    return "\n".join(found) or f"none of {100 * NOTABLE:.0f} % of the effect or more"


def _kept(calibration: Calibration) -> str:
    if not calibration.kept:
        return "not measured: it needs a model of faces, and the extra flowgrad[faces]"
    share, distance = (at_strength(calibration, values, 1.0) for values in (calibration.kept, calibration.identity))
    return f"{100 * share:.0f} % (mean distance {distance:.2f})"


def evaluation_table(measured: Sequence["Measured"]) -> Table:
    """One column for each strength: effect, side effects, the judge's answers that changed most, identity."""
    table = _table("measured", *((f"{m.strength:+g}" if m.strength else "photo", "right") for m in measured))
    table.add_row("effect (log-odds)", *(f"{m.effect:+.2f}" for m in measured))
    for text in measured[0].side_effects:
        table.add_row(Text(f"  {text}", "dim"), *(f"{m.side_effects[text]:+.2f}" for m in measured))
    for answer in _changed(measured):
        table.add_row(f"judged {answer}", *(f"{100 * m.shares[answer]:.0f} %" for m in measured))
    if measured[0].kept is not None:
        table.add_row("same person", *(f"{100 * (m.kept or 0):.0f} %" for m in measured))
        table.add_row("identity distance", *(f"{m.identity or 0:.2f}" for m in measured))
    return table


def _changed(measured: Sequence["Measured"]) -> list[str]:
    first, last = measured[0].answers, measured[-1].answers
    return sorted(first, key=lambda answer: -abs(last[answer] - first[answer]))[:ANSWERS_SHOWN]


def fitness_table(found: "Fitness") -> Table:
    """What `models check` measured, a row each."""
    stage = "none" if found.first_stage == float("inf") else f"{found.first_stage:.1f} dB of an image kept"
    rows = (
        ("states", "x".join(map(str, found.shape))),
        ("steps", str(found.steps)),
        ("an image returns with", "no error" if found.returned == float("inf") else f"{found.returned:.1f} dB"),
        ("autoencoder", stage),
        ("bends (0: straight)", f"{found.bends[0]:.4f} on average, {found.bends[1]:.4f} at most"),
        ("one evaluation", f"{found.seconds[0]:.3f} s, {found.seconds[1]:.3f} s with its gradient, for one image"),
        ("images at once", str(found.images_at_once)),
        ("peak memory", f"{found.memory / 2**30:.2f} GiB" if found.memory else "not known"),
    )
    return plain_table(("measured", found.model), rows)


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of texts."""
    table = _table(*columns)
    for row in rows:
        table.add_row(*row)
    return table


def _table(*columns: str | tuple[str, str]) -> Table:
    """An empty table; a column is its name, or its name and "right"."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        name, justify = column if isinstance(column, tuple) else (column, "left")
        table.add_column(name, justify="right" if justify == "right" else "left")
    return table
