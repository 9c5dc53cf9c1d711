"""Where files lie: those that ship with the package, and the user's own."""

import os
import re
import sys
from pathlib import Path

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
