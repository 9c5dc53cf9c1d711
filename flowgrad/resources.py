"""Where files lie: those that ship with the package, and the user's own."""

import difflib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flowgrad.errors import UsageError, reason

DEFAULT_MODEL = "faces128"  # the embedded model that is used where none is named
FOLDER_CONFIG = "flowgrad.yaml"  # of a model that has a folder of its own
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # of a model on the Hugging Face hub
_PACKAGE = Path(__file__).resolve().parent


def resource(name: str) -> Path:
    """Return the shipped folder `name` ("configs", "direction_bank" or "weights").

    A wheel carries them inside the package; a clone (and an editable install of it) has
    `configs/` and `direction_bank/` at its top level. Raises FileNotFoundError for neither.
    """
    for folder in (_PACKAGE / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{name}/ is missing from this installation of flowgrad: install it again")


def read_config(kind: str, name: str | Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file: what ships in configs/`kind` under this name, or any by its path.

    Raises UsageError for an unknown name, with the nearest ones, and for a file that is missing or no table in YAML.
    """
    known = {path.stem: path for path in sorted((resource("configs") / kind).glob("*.yaml"))}
    path = known.get(str(name), Path(name))
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"no {str(name)!r} in configs/{kind}; there is {like(str(name), known)}, or give a .yaml file")
    if not path.is_file():
        raise UsageError(f"{path} does not exist; there is {', '.join(known)} in configs/{kind}")
    return read_table(path)


def like(name: str, known: Iterable[str]) -> str:
    """The known names that are most like one that is not, or all of them if none is, for a message."""
    known = list(known)
    return ", ".join(difflib.get_close_matches(name, known, n=3) or known)


def read_table(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file; none of an empty one.

    Raises UsageError if it cannot be read, or is no table whose keys are words.
    """
    import yaml  # which commands that only look into a bank do without

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or a date that there is not
        raise UsageError(f"{path} is not a readable YAML file ({reason(error)}): correct it") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} must be a table of keys and values; got {type(values).__name__}")
    if wrong := [key for key in values if not isinstance(key, str)]:
        raise UsageError(f"{path}: keys must be words, and {wrong[0]!r} is none: correct it")
    return values


def user_folder(name: str) -> Path:
    """Return the user's own folder `name` ("bank" or "models"), which need not exist yet.

    It is FLOWGRAD_BANK or FLOWGRAD_MODELS where that is set, else where the platform keeps such data.
    """
    return Path(os.environ.get(f"FLOWGRAD_{name.upper()}") or _data_folder() / name).expanduser()


def _data_folder() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "flowgrad"


def weight_places(weights: str, folder: Path) -> tuple[Path, ...]:
    """Where a configuration in `folder` finds its weights: beside it, in the user's models folder, or shipped."""
    return tuple(base / Path(weights).expanduser() for base in (folder, user_folder("models"), resource("weights")))


def model_files() -> dict[str, Path]:
    """Return the configuration files of models by name: the user's, in folders of their own, and the shipped ones."""
    own = {path.parent.name: path for path in user_folder("models").glob(f"[!.]*/{FOLDER_CONFIG}")}
    shipped = {path.stem: path for path in (resource("configs") / "models").glob("*.yaml")}
    return dict(sorted({**own, **shipped}.items()))


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
    raise UsageError(
        f"no model called {name!r}; there is {like(name, known)}, or give a .yaml file or a folder with a "
        f"{FOLDER_CONFIG}"
    )
