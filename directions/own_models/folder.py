"""The user's own models, in a folder of theirs, to be named like the shipped ones.

Each is a folder `<models>/<name>` with `flowgrad.yaml`, card and pictures, and its guide; its weights are there too, or
stay where they were.
"""

import shutil
import tempfile
from pathlib import Path

import yaml

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import TRASH, next_numbered
from flowgrad.guidance.names import is_downloaded
from flowgrad.model_config import ModelConfig, check_model_name, load_config
from flowgrad.resources import FOLDER_CONFIG, model_files, user_folder

COPIED = "diffusers-unet"  # the family that train-flow makes; checkpoints of others are large
BESIDE = ("README.md", "*.png", "*.jpg")  # what a model's folder may hold for people


def add_model(
    name: str, source: Path, guide: str = "", subject: str = "", overwrite: bool = False, like: str = ""
) -> Path:
    """Put the model at `source` among the user's models; its folder there.

    source: a folder with a flowgrad.yaml, or a YAML file; or, where `like` names the model whose configuration fits,
    weights alone. Weights of the family `COPIED` are copied; those of others stay where they are. guide: the guide's
    name or file, if not what the source says; a .safetensors file that does not ship is copied. subject: what its
    pictures show, such as "a shoe". Weights and guide are loaded first, so that what is added works; guides that would
    be downloaded are not. Raises UsageError for a bad name, one in use (unless it is the user's and `overwrite`) or a
    source of no known kind, FlowgradError for damaged weights or where the disk refuses.
    """
    check_model_name(name)
    _refuse_taken(name, overwrite)
    config = _read_source(Path(source).expanduser(), like)
    config = config.model_copy(update={"guide": guide or config.guide, "subject": subject or config.subject})

    from flowgrad.guidance.guide_files import load_guide  # wrong calls are refused before torch is loaded
    from flowgrad.models import build_model

    build_model(config, "cpu")
    if config.guide and not is_downloaded(config.guide):
        load_guide(config.guide)
    try:
        return _write(name, config)
    except OSError as error:
        place = user_folder("models")
        raise FlowgradError(
            f"cannot write to {place}: {error.strerror or error}. Free some space or set FLOWGRAD_MODELS."
        ) from error


def remove_model(name: str) -> Path:
    """Move a model of the user's to the trash and return its folder there, which `add_model` accepts.

    Raises UsageError for an unknown or a shipped model, FlowgradError where the disk refuses.
    """
    files = model_files()
    if name not in files:
        own = [name for name, path in files.items() if _is_own(path)]
        raise UsageError(f"no model of yours is called {name!r}; there is {', '.join(own) or 'none'}")
    folder = files[name].parent
    if not _is_own(files[name]):
        raise UsageError(f"{name!r} ships with flowgrad and cannot be removed")
    try:
        return _to_trash(folder)
    except OSError as error:
        raise FlowgradError(f"cannot remove {folder}: {error.strerror or error}. Check its permissions.") from error


def _is_own(config_file: Path) -> bool:
    return config_file.parent.parent == user_folder("models")


def _refuse_taken(name: str, overwrite: bool) -> None:
    path = model_files().get(name)
    if path is None or (overwrite and _is_own(path)):
        return
    rule = f"a model called {name!r} exists already"
    if _is_own(path):
        raise UsageError(f"{rule}: choose another name, or set overwrite")
    place = user_folder("models") / load_config(name).weights
    raise UsageError(
        f"{rule}, it ships with flowgrad: choose another name, with like = {name} for weights of its kind, or put "
        f"its own weights at {place}"
    )


def _read_source(source: Path, like: str) -> ModelConfig:
    """The configuration at `source`, or that of the model `like` with `source` as its weights."""
    if not source.exists():
        raise UsageError(f"{source} does not exist: give a model's folder (with a {FOLDER_CONFIG}) or its .yaml file")
    if like:
        own = {"weights": str(source.absolute()), "sha256": "", "source": "", "download": ""}
        return load_config(like).model_copy(update=own)
    if not (source / FOLDER_CONFIG).is_file() and source.suffix not in (".yaml", ".yml"):
        raise UsageError(
            f"{source} has no {FOLDER_CONFIG}: say which model's configuration fits its weights (like = rf-celebahq or "
            "ldm-ffhq), or give a .yaml file with these weights"
        )
    return load_config(str(source.resolve()))


def _write(name: str, config: ModelConfig) -> Path:
    """Fill a temporary folder beside the target, then rename it: a model is there whole or not at all."""
    from flowgrad.guidance.guide_files import place_guide

    models = user_folder("models")
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=models) as temporary:
        folder = Path(temporary) / name
        folder.mkdir()
        placed = {"name": name, "weights": _place_weights(config, folder), "guide": place_guide(config.guide, folder)}
        for path in (path for pattern in BESIDE if config.card_folder for path in config.card_folder.glob(pattern)):
            shutil.copyfile(path, folder / path.name)
        keys = config.model_copy(update=placed).model_dump(mode="json", exclude_defaults=True)
        (folder / FOLDER_CONFIG).write_text(yaml.safe_dump(keys, sort_keys=False, allow_unicode=True), encoding="utf-8")
        if (models / name).exists():
            _to_trash(models / name)
        return folder.rename(models / name)


def _place_weights(config: ModelConfig, folder: Path) -> str:
    """Copy weights that are to be copied; what the configuration in `folder` says of them."""
    if config.on_hub:
        return config.weights
    if config.family != COPIED:
        return str(config.weights_path.absolute())  # not resolved: links have the names that people gave
    from flowgrad.models.diffusers_unet import network_files

    for path in network_files(config.weights_path):
        copy = folder / path.relative_to(config.weights_path)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
    return "."


def _to_trash(folder: Path) -> Path:
    place = next_numbered(folder.parent / TRASH / folder.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    return folder.rename(place)
