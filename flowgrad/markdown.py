"""Markdown as cards and READMEs need it."""

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """A table; cells are texts without line breaks. numbers: all columns but the first are aligned to the right."""
    rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    lines = ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]
    return "\n".join(lines)


def plain(text: str) -> str:
    """A text on one line, in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))


def picture(file: str, caption: str) -> str:
    """A caption, and below it the picture that it describes."""
    return f"{caption}\n\n![{caption}]({file})"


def with_section(page: str, section: str) -> str:
    """A page with a section, in place of the one with the same heading (`## ...`) if there is one, else at its end."""
    heading = re.escape(section.splitlines()[0])
    old = re.compile(rf"^{heading}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    new = old.sub(lambda _: f"{section}\n\n", page, 1) if old.search(page) else f"{page.rstrip()}\n\n{section}"
    return f"{new.strip()}\n"
