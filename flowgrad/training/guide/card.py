"""Cards: the README beside exported weights, with data, recipe, figures and licence."""

from collections.abc import Mapping
from pathlib import Path

from flowgrad.files import atomic_path
from flowgrad.markdown import table
from flowgrad.training.guide.config import CardConfig


def write_card(
    folder: Path, card: CardConfig, recipe: Mapping[str, str], figures: Mapping[str, Mapping[str, float]]
) -> Path:
    """Write `folder/README.md` and return its path.

    `figures` maps the heading of each column, such as "AUC", to a value per row; columns may lack rows.
    """
    sections = [f"# {card.title}", card.summary, f"**Data.** {card.data}"]
    sections += ["**Recipe.**", "\n".join(f"* {key}: {value}" for key, value in recipe.items())] if recipe else []
    sections += [f"**Figures.** {card.figures}", _figures(figures)] if figures else []
    sections += [f"**Licence.** {card.license}"]
    path = folder / "README.md"
    with atomic_path(path) as temporary:
        temporary.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def _figures(figures: Mapping[str, Mapping[str, float]]) -> str:
    names = dict.fromkeys(name for column in figures.values() for name in column)
    columns = figures.values()
    rows = [(name, *(f"{c[name]:.3f}" if name in c else "" for c in columns)) for name in names]
    return table(("", *figures), rows)
