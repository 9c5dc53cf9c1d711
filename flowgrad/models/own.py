"""The user's own models: copies in a folder of theirs, to be named like the shipped ones.

Each is a folder `<models>/<name>` with its weights, `config.json`, `flowgrad.yaml`, card and pictures, and its guide.
"""

import shutil
import tempfile
from pathlib import Path

import yaml

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.models import load_model
from flowgrad.models.config import ModelConfig, check_model_name, load_config
from flowgrad.models.diffusers_unet import WEIGHTS
from flowgrad.models.guide import guide_file, load_guide
from flowgrad.resources import FOLDER_CONFIG, model_files, resource, user_folder

TRASH = ".trash"
BESIDE = ("README.md", "*.png", "*.jpg")  # what a model's folder may hold for people


def add_model(name: str, source: Path, guide: str = "", subject: str = "", overwrite: bool = False) -> Path:
    """Copy the model at `source` (a folder with a flowgrad.yaml, or a YAML file) into the user's models; its folder.

    guide: the guide's name or file, if not what the source says; it is copied too if it does not ship. subject: what
    its pictures show, such as "a shoe". Weights and guide are loaded first, so that what is added works.
    Raises UsageError for a bad name, one in use (unless it is the user's and `overwrite`) or a source of no known
    kind, FlowgradError for damaged weights or where the disk refuses.
    """
    check_model_name(name)
    _refuse_taken(name, overwrite)
    if not Path(source).exists():
        raise UsageError(f"{source} does not exist: give a model's folder (with a {FOLDER_CONFIG}) or its .yaml file")
    config = load_config(str(Path(source).resolve()))
    config = config.model_copy(update={"guide": guide or config.guide, "subject": subject or config.subject})
    load_model(str(Path(source).resolve()), "cpu")
    if config.guide:
        load_guide(config.guide)
    try:
        return _copy(name, config)
    except OSError as error:
        place = user_folder("models")
        raise FlowgradError(
            f"cannot write to {place}: {error.strerror or error}. Free some space or set FLOWGRAD_MODELS."
        ) from error


def remove_model(name: str) -> Path:
    """Move a model of the user's to the trash and return its folder there, which `add_model` accepts.

    Raises UsageError for an unknown or a shipped model, FlowgradError where the disk refuses.
    """
    path = model_files().get(name)
    if path is None:
        raise UsageError(f"no model of yours is called {name!r}; there is {', '.join(_own()) or 'none'}")
    if not is_own(path):
        raise UsageError(f"{name!r} ships with flowgrad and cannot be removed")
    try:
        return _to_trash(path.parent)
    except OSError as error:
        raise FlowgradError(
            f"cannot remove {path.parent}: {error.strerror or error}. Check its permissions."
        ) from error


def is_own(config_file: Path) -> bool:
    """Whether a configuration belongs to one of the user's models."""
    return config_file.parent.parent == user_folder("models")


def _own() -> list[str]:
    return [name for name, path in model_files().items() if is_own(path)]


def _refuse_taken(name: str, overwrite: bool) -> None:
    path = model_files().get(name)
    if path is None or (overwrite and is_own(path)):
        return
    remedy = "choose another, or give --overwrite" if is_own(path) else "choose another; it ships with flowgrad"
    raise UsageError(f"a model called {name!r} exists already: {remedy}")


def _copy(name: str, config: ModelConfig) -> Path:
    """Fill a temporary folder beside the target, then rename it: a model is there whole or not at all."""
    models = user_folder("models")
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=models) as temporary:
        folder = Path(temporary) / name
        folder.mkdir()
        for file in ("config.json", WEIGHTS):
            shutil.copyfile(config.weights_path / file, folder / file)
        for path in (path for pattern in BESIDE for path in config.weights_path.glob(pattern)):
            shutil.copyfile(path, folder / path.name)
        guide = _copy_guide(config.guide, folder)
        keys = config.model_copy(update={"name": name, "weights": ".", "guide": guide}).model_dump(
            mode="json", exclude_defaults=True
        )
        (folder / FOLDER_CONFIG).write_text(yaml.safe_dump(keys, sort_keys=False, allow_unicode=True), encoding="utf-8")
        if (models / name).exists():
            _to_trash(models / name)
        return folder.rename(models / name)


def _copy_guide(guide: str, folder: Path) -> str:
    """Copy a guide that does not ship; what the configuration says of it."""
    path = guide_file(guide) if guide else Path()
    if not guide or path.is_relative_to(resource("weights")):
        return guide
    name = f"{path.parent.name}.safetensors" if path.name == "model.safetensors" else path.name
    shutil.copyfile(path, folder / name)
    return name


def _to_trash(folder: Path) -> Path:
    trash = folder.parent / TRASH / folder.name
    trash.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(each.name) for each in trash.iterdir() if each.name.isdigit()), default=0)
    return folder.rename(trash / str(number))
