"""A text against another, as it is written."""

from dataclasses import dataclass

from flowgrad.errors import UsageError

SEPARATOR = " - "


@dataclass(frozen=True)
class Contrast:
    """A text, relative to a source text: written "a smiling face - a serious face".

    Raises UsageError for a text that is its own source: nothing would change.
    """

    text: str
    source: str

    def __post_init__(self) -> None:
        if _plain(self.text) == _plain(self.source):
            raise UsageError(f"the text {self.text[:80]!r} is its own source, and asks for no change: write another")

    @classmethod
    def parse(cls, written: str, source: str) -> "Contrast":
        """Split "text - source"; without a separator `source` is used. Raises UsageError for an empty text."""
        text, _, given = written.partition(SEPARATOR)
        if not text.strip():
            raise UsageError(f"a text must not be empty; got {written!r}")
        return cls(text.strip(), given.strip() or source)

    def __str__(self) -> str:
        return f"{self.text}{SEPARATOR}{self.source}"


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
