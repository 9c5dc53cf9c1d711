"""Classes of images, told apart by texts that a guide reads, and by a classifier beside it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowgrad.guidance.guide import Guide
from flowgrad.guidance.judge import Judge
from flowgrad.guidance.questions import (
    Questions,
    check_offsets,
    check_question,
    check_questions,
    offsets_of,
    question_of,
)


@dataclass(frozen=True)
class Classes:
    """Zero-shot probabilities of every question's answers: the softmax of CLIP's logits over the answers' texts.

    offsets: added to the logits of answers; they set right how common a guide takes each to be. An answer without one
    has 0. classifier: of questions that it knows too, p is the geometric mean of the guide's and its own, normalised:
    two networks of different kinds err on different images. Raises UsageError for no question, a question of fewer than
    two answers, an answer that two questions have, or an offset of none.
    """

    guide: Guide
    questions: Questions
    offsets: Mapping[str, float] = field(default_factory=dict)
    classifier: Judge | None = None
    _texts: dict[str, tuple[Tensor, Tensor]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_questions(self.questions)
        check_offsets(self.questions, self.offsets)
        object.__setattr__(self, "_texts", {name: self._read(texts) for name, texts in self.questions.items()})

    def _read(self, texts: Mapping[str, str]) -> tuple[Tensor, Tensor]:
        """The embeddings (answers, E) and the offsets (answers,) of a question."""
        embeddings = self.guide.encode_texts(list(texts.values()))
        return embeddings, embeddings.new_tensor([self.offsets.get(answer, 0.0) for answer in texts])

    def log_probabilities(self, images: Tensor, questions: Iterable[str] | None = None) -> dict[str, Tensor]:
        """(B, answers) by question, for images (B, 3, H, W) in [-1, 1], differentiably; default: all questions."""
        embeddings = self.guide.logit_scale * self.guide.encode_images(images)
        chosen = {name: self._texts[name] for name in (self.questions if questions is None else questions)}
        found = {name: (embeddings @ texts.T + offsets).log_softmax(1) for name, (texts, offsets) in chosen.items()}
        if self.classifier and (known := [name for name in found if self.classifier.knows(self.questions[name])]):
            others = self.classifier.log_probabilities(images)
            for name in known:
                other = torch.stack([others[answer] for answer in self.questions[name]], 1)
                found[name] = ((found[name] + other) / 2).log_softmax(1)
        return found

    def moments(self, images: Tensor) -> Tensor:
        """phi(x) (B, C): the probabilities of all questions' answers, side by side, differentiably."""
        return torch.cat(list(self.log_probabilities(images).values()), 1).exp()

    def log_odds(self, images: Tensor, answers: Sequence[str]) -> Tensor:
        """(B, answers) log p / (1 - p) of some answers, in their order, differentiably; exact where p is nearly 1."""
        asked = [question_of(self.questions, answer) for answer in answers]
        log_p = self.log_probabilities(images, dict.fromkeys(asked))
        columns = [list(self.questions[name]).index(answer) for name, answer in zip(asked, answers, strict=True)]
        return torch.stack([_odds(log_p[name], k) for name, k in zip(asked, columns, strict=True)], 1)

    def select(self, questions: Iterable[str]) -> "Classes":
        """Some of the questions. Raises UsageError for an unknown one, with the known."""
        chosen = {name: self.questions[check_question(self.questions, name)] for name in questions}
        return Classes(self.guide, chosen, offsets_of(chosen, self.offsets), self.classifier)


def _odds(log_p: Tensor, k: int) -> Tensor:
    """log p_k / (1 - p_k) (B,), from log-probabilities (B, answers) of all answers."""
    return log_p[:, k] - torch.cat([log_p[:, :k], log_p[:, k + 1 :]], 1).logsumexp(1)
