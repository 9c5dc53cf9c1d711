"""How well a guide tells images apart by two texts, without any training for it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flowgrad.errors import UsageError
from flowgrad.guidance.guide import Guide
from flowgrad.training.guide.config import GuideConfig, QuestionConfig
from flowgrad.training.guide.labels import Labels

_BATCH = 128


@torch.no_grad()
def guide_auc(
    guide: Guide, images: Tensor, labels: Mapping[str, Tensor], prompts: Mapping[str, tuple[str, str]]
) -> dict[str, float]:
    """Area under the ROC curve of `s(image, text) - s(image, against)` for each named pair of prompts.

    An image's score is the mean of its own and its mirror image's, which training does not tell apart; where `against`
    is empty it is that of the text alone. `images` (N, 3, H, W) in [-1, 1]; `labels[name]` (N,) is 1 where the text is
    right, 0 where it is wrong and NaN where neither counts. Raises UsageError if a name has no label or only one kind
    of image.
    """
    missing = [name for name in prompts if name not in labels]
    if missing:
        raise UsageError(
            f"no labels for {missing[0]!r} (there are: {', '.join(labels)}): name prompts as their labels."
        )
    found = torch.cat([guide.encode_images(x) + guide.encode_images(x.flip(3)) for x in images.split(_BATCH)])
    areas = {}
    for name, (text, against) in prompts.items():
        direction = guide.encode_texts([text])[0] - (guide.encode_texts([against])[0] if against else 0)
        areas[name] = area_under_curve(found @ direction, labels[name])
    return areas


def area_under_curve(scores: Tensor, labels: Tensor) -> float:
    """Probability that a positive (label 1) scores above a negative (0); ties count half, NaN labels not at all."""
    positive, negative = scores[labels == 1].double(), scores[labels == 0].double()
    if len(positive) == 0 or len(negative) == 0:
        raise UsageError(
            f"an AUC needs both kinds of image, got {len(positive)} positive and {len(negative)} negative."
        )
    ordered = negative.sort().values
    below, up_to = torch.searchsorted(ordered, positive), torch.searchsorted(ordered, positive, right=True)
    return float((below + up_to).double().mean() / (2 * len(negative)))


def questions(config: GuideConfig, labels: Labels) -> tuple[dict[str, Tensor], dict[str, tuple[str, str]]]:
    """Return labels and prompts for `guide_auc` as the config's `evaluation` section asks for."""
    truths = {question.name: _truth(question, config, labels) for question in config.evaluation}
    return truths, {question.name: (question.text, question.against) for question in config.evaluation}


def _truth(question: QuestionConfig, config: GuideConfig, labels: Labels) -> Tensor:
    positive = _likely(question.positive, config, labels)
    negative = ~positive if question.negative is None else _likely(question.negative, config, labels)
    nothing = torch.full((len(labels.files),), torch.nan)
    return torch.where(positive, 1.0, torch.where(negative, 0.0, nothing))


def _likely(claims: Mapping[str, Sequence[str]], config: GuideConfig, labels: Labels) -> Tensor:
    """Where every claimed attribute has one of the claimed values with a probability over one half (N,)."""
    likely = torch.ones(len(labels.files), dtype=torch.bool)
    start = 0
    for name, attribute in config.attributes.items():
        values = attribute.values_in_order
        if name in claims:
            columns = [start + values.index(value) for value in claims[name]]
            likely &= labels.probabilities[:, columns].sum(1) > 0.5
        start += len(values)
    return likely
