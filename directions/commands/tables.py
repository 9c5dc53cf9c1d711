"""Tables for a terminal, as Rich renderables: nothing here prints."""

from collections.abc import Iterable, Sequence

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from directions.bank.bank import Entry
from directions.bank.card import effect_table, facts, is_notable, side_effects
from directions.bank.sampler_card import measured_table, sampler_facts
from directions.file.calibration import Calibration
from directions.file.header import DirectionInfo

CURVE = 25  # characters


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[RenderableType]], numbers: bool = False) -> Table:
    """A table of texts; with `numbers` all columns but the first are aligned on the right."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if numbers and i else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def direction_card(entry: Entry) -> Group:
    """Everything that a direction's file says."""
    info = entry.info
    if info is None:
        return Group(Text(entry.name, "bold"), Text(entry.error or "", "red"))
    rows = [*facts(info), ("file", f"{entry.path} ({entry.size / 1e6:.2f} MB)")]
    if entry.preview:
        rows.append(("preview", str(entry.preview)))
    elif info.thumbnail:
        rows.append(("preview", "in the file itself: flowgrad bank gallery shows it"))
    table = Table.grid(padding=(0, 2))
    for label, text in rows:
        table.add_row(Text(label, "dim"), text)
    head = Text(f"{entry.name}: {info.title}", "bold")
    measured = _calibration(info, info.calibration) if info.calibration else ()
    return Group(head, Padding(table, (1, 0), expand=False), *measured)


def sampler_card(entry: Entry) -> Group:
    """Everything that a sampler's file says."""
    info = entry.sampler
    if info is None:
        return Group(Text(entry.name, "bold"), Text(entry.error or "", "red"))
    rows = [*sampler_facts(info), ("file", f"{entry.path} ({entry.size / 1e6:.2f} MB)")]
    if entry.preview:
        rows.append(("preview", str(entry.preview)))
    table = Table.grid(padding=(0, 2))
    for label, text in rows:
        table.add_row(Text(label, "dim"), text)
    measured = [plain_table(*measured_table(info), numbers=True)] if info.measured else []
    return Group(Text(f"{entry.name}: {info.title}", "bold"), Padding(table, (1, 0), expand=False), *measured)


def _calibration(info: DirectionInfo, calibration: Calibration) -> list[Table | Text]:
    where = f"{calibration.photos} {calibration.source} not trained on"
    head, rows = effect_table(calibration)
    most = max(map(abs, calibration.effect)) or 1.0
    curve = [Bar(2, 1 + min(e / most, 0), 1 + max(e / most, 0), width=CURVE) for e in calibration.effect]
    drawn: list[Sequence[RenderableType]] = [[*row, bar] for row, bar in zip(rows, curve, strict=True)]
    effects = plain_table((*head, "less and more of it"), drawn, numbers=True)
    others = [
        (text, Text(f"{change:+.2f}", "yellow" if is_notable(info, change) else ""))
        for text, change in side_effects(info).items()
    ]
    shown = [plain_table(("side effect at strength 1", "change"), others, numbers=True)] if others else []
    safe = "{:g} to {:g}".format(*calibration.safe)
    return [Text(f"Measured on {where}; safe from {safe}."), effects, *shown]
