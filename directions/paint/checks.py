"""What is wrong with a painting as it is asked for, told before its model is loaded: by the command and on the page."""

from collections.abc import Sequence

from directions.file.texts import check_texts, check_words
from directions.paint.methods import WITH_GRADIENTS, Method
from flowgrad.errors import UsageError
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.names import vocabulary_of
from flowgrad.model_config import FAMILY_KEYS, ModelConfig


def reads_words(config: ModelConfig) -> bool:
    """Whether a model reads a prompt itself; torch is imported only where its files have to be asked.

    Raises FlowgradError if those are missing or damaged.
    """
    if config.prompt or config.family != FAMILY_KEYS["prompt"]:
        return bool(config.prompt)
    from flowgrad.models import attends_to_words

    return attends_to_words(config)


def to_target(
    text: str, source: str | None, config: ModelConfig, reads: bool, guide: str | None, force: bool
) -> Contrast | None:
    """What a text asks for; None without one. reads: whether the model reads words; then no guide has to know them.

    Raises UsageError for what cannot be asked for.
    """
    if not text:
        if source:
            raise UsageError("--source says what --text is told from: give --text too, or leave it out")
        return None
    target, _ = check_texts(text, source, (), config.subject)
    if not reads:
        check_known([target], config, guide, force)
    return target


def check_known(targets: Sequence[Contrast], config: ModelConfig, guide: str | None, force: bool) -> None:
    """Raise UsageError for words without a guide to read them, or of which it knows none."""
    reader = guide or config.guide
    for target in targets:
        if not reader:
            raise UsageError(f"{config.name} has no guide to read {target.text!r}: give one by --guide")
        check_words(target, vocabulary_of(reader), force)


def check_saved(config: ModelConfig, reads: bool, words: bool, others: bool) -> None:
    """Raise UsageError for a direction that is to be trained with words of its own, or with options that it ignores.

    words: whether there are a text or regions; others: whether there are options of single pictures.
    """
    if reads and words:
        raise UsageError(
            f"--save trains a direction for the prompt that {config.name} has, {config.prompt!r}, without regions: its "
            "file could not be applied to a model with other words. Leave --text and --region out, or write another "
            "configuration with the prompt that you want"
        )
    if others:
        raise UsageError("--save trains one control for all seeds: leave --method, --strength and --region out")


def of_unheard(target: Contrast | None, method: Method, reads: bool, name: str) -> tuple[str, ...]:
    """A warning about a text that a method does not follow on a model of this name; none where it does."""
    if target is None or reads or method in WITH_GRADIENTS:
        return ()
    return (f"{method.value} follows the colours alone, and {name} reads no words: the text is measured only",)
