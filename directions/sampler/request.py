"""What a sampler is asked for, checked before anything is loaded: terms of an energy, and a grid."""

from collections.abc import Sequence
from pathlib import Path

from directions.file.terms import MAGNITUDE_LIMIT, Term
from directions.progress import Reporter
from directions.train.recipe import check_intervals
from flowgrad.errors import FlowgradError, UsageError, all_of
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.names import knows_any_word
from flowgrad.guidance.questions import (
    Questions,
    check_answers,
    check_question,
    check_yaw,
    question_of,
    target_shares,
)
from flowgrad.model_config import ModelConfig

INTERVALS = 12  # of the grid that the energy's images are drawn on: a quarter of the usual N


def text_term(
    text: str, source: str | None, config: ModelConfig, vocabulary: frozenset[str] | None, weight: float = 1.0
) -> Term:
    """Images that show a text, against a source text; by default the model's subject.

    vocabulary: the guide's words, None where they are not known. Raises UsageError for a text that is empty, its own
    source, or of which the guide knows no word.
    """
    target = Contrast.parse(text, source or config.subject)
    if not knows_any_word(vocabulary, target.text):
        raise UsageError(f"the guide knows no word of the text {target.text!r}. Use other words or another guide")
    return Term("text", check_weight(weight), text=target.text, source=target.source)


def class_term(answers: Sequence[str], config: ModelConfig, weight: float = 1.0) -> Term:
    """Images of classes, one of a question at most. Raises UsageError for an unknown one, with the known."""
    check_answers(questions_of(config), answers)
    return Term("class", check_weight(weight), answers=tuple(answers))


def pose_term(degrees: Sequence[float], config: ModelConfig, weight: float = 1.0) -> Term:
    """Faces turned by so many degrees, or within a range of them, above 0 towards the right of the picture.

    Raises UsageError for a range that is none, or a model of anything but aligned faces.
    """
    _check_faces(config)
    return Term("pose", check_weight(weight), target=check_yaw(degrees))


def identity_term(photo: Path, config: ModelConfig, reporter: Reporter, weight: float = 1.0) -> Term:
    """The person on a photo, by its largest face; of a folder of photos, the mean of their descriptors.

    This loads the recogniser: it comes after all other checks. Raises UsageError for a model of anything but aligned
    faces, or a photo that is not there; FlowgradError for one that cannot be read or has no face, and without the extra
    `faces`.
    """
    _check_faces(config)
    check_weight(weight)
    from directions.photo.faces import largest_of, read_faces
    from directions.photo.reading import to_tensor
    from directions.photo.sources import find_sources

    faces, errors = [], []
    for source in find_sources([str(photo)]):
        found = read_faces(source, config.size).faces
        if not found.crops:
            errors.append(FlowgradError(f"{source}: {found.lack}. Use a photo with a larger, frontal face."))
            continue
        face = largest_of(found)
        faces.append(face.image)
        if face.warning:
            reporter.warn(f"{source.name}: {face.warning}")
    if errors:
        raise all_of(errors, f"{len(errors)} of {len(errors) + len(faces)} photos show nobody")
    from directions.apply.identity import descriptors

    mean = descriptors(to_tensor(faces)).mean(0)
    return Term("identity", weight, descriptor=tuple(mean.tolist()))


def moment_term(attributes: Sequence[str], targets: Sequence[Sequence[float] | None], config: ModelConfig) -> Term:
    """Images whose answers to questions have certain shares; beta is 0 until it is solved for.

    targets: shares for each attribute, None for even ones; fewer targets than attributes leave the last ones even.
    Raises UsageError for an unknown attribute or one named twice, too many targets, or shares that are none.
    """
    questions = questions_of(config)
    if not attributes:
        raise UsageError(f"name an attribute whose shares are to change: {', '.join(questions)}")
    if len(set(attributes)) < len(attributes):
        raise UsageError(f"each attribute is named once; got {', '.join(attributes)}")
    if len(targets) > len(attributes):
        raise UsageError(f"{len(targets)} targets were given for {len(attributes)} attributes: one for each at most")
    wanted = [*targets, *[None] * (len(attributes) - len(targets))]
    shares = [
        target_shares(tuple(questions[check_question(questions, name)]), share, name)
        for name, share in zip(attributes, wanted, strict=True)
    ]
    target = tuple(share for row in shares for share in row)
    return Term("moment", attributes=tuple(attributes), beta=(0.0,) * len(target), target=target)


def _check_faces(config: ModelConfig) -> None:
    """Raise UsageError unless a model makes aligned faces."""
    if not config.aligned_faces:
        raise UsageError(f"{config.name} makes no aligned faces: a person or a pose can be asked for with those alone")


def questions_of(config: ModelConfig) -> Questions:
    """The questions of a model's configuration. Raises UsageError if it has none."""
    if not config.classes:
        raise UsageError(f"{config.name} has no classes: give its configuration a table `classes`, or ask by a text")
    return config.classes


def image_intervals(asked: int | None, steps: int) -> int:
    """The intervals of the grid that images are drawn on: as asked for, or the usual number of a model with N `steps`.

    Raises UsageError for more than N.
    """
    check_intervals(asked, steps)
    return asked or min(INTERVALS, steps)


def asked_questions(terms: Sequence[Term], config: ModelConfig) -> Questions:
    """The questions that terms ask about; what their file must say to be understood."""
    names = [name for term in terms for name in term.attributes]
    names += [question_of(config.classes, answer) for term in terms for answer in term.answers]
    return {name: config.classes[name] for name in dict.fromkeys(names)}


def check_weight(weight: float) -> float:
    """Return an energy's weight (lambda). Raises UsageError unless it is above 0, and what a file may hold."""
    if not 0 < weight <= MAGNITUDE_LIMIT:
        raise UsageError(f"a weight must be a number above 0, at most {MAGNITUDE_LIMIT:,}; got {weight:g}")
    return weight
