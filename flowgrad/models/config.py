"""Models as configuration: one commented YAML file per model, validated."""

import difflib
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.resources import resource

FOLDER_CONFIG = "flowgrad.yaml"


class ModelConfig(BaseModel):
    """What a model is and how it meets the contract; see configs/models/faces64.yaml for each key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)
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
    mirror: bool = False
    aligned_faces: bool = False
    probes: tuple[str, ...] = ()
    gate: dict[str, tuple[float, float]] = {}
    folder: Path = Field(default=Path(), exclude=True)

    @property
    def weights_path(self) -> Path:
        """The weights' folder: beside the config file if it is there, else among the shipped ones."""
        beside = self.folder / self.weights
        return beside if beside.exists() else resource("weights") / self.weights


def model_names() -> list[str]:
    """Names of the models that have a configuration."""
    return sorted(path.stem for path in (resource("configs") / "models").glob("*.yaml"))


def find_config(name: str) -> Path:
    """The file for a name, a YAML file, or a folder with a flowgrad.yaml.

    Raises UsageError for an unknown name, with the nearest ones.
    """
    path = Path(name)
    if path.is_dir() and (path / FOLDER_CONFIG).is_file():
        return path / FOLDER_CONFIG
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    shipped = resource("configs") / "models" / f"{name}.yaml"
    if name in model_names():
        return shipped
    near = difflib.get_close_matches(name, model_names(), n=3) or model_names()
    raise UsageError(
        f"no model called {name!r}; there is {', '.join(near)}, or give a .yaml file or a folder with a {FOLDER_CONFIG}"
    )


def load_config(name: str) -> ModelConfig:
    """Read and validate a model's configuration. Raises FlowgradError naming each wrong key or value."""
    path = find_config(name)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FlowgradError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise FlowgradError(f"{path} must be a table of keys and values; got {type(raw).__name__}")
    try:
        return ModelConfig(**{**raw, "folder": path.parent})
    except ValidationError as error:
        problems = "; ".join(_problem(e["loc"], e["msg"], e["type"]) for e in error.errors())
        raise FlowgradError(f"{path}: {problems}") from error


def _problem(where: tuple[int | str, ...], message: str, kind: str) -> str:
    key = ".".join(map(str, where))
    if kind != "extra_forbidden":
        return f"{key}: {message}"
    near = difflib.get_close_matches(key, ModelConfig.model_fields, n=1)
    return f"unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else "")
