"""The texts that a direction is asked for and described by; what is wrong with them is told before all is loaded."""

from collections.abc import Sequence
from typing import Any

from directions.file.header import DirectionInfo
from directions.file.metadata import TITLE_LIMIT
from directions.file.rules import FieldError
from flowgrad.errors import UsageError
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.names import knows_any_word


def check_texts(
    text: str, source: str | None, keep: Sequence[str], subject: str
) -> tuple[Contrast, tuple[Contrast, ...]]:
    """The target and what is kept, as they are written; `subject` of the model is the source where none is given.

    Raises UsageError for a text that is empty, is its own source, or may not stand in a direction's file.
    """
    target = Contrast.parse(text, source or subject)
    kept = tuple(Contrast.parse(written, subject) for written in keep)
    check_described(text=target.text, source_text=target.source, keep=tuple(map(str, kept)))
    return target, kept


def check_words(target: Contrast, vocabulary: frozenset[str] | None, force: bool) -> None:
    """Raise UsageError if a guide knows no word of the target's text, unless `force`; it would steer to nothing.

    vocabulary: words that the guide met in training, None where they are not known.
    """
    if not force and not knows_any_word(vocabulary, target.text):
        raise UsageError(
            f"the guide knows no word of the text {target.text!r}, and cannot tell which images show it. Use other "
            "words or another guide, or try it with --force."
        )


def check_described(**fields: Any) -> None:
    """Raise UsageError for values of DirectionInfo that a direction's file may not hold: titles, tags, texts."""
    required: dict[str, Any] = {"title": "-", "model": "model", "fingerprint": "-", "steps": 1}
    try:
        DirectionInfo(**(required | fields))
    except FieldError as error:
        raise UsageError(f"{error.problem}. Correct it.") from error


def title_of(title: str, target: Contrast) -> str:
    """A title as it was given, else the text as one line that is not too long."""
    return title or " ".join(target.text.split())[:TITLE_LIMIT].rstrip()
