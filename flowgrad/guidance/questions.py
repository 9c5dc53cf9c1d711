"""Questions about images whose answers exclude one another, as a configuration has them; told without any network."""

from collections.abc import Mapping, Sequence

from flowgrad.errors import UsageError
from flowgrad.resources import like

Questions = Mapping[str, Mapping[str, str]]  # question -> answer -> the text that describes it


def check_questions(questions: Questions) -> None:
    """Raise UsageError unless there are questions, of two answers or more, that share no answer."""
    answers = [answer for texts in questions.values() for answer in texts]
    if not questions or any(len(texts) < 2 for texts in questions.values()):
        raise UsageError(f"classes need questions of two answers or more; got {dict(questions)}")
    if len(set(answers)) < len(answers):
        twice = sorted({answer for answer in answers if answers.count(answer) > 1})
        raise UsageError(f"an answer belongs to one question; several have {', '.join(twice)}: rename it")


def check_offsets(questions: Questions, offsets: Mapping[str, float]) -> None:
    """Raise UsageError for an offset of what is no answer."""
    for answer in offsets:
        question_of(questions, answer)


def offsets_of(questions: Questions, offsets: Mapping[str, float]) -> dict[str, float]:
    """Those of the offsets that belong to answers of these questions."""
    return {answer: offsets[answer] for texts in questions.values() for answer in texts if answer in offsets}


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


def check_answers(questions: Questions, answers: Sequence[str]) -> None:
    """Raise UsageError for no answer, an unknown one (with the known), or two of the same question."""
    asked = [question_of(questions, answer) for answer in answers]
    if not asked:
        raise UsageError("a class energy needs one class or more: name them")
    if twice := [question for question in dict.fromkeys(asked) if asked.count(question) > 1]:
        rule = f"classes must answer different questions; {', '.join(answers)} share {twice[0]}"
        raise UsageError(f"{rule}: name one of them")


def check_yaw(degrees: Sequence[float]) -> tuple[float, float]:
    """A range of yaws, from one number or two. Raises UsageError unless it is one, within 90 degrees of 0."""
    low, high = degrees[0], degrees[-1]
    if len(degrees) > 2 or not -90 < low <= high < 90:
        written = ", ".join(f"{value:g}" for value in degrees)
        raise UsageError(f"a yaw is a number of degrees between -90 and 90, or a range of them; got {written}")
    return low, high


def target_shares(answers: Sequence[str], shares: Sequence[float] | None, name: str) -> tuple[float, ...]:
    """What the shares of a question's answers shall be; even ones without `shares`.

    Raises UsageError for another number of shares than of answers, a share that is not between 0 and 1, or shares
    that do not sum to 1.
    """
    if shares is None:
        return (1 / len(answers),) * len(answers)
    if len(shares) != len(answers):
        raise UsageError(f"{name} has {len(answers)} answers ({', '.join(answers)}); got {len(shares)} shares")
    if not all(0 < share < 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        written = ", ".join(f"{share:g}" for share in shares)
        raise UsageError(f"shares of {name} must lie between 0 and 1 and sum to 1; got {written} ({sum(shares):g})")
    return tuple(shares)
