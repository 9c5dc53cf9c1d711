"""Sampler files, format 2: one `.safetensors` file, nothing executable; FORMAT.md is the specification.

What is read is treated as hostile, as a direction's file is; see `directions.file.direction`.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from directions.file import container
from directions.file.entries import sampler_shapes
from directions.file.metadata import (
    TEXT_LIMIT,
    check_described,
    check_lengths,
    check_name,
    decode_fields,
    encode_fields,
    keys_of,
    lines_of,
)
from directions.file.rules import RULES, PictureURL, Rule, check_types, checks_of, require
from directions.file.terms import Term, to_terms
from flowgrad.errors import FlowgradError
from flowgrad.files import refuse_existing

if TYPE_CHECKING:
    import numpy as np

METHODS = ("rejection", "network")
MEASURES = ("natural", "wanted", "before", "after")
OFFSET_LIMIT, SIZE_LIMIT = 100, 1_000_000
_TENSOR_FIELDS = ("shapes",)  # told by the tensors, never by the metadata
Questions = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class SamplerInfo:
    """Everything a sampler's file says beside its tensors. Checked at construction; raises FlowgradError.

    `method` says how latents are drawn: "rejection", exactly, or "network", by one pass of a network. `terms` are the
    energies, on images of `steps` Euler steps gathered into the intervals that begin at `starts`; `questions` the texts
    by which `guide` tells classes apart, `offsets` what is added to the logits of answers, and `classifier` the network
    that answers beside it, if there is one. `parent` and
    `parent_hash` name the sampler that this one draws its proposals from, "" for the model's own noise. `acceptance` is
    the share of proposals that are accepted, and `effective` the effective size of the pool of `pool` samples under the
    energy. A network has `layers` of `width` hidden numbers, was trained by so many `updates`, and controls a subspace
    that explains the share `explained` of the energy's variance. `measured` has, for each class, fractions: in the eyes
    of the guide the model's mean ("natural") and the sampler's ("wanted"), and to the judge those of arg-max answers
    before and after.
    """

    title: str
    model: str
    fingerprint: str
    steps: int
    starts: tuple[int, ...]
    terms: tuple[Term, ...]
    method: str = "rejection"
    time_convention: str = "t=0 noise, t=1 data"
    questions: Questions = field(default_factory=dict)
    offsets: Mapping[str, float] = field(default_factory=dict)
    guide: str = ""
    guide_fingerprint: str = ""
    classifier: str = ""
    classifier_fingerprint: str = ""
    judge: str = ""
    parent: str = ""
    parent_hash: str = ""
    pool: int = 0
    effective: float = 0.0
    acceptance: float = 0.0
    seed: int = 0
    layers: int = 0
    width: int = 0
    updates: int = 0
    explained: float = 0.0
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    description: str = ""
    date: str = ""
    license: str = ""
    tags: tuple[str, ...] = ()
    thumbnail: PictureURL = ""
    version: str = ""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self, "", _CHECKS)
        _check(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, without the thumbnail, as plain values that `json.dumps` takes."""
        values = dataclasses.asdict(self)
        del values["thumbnail"]
        return values


@dataclass(frozen=True, eq=False)
class SamplerFile:
    """A sampler as it is kept: what it says, and its tensors by name (none for rejection).

    Raises FlowgradError for tensors that `info` does not describe, or that are not finite.
    """

    info: SamplerInfo
    tensors: "Mapping[str, np.ndarray]" = field(default_factory=dict)

    def __post_init__(self) -> None:
        import numpy as np

        shapes = {name: tuple(value.shape) for name, value in self.tensors.items()}
        if shapes != dict(self.info.shapes):
            raise FlowgradError(f"info describes tensors {dict(self.info.shapes)}, they are {shapes}. Train it again.")
        for name, value in self.tensors.items():
            if value.dtype.str != "<f4" or not np.isfinite(value).all():
                raise FlowgradError(f"tensor {name} must be finite float32. Train the sampler again.")

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that tell what it draws: of the tensors and of all that its energies depend on."""
        import hashlib

        facts = (self.info.fingerprint, self.info.steps, self.info.starts, self.info.terms, self.info.method)
        more = (self.info.guide_fingerprint, self.info.questions, self.info.offsets, self.info.parent_hash)
        beside = (self.info.classifier_fingerprint,) if self.info.classifier else ()
        digest = hashlib.sha256(repr((*facts, *more, *beside)).encode())
        for name in sorted(self.tensors):
            digest.update(name.encode() + self.tensors[name].tobytes())
        return digest.hexdigest()[:16]


def read_sampler_info(path: Path) -> SamplerInfo:
    """Read the header of a sampler's file. Raises FlowgradError naming the file, the rule it breaks and the remedy."""
    with container.open_named(path) as file:
        return to_sampler_info(container.read_header(file))


def to_sampler_info(header: container.Header) -> SamplerInfo:
    """Return what a sampler's header says. Raises FlowgradError for one that breaks the format."""
    shapes = sampler_shapes(header)
    values = decode_fields(header.metadata, _KEYS)
    values["terms"] = to_terms(values["terms"])
    return SamplerInfo(**values, shapes=shapes)


def read_sampler(path: Path) -> SamplerFile:
    """Read and check a whole sampler's file. Raises FlowgradError as `read_sampler_info`, and for broken tensors."""
    with container.open_named(path) as file:
        header = container.read_header(file)
        info = to_sampler_info(header)
        tensors, digest = container.read_tensors(file)
        if header.metadata.get(container.HASH_KEY, digest) != digest:
            container.corrupt("its tensors do not have the hash in its header")
        return SamplerFile(info, tensors)


def write_sampler(sampler: SamplerFile, path: Path, overwrite: bool = False) -> Path:
    """Write a sampler; the same one always gives the same bytes. Returns the path.

    Raises UsageError if the file exists and `overwrite` is False, FlowgradError where the disk refuses.
    """
    refuse_existing(path, overwrite)
    metadata = encode_fields(sampler.info, "sampler", container.FORMATS["sampler"], _KEYS)
    container.write_container(path, metadata, {name: value.copy() for name, value in sampler.tensors.items()})
    return path


_KEYS = keys_of(SamplerInfo, without=_TENSOR_FIELDS)


def _maps(value: object, rule: Rule) -> bool:
    """Whether a value maps texts to what obeys a rule."""
    if not isinstance(value, Mapping):
        return False
    return all(map(RULES[str][0], value)) and all(rule[0](item) for item in value.values())


_TEXTS: Rule = (lambda value: _maps(value, RULES[str]), "texts by text")
_NUMBERS: Rule = (lambda value: _maps(value, RULES[float]), "numbers by text")
_RULES: dict[Any, Rule] = {
    **RULES,
    tuple[Term, ...]: (lambda value: isinstance(value, tuple) and all(isinstance(t, Term) for t in value), "terms"),
    Questions: (lambda value: _maps(value, _TEXTS), "texts by answer, by question"),
    Mapping[str, float]: _NUMBERS,
    Mapping[str, Mapping[str, float]]: (lambda value: _maps(value, _NUMBERS), "numbers by name, by class"),
    Mapping[str, tuple[int, ...]]: (lambda value: _maps(value, RULES[tuple[int, ...]]), "shapes by tensor"),
}


_CHECKS = checks_of(SamplerInfo, _RULES)


def _check(info: SamplerInfo) -> None:
    check_described(info)
    require(info.method in METHODS, f"method must be one of {', '.join(METHODS)}", info.method)
    require(bool(info.terms), "a sampler must have an energy", info.terms)
    knots = (*info.starts, info.steps)
    increasing = bool(info.starts) and knots[0] == 0 and all(a < b for a, b in pairwise(knots))
    require(increasing, f"starts must increase from 0, below N = {info.steps}", info.starts)
    require((info.method == "network") == bool(info.shapes), "a network, and nothing else, has tensors", info.method)
    for name in ("layers", "width", "updates"):
        fits = 0 <= getattr(info, name) <= SIZE_LIMIT
        require(fits, f"{name} must lie in 0 to {SIZE_LIMIT}", getattr(info, name))
    require(0 <= info.explained <= 1, "explained must be a fraction of 1", info.explained)
    if info.method == "network":
        require(info.layers > 0 and info.width > 0, "a network must have layers and a width", info.layers)
        basis = info.shapes.get("basis", ())
        require(len(basis) > 1 and basis[0] > 1, "a network must have a basis (d, *D), d at least 2", basis)
    both = bool(info.classifier) == bool(info.classifier_fingerprint)
    require(both, "a classifier must have a name and a fingerprint", info.classifier)
    require(bool(info.parent) == bool(info.parent_hash), "a parent must have a name and a hash", info.parent)
    if info.parent:
        check_name(info.parent, "sampler")
    require(info.pool >= 0, "pool must be at least 0", info.pool)
    require(0 <= info.effective <= info.pool, f"effective must lie in 0 to pool = {info.pool}", info.effective)
    require(0 <= info.acceptance <= 1, "acceptance must be a fraction of 1", info.acceptance)
    for name, row in info.measured.items():
        known = set(row) <= set(MEASURES) and all(0 <= share <= 1 for share in row.values())
        require(known, f"measured of {name} must give fractions of 1 by {', '.join(MEASURES)}", dict(row))
    check_lengths(_texts(info))
    _check_questions(info)


def _check_questions(info: SamplerInfo) -> None:
    """Refuse terms that ask for classes that no question has."""
    answers = [answer for texts in info.questions.values() for answer in texts]
    require(len(set(answers)) == len(answers), "an answer must belong to one question", answers)
    known = set(info.offsets) <= set(answers) and all(abs(offset) <= OFFSET_LIMIT for offset in info.offsets.values())
    require(known, f"offsets must be of answers, within {OFFSET_LIMIT} of 0", dict(info.offsets))
    for term in info.terms:
        require(set(term.answers) <= set(answers), "answers of a term must be among the questions'", term.answers)
        known = set(term.attributes) <= set(info.questions)
        require(known, "attributes of a term must be among the questions", term.attributes)
        count = sum(len(info.questions[name]) for name in term.attributes)
        target = () if term.kind == "pose" else term.target
        fits = len(term.beta) == len(target) == count
        require(fits, f"beta and target of a term must have {count} numbers, one for each answer", term.beta)


def _texts(info: SamplerInfo) -> Iterator[tuple[str, int, Collection[str]]]:
    """All texts but the thumbnail, with the names of their fields and how long they may be."""
    yield from lines_of(info, _KEYS)
    yield "tags", TEXT_LIMIT, info.tags
    for term in info.terms:
        yield "a term's text", TEXT_LIMIT, (term.text, term.source, *term.answers, *term.attributes)
    for question, answers in info.questions.items():
        yield "questions", TEXT_LIMIT, (question, *answers, *answers.values())
    yield "measured", TEXT_LIMIT, tuple(info.measured)
