"""Where the files that ship with the package lie: beside the code in a clone, inside it in a wheel."""

import os
from pathlib import Path

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


def models_folder() -> Path:
    """Where users keep weights: FLOWGRAD_MODELS, else flowgrad/models in their data folder."""
    if chosen := os.environ.get("FLOWGRAD_MODELS"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "flowgrad" / "models"
