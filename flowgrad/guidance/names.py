"""Guides and judges by name or file, and the words that a guide knows: all that is told without loading a network."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.resources import like, resource

OPEN_CLIP = "open-clip:"  # before the names of models and weights of that package
OPENAI_CLIP = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")
VOCABULARY_KEY, HEADS_KEY = "flowgrad.vocabulary", "flowgrad.heads"
ARTICLES = frozenset({"a", "an", "the"})  # words that say nothing of an image
_WORD = re.compile(r"\d+|[^\W\d_]+(?:'[^\W\d_]+)?")


def is_downloaded(name: str) -> bool:
    """Whether a guide is one of OpenAI's or open_clip's, by its name: fetched when it is first loaded."""
    return name.startswith(OPEN_CLIP) or name in OPENAI_CLIP


def weights_file(name_or_path: str, kind: str) -> Path:
    """The weight file behind the name of a shipped guide or judge, or behind a path.

    Raises UsageError for an unknown name, with the nearest, and for a file that is not there.
    """
    if not name_or_path.endswith((".safetensors", ".pt")):
        return shipped_file(name_or_path, kind)
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        raise UsageError(f"there is no {kind} at {path}: check the path")
    return path


def shipped_file(name: str, kind: str) -> Path:
    """Return `weights/<name>/model.safetensors`; UsageError gives the shipped names of this kind, the nearest first."""
    folder = resource("weights")
    path = folder / name / "model.safetensors"
    if Path(name).name != name or not path.is_file():
        names = sorted(path.parent.name for path in folder.glob(f"*{kind}*/model.safetensors"))
        known = like(name, names) or "none; install flowgrad again"
        raise UsageError(f"no {kind} is called {name!r} (shipped: {known}): use one of them or a .safetensors path.")
    return path


def vocabulary_of(name_or_path: str) -> frozenset[str] | None:
    """The words that a guide met in training, from its file; None where they are not known, as for CLIP's own."""
    if is_downloaded(name_or_path) or name_or_path.endswith(".pt"):
        return None
    path = weights_file(name_or_path, "guide")
    return vocabulary(_metadata(path), path)


def check_answer(answer: str, judge: str) -> None:
    """Raise UsageError for an answer that a judge, by name or file, does not give; FlowgradError if it is damaged."""
    path = weights_file(judge, "judge")
    try:
        known = [name for answers in json.loads(_metadata(path)[HEADS_KEY]).values() for name in answers]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FlowgradError(f"{path} is not a judge's weights: export the judge again.") from error
    if answer not in known:
        raise UsageError(f"the judge has no answer {answer!r}; there is {', '.join(known)}")


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise FlowgradError(f"{path} is damaged or not safetensors ({error}): fetch or export it again.") from error


def vocabulary(metadata: Mapping[str, str], path: Path) -> frozenset[str] | None:
    """The words in a guide's metadata; None where it has none. Raises FlowgradError where they are damaged."""
    if VOCABULARY_KEY not in metadata:
        return None
    try:
        return frozenset(json.loads(metadata[VOCABULARY_KEY]))
    except (json.JSONDecodeError, TypeError) as error:
        raise FlowgradError(f"{path} carries a damaged {VOCABULARY_KEY}: export the guide again.") from error


def words_of(text: str) -> list[str]:
    """Split a text into lower-case words and numbers; hyphens separate."""
    return _WORD.findall(text.lower())


def knows_any_word(vocabulary: frozenset[str] | None, text: str) -> bool:
    """Whether a guide knows a word of a text, articles aside; True for a guide whose words are not known."""
    return vocabulary is None or any(word in vocabulary - ARTICLES for word in words_of(text))
