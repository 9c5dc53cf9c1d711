"""Models as configuration: one commented YAML file per model, validated."""

import difflib
import re
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.resources import FOLDER_CONFIG, model_files, resource

NAME = r"^[a-z0-9][a-z0-9._-]*$"
LONGEST_NAME = 64


class ModelConfig(BaseModel):
    """What a model is and how it meets the contract; see configs/models/faces64.yaml for each key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME, max_length=LONGEST_NAME)
    title: str = ""
    description: str = ""
    licence: str = ""
    family: Literal["diffusers-unet"]
    weights: str
    size: int = Field(gt=0)
    patch: int = Field(default=1, gt=0)
    time_scale: float = Field(default=1000.0, gt=0)
    steps: int = Field(default=50, gt=0)
    guide: str = ""
    subject: str = "a photo"
    aligned_faces: bool = False
    probes: tuple[str, ...] = ()
    folder: Path = Field(default=Path(), exclude=True)

    @property
    def weights_path(self) -> Path:
        """The weights' folder: beside the config file if it is there, else among the shipped ones."""
        beside = self.folder / self.weights
        return beside if beside.exists() else resource("weights") / self.weights


def check_model_name(name: str) -> str:
    """Return a name that a model can have. Raises UsageError for one that it cannot."""
    if not re.fullmatch(NAME, name) or len(name) > LONGEST_NAME:
        rule = f"a model's name has up to {LONGEST_NAME} lower-case letters, digits, '.', '_' and '-'"
        raise UsageError(f"{rule}, the first a letter or digit; got {name!r}")
    return name


def model_names() -> list[str]:
    """Names of the models that have a configuration: the shipped ones and the user's."""
    return list(model_files())


def find_config(name: str) -> Path:
    """The file for a name, a YAML file, or a folder with a flowgrad.yaml.

    Raises UsageError for an unknown name, with the nearest ones.
    """
    path, known = Path(name), model_files()
    if name in known:
        return known[name]
    if path.is_dir() and (path / FOLDER_CONFIG).is_file():
        return path / FOLDER_CONFIG
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    near = difflib.get_close_matches(name, known, n=3) or known
    raise UsageError(
        f"no model called {name!r}; there is {', '.join(near)}, or give a .yaml file or a folder with a {FOLDER_CONFIG}"
    )


def load_config(name: str) -> ModelConfig:
    """Read and validate a model's configuration; a guide that lies beside it is given by its path.

    Raises UsageError for an unknown name, FlowgradError naming each wrong key or value.
    """
    path = find_config(name)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise FlowgradError(f"{path} is not valid YAML: {' '.join(str(error).split())[:160]}") from error
    if not isinstance(raw, dict):
        raise FlowgradError(f"{path} must be a table of keys and values; got {type(raw).__name__}")
    try:
        config = ModelConfig(**{**raw, "folder": path.parent})
    except ValidationError as error:
        problems = "; ".join(_problem(e["loc"], e["msg"], e["type"]) for e in error.errors())
        raise FlowgradError(f"{path}: {problems}") from error
    guide = path.parent / config.guide
    return config.model_copy(update={"guide": str(guide)}) if config.guide and guide.is_file() else config


def _problem(where: tuple[int | str, ...], message: str, kind: str) -> str:
    key = ".".join(map(str, where))
    if kind != "extra_forbidden":
        return f"{key}: {message}"
    near = difflib.get_close_matches(key, ModelConfig.model_fields, n=1)
    return f"unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else "")
