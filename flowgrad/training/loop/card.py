"""The card of what was trained: the README beside its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flowgrad.files import atomic_path
from flowgrad.markdown import table


@dataclass(frozen=True)
class Card:
    """What a card says: tables of data, recipe and results, the command, and pictures with their captions.

    results: the first row heads the table.
    """

    title: str
    summary: str
    licence: str
    data: Mapping[str, str]
    recipe: Mapping[str, str]
    results: tuple[tuple[str, ...], ...] = ()
    about_results: str = ""
    command: str = ""
    pictures: Mapping[str, str] = field(default_factory=dict)

    def markdown(self) -> str:
        """The whole page."""
        parts = [
            f"# {self.title}",
            self.summary,
            f"Licence: {self.licence}",
            "## Data",
            table(("", ""), self.data.items()),
            "## Recipe",
            table(("", ""), self.recipe.items()),
            f"```\n{self.command}\n```" if self.command else "",
            "## Results" if self.results else "",
            self.about_results if self.results else "",
            table(self.results[0], self.results[1:]) if self.results else "",
            *(f"{caption}\n\n![{caption}]({name})" for name, caption in self.pictures.items()),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def write(self, folder: Path) -> None:
        """Write it as README.md into a folder."""
        with atomic_path(folder / "README.md") as temporary:
            temporary.write_text(self.markdown(), encoding="utf-8")


def recipe_rows(*sections: Mapping[str, object]) -> dict[str, str]:
    """Keys and values of recipes as rows of a card."""
    return {key.replace("_", " "): str(value) for section in sections for key, value in section.items()}
