"""Classes of images: questions whose answers exclude one another, told apart by texts that a guide reads."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowgrad.errors import UsageError
from flowgrad.guidance.guide import Guide
from flowgrad.resources import like

Questions = Mapping[str, Mapping[str, str]]  # question -> answer -> the text that describes it


@dataclass(frozen=True)
class Classes:
    """Zero-shot probabilities of every question's answers: the softmax of CLIP's logits over the answers' texts.

    Raises UsageError for no question, a question of fewer than two answers, or an answer that two questions have.
    """

    guide: Guide
    questions: Questions
    _texts: dict[str, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_questions(self.questions)
        texts = {name: self.guide.encode_texts(list(answers.values())) for name, answers in self.questions.items()}
        object.__setattr__(self, "_texts", texts)

    def log_probabilities(self, images: Tensor, questions: Iterable[str] | None = None) -> dict[str, Tensor]:
        """(B, answers) by question, for images (B, 3, H, W) in [-1, 1], differentiably; default: all questions."""
        embeddings = self.guide.encode_images(images)
        chosen = self.questions if questions is None else questions
        return {name: (self.guide.logit_scale * embeddings @ self._texts[name].T).log_softmax(1) for name in chosen}

    def moments(self, images: Tensor) -> Tensor:
        """phi(x) (B, C): the probabilities of all questions' answers, side by side, differentiably."""
        return torch.cat(list(self.log_probabilities(images).values()), 1).exp()

    def select(self, questions: Iterable[str]) -> "Classes":
        """Some of the questions. Raises UsageError for an unknown one, with the known."""
        return Classes(self.guide, {name: self.questions[check_question(self.questions, name)] for name in questions})


def check_questions(questions: Questions) -> None:
    """Raise UsageError unless there are questions, of two answers or more, that share no answer."""
    answers = [answer for texts in questions.values() for answer in texts]
    if not questions or any(len(texts) < 2 for texts in questions.values()):
        raise UsageError(f"classes need questions of two answers or more; got {dict(questions)}")
    if len(set(answers)) < len(answers):
        twice = sorted({answer for answer in answers if answers.count(answer) > 1})
        raise UsageError(f"an answer belongs to one question; several have {', '.join(twice)}: rename it")


def check_question(questions: Questions, name: str) -> str:
    """Return the name of a question. Raises UsageError for an unknown one, with the known."""
    if name not in questions:
        raise UsageError(f"no attribute is called {name!r}; there is {', '.join(questions) or 'none'}")
    return name


def question_of(questions: Questions, answer: str) -> str:
    """The question that an answer belongs to. Raises UsageError for an unknown answer, with the nearest or all."""
    for question, answers in questions.items():
        if answer in answers:
            return question
    known = like(answer, [answer for answers in questions.values() for answer in answers])
    raise UsageError(f"no class is called {answer!r}; there is {known or 'none'}")
