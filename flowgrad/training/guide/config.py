"""Configuration of a guide's training: validated, with unknown keys refused by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from flowgrad.resources import read_config
from flowgrad.training.loop.optimization import Optimization, Positive, Share
from flowgrad.validation import Section, nearest, validated


class TableConfig(Section):
    """Columns of the table of labels that are not attributes."""

    file: str = "file"
    split: str | None = None
    train: str = "train"
    test: str = "test"


class NumberConfig(Section):
    """A numeric column cut into ranges `value: [first, last]`, both included."""

    kind: Literal["number"]
    column: str
    ranges: dict[str, tuple[float, float]] = Field(min_length=2)
    softness: Share = 0.0

    @property
    def values_in_order(self) -> list[str]:
        """Names of the values."""
        return list(self.ranges)

    @property
    def table_columns(self) -> list[str]:
        """Columns of the table that are read."""
        return [self.column]


class CategoryConfig(Section):
    """A column whose entries are the values; other entries are unknown."""

    kind: Literal["category"]
    column: str
    values: list[str] = Field(min_length=2)

    @property
    def values_in_order(self) -> list[str]:
        """Names of the values."""
        return self.values

    @property
    def table_columns(self) -> list[str]:
        """Columns of the table that are read."""
        return [self.column]


class ProbabilitiesConfig(Section):
    """One column of probabilities per value; with a threshold: the value above it, else unknown."""

    kind: Literal["probabilities"]
    columns: dict[str, str] = Field(min_length=2)
    threshold: Annotated[float, Field(gt=0.5, le=1)] | None = None

    @property
    def values_in_order(self) -> list[str]:
        """Names of the values."""
        return list(self.columns)

    @property
    def table_columns(self) -> list[str]:
        """Columns of the table that are read."""
        return list(self.columns.values())


AttributeConfig = Annotated[NumberConfig | CategoryConfig | ProbabilitiesConfig, Field(discriminator="kind")]


class BalanceConfig(Section):
    """How strongly rare combinations of attributes are oversampled."""

    attributes: list[str] = Field(default_factory=list)
    power: Share = 0.0
    limit: Annotated[float, Field(ge=1)] = 10.0


class PhraseConfig(Section):
    """Words that say the same; the values for which that is true, and those for which nobody could tell.

    Of the phrases of a slot each is chosen with a probability in proportion to its weight.
    """

    words: list[str] = Field(min_length=1)
    weight: Annotated[float, Field(gt=0)] = 1.0
    means: dict[str, list[str]] = Field(default_factory=dict)
    unsure: dict[str, list[str]] = Field(default_factory=dict)


class NetworkConfig(Section):
    """Sizes of the CLIP network."""

    embed_dim: Annotated[int, Field(ge=1)] = 128
    resolution: Annotated[int, Field(ge=32, multiple_of=32)] = 64
    vision_layers: tuple[int, int, int, int] = (2, 2, 2, 2)
    vision_width: Annotated[int, Field(ge=2, multiple_of=2)] = 24
    context_length: Annotated[int, Field(ge=3)] = 16
    text_width: Annotated[int, Field(ge=64, multiple_of=64)] = 64
    text_layers: Annotated[int, Field(ge=1)] = 3


class TrainingConfig(Optimization):
    """How the network is trained; see `Optimization` for the keys that all trainings share.

    captions: how many a step compares with the images, out of `pool` that are drawn in advance; smoothing: of their
    targets; attribute_loss: weight of the readout of attribute values.
    """

    batch: Annotated[int, Field(ge=2)] = 128
    captions: Annotated[int, Field(ge=1)] = 80
    pool: Annotated[int, Field(ge=1)] = 16384
    smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.02
    attribute_loss: Annotated[float, Field(ge=0)] = 0.5
    learning_rate: Positive = 1e-3
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    betas: tuple[Share, Share] = (0.9, 0.98)
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.998


class QuestionConfig(Section):
    """A figure to report: does `text` (rather than `against`, if given) single out the images with these values?"""

    name: str
    text: str
    against: str = ""
    positive: dict[str, list[str]]
    negative: dict[str, list[str]] | None = None


class CardConfig(Section):
    """What the README beside the exported weights says of them."""

    title: str = "A guide"
    summary: str = "A network of CLIP's architecture: images and English texts become unit vectors."
    data: str = "Not stated."
    figures: str = "Area under the ROC curve on images held out from training; no part was trained for the question."
    license: str = "Not stated."


class CaptionConfig(Section):
    """Attributes of the images and the grammar that speaks of them."""

    attributes: dict[str, AttributeConfig] = Field(min_length=1)
    slots: dict[str, list[PhraseConfig]]
    templates: list[str] = Field(min_length=1)
    fill: Share = 0.5

    @model_validator(mode="after")
    def _names_exist(self) -> "CaptionConfig":
        for slot, phrases in self.slots.items():
            for phrase in phrases:
                self._check_phrase(slot, phrase)
        for template in self.templates:
            for part in template.split("{")[1:]:
                _known(part.split("}")[0].rstrip("?"), list(self.slots), f"slot in the template {template!r}")
        return self

    def _check_phrase(self, slot: str, phrase: PhraseConfig) -> None:
        for claims in (phrase.means, phrase.unsure):
            self.check_claims(claims, f"slots.{slot}")
        silent = set(phrase.unsure) - set(phrase.means)
        if silent:
            raise ValueError(f"slots.{slot}: {phrase.words[0]!r} is unsure of {min(silent)} but means nothing of it")

    def check_claims(self, claims: dict[str, list[str]], where: str) -> None:
        """Raise ValueError if a claim is of an attribute or a value that is not configured."""
        for name, values in claims.items():
            _known(name, list(self.attributes), f"attribute in {where}")
            for value in values:
                _known(value, self.attributes[name].values_in_order, f"value of {name} in {where}")


class GuideConfig(CaptionConfig):
    """Everything `train-guide` needs to know beside the images and their table."""

    table: TableConfig = TableConfig()
    balance: BalanceConfig = BalanceConfig()
    network: NetworkConfig = NetworkConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: list[QuestionConfig] = Field(default_factory=list)
    card: CardConfig = CardConfig()

    def change(self, **changes: object) -> "GuideConfig":
        """Return a config with some keys of its training changed, validated again. Raises UsageError."""
        parts = self.model_dump()
        return validated(GuideConfig, {**parts, "training": {**parts["training"], **changes}}, "the config")

    @model_validator(mode="after")
    def _claims_exist(self) -> "GuideConfig":
        for name in self.balance.attributes:
            _known(name, list(self.attributes), "attribute in balance")
        for question in self.evaluation:
            for claims in (question.positive, question.negative or {}):
                self.check_claims(claims, f"evaluation {question.name!r}")
        return self


def load_guide_config(name: str | Path) -> GuideConfig:
    """Read the config of a shipped name or a YAML file.

    UsageError names the first thing wrong with it and, for an unknown key or name, the nearest one.
    """
    return validated(GuideConfig, read_config("guides", name), name)


def _known(name: str, names: Sequence[str], what: str) -> None:
    if name not in names:
        raise ValueError(f"unknown {what}: {name!r}{nearest(name, names)}")
