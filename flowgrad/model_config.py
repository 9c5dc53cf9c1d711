"""Models as configuration: one commented YAML file per model, validated."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.guidance.questions import check_offsets, check_questions
from flowgrad.resources import FOLDER_CONFIG, HUB_NAME, find_config, read_table, weight_places
from flowgrad.validation import Section, validated

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class NCSNppSizes(Section):
    """Sizes of an NCSN++; the defaults are those of the published 256x256 models."""

    channels: int = Field(default=128, gt=0, multiple_of=8)
    multipliers: tuple[PositiveInt, ...] = Field(default=(1, 1, 2, 2, 2, 2, 2), min_length=1)
    blocks: int = Field(default=2, gt=0)
    attention: tuple[int, ...] = (16,)


class ModelConfig(Section):
    """What a model is and how it meets the contract; see configs/models/*.yaml for each key."""

    name: str = Field(pattern=NAME)
    title: str = ""
    description: str = ""
    licence: str = ""
    family: Literal["diffusers-unet", "rf-ncsnpp", "ldm", "diffusers"]
    weights: str
    source: str = ""
    download: str = ""
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    size: int = Field(gt=0)
    steps: int = Field(default=50, gt=0)
    guide: str = ""
    judge: str = ""
    classifier: str = ""
    subject: str = "a photo"
    mirror: bool = False
    aligned_faces: bool = False
    probes: tuple[str, ...] = ()
    classes: dict[str, dict[str, str]] = Field(default_factory=dict)
    class_offsets: dict[str, float] = Field(default_factory=dict)
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    batch: int = Field(default=16, gt=0)
    trajectories: Literal["device", "host", "host-half"] = "device"
    checkpointing: bool = False
    patch: int = Field(default=1, gt=0)
    time_scale: float = Field(default=1000.0, gt=0)
    network: NCSNppSizes = NCSNppSizes()
    prediction: Literal["scheduler", "velocity"] = "scheduler"
    prompt: str = ""
    negative_prompt: str = ""
    guidance_scale: float = Field(default=1.0, ge=0)
    gate: dict[str, tuple[float, float]] = Field(default_factory=dict)
    folder: Path = Field(default=Path(), exclude=True)

    @model_validator(mode="after")
    def _keys_of_the_family(self) -> "ModelConfig":
        for key in self.model_fields_set & FAMILY_KEYS.keys():
            if self.family != FAMILY_KEYS[key]:
                raise ValueError(
                    f"{key} belongs to the family {FAMILY_KEYS[key]}, and this is {self.family}: remove it"
                )
        if self.classes or self.class_offsets:
            try:
                check_questions(self.classes)
                check_offsets(self.classes, self.class_offsets)
            except UsageError as error:
                raise ValueError(str(error)) from error
        if self.sha256 and self.family == "diffusers":
            raise ValueError("sha256 is of one file, and this family has a folder of several: remove it")
        return self

    @property
    def candidates(self) -> tuple[Path, ...]:
        """Where weights are looked for; see `flowgrad.resources.weight_places`."""
        return weight_places(self.weights, self.folder)

    @property
    def weights_path(self) -> Path:
        """The first of the candidates that is there, else the first."""
        return next((path for path in self.candidates if path.exists()), self.candidates[0])

    @property
    def on_hub(self) -> bool:
        """Whether `weights` is a name on the Hugging Face hub rather than a path."""
        return self.family == "diffusers" and not self.weights_path.exists() and bool(HUB_NAME.fullmatch(self.weights))

    @property
    def card_folder(self) -> Path | None:
        """Where the model's card and pictures lie: its own folder; None if it has none, but a configuration alone."""
        if self.family == "diffusers-unet":
            return self.weights_path
        return self.folder if (self.folder / FOLDER_CONFIG).is_file() else None

    def weights_file(self) -> Path:
        """The weights, which must be there. Raises FlowgradError saying where they were looked for and come from."""
        if self.weights_path.exists():
            return self.weights_path
        places = " or ".join(dict.fromkeys(str(path) for path in self.candidates[:2]))
        origin = (self.source, self.download, self.licence and f"licence: {self.licence}", self.sha256)
        known = "; ".join(part for part in origin if part) or "its configuration does not say where to get them"
        raise FlowgradError(f"the weights of {self.name} are missing: put them at {places}.\nThey are: {known}")


FAMILY_KEYS = {
    "patch": "diffusers-unet",
    "time_scale": "diffusers-unet",
    "network": "rf-ncsnpp",
    "prediction": "diffusers",
    "prompt": "diffusers",
    "negative_prompt": "diffusers",
    "guidance_scale": "diffusers",
}


def check_model_name(name: str) -> str:
    """Return a name that a model can have. Raises UsageError for one that it cannot."""
    if not re.fullmatch(NAME, name):
        rule = "a model's name has up to 64 lower-case letters, digits, '.', '_' and '-', the first a letter or digit"
        raise UsageError(f"{rule}; got {name!r}")
    return name


def load_config(name: str) -> ModelConfig:
    """Read and validate a model's configuration; a guide that lies beside it is given by its path.

    Raises UsageError for an unknown name, for a file that is no YAML, and for each wrong key or value.
    """
    path = find_config(name)
    config = validated(ModelConfig, {**read_table(path), "folder": path.parent}, path)
    guide = path.parent / config.guide
    return config.model_copy(update={"guide": str(guide)}) if config.guide and guide.is_file() else config
