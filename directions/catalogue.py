"""The models there are, from their configuration files alone: quick to list, without torch."""

from pathlib import Path
from typing import Any

import yaml

from flowgrad.resources import model_files, user_folder, weight_places


def list_models() -> list[dict[str, Any]]:
    """Name, title, description and size in pixels of each model, whether its weights are there, and whose it is.

    A file that is no table is listed with its error as title. `flowgrad.models.load_config` checks each key.
    """
    return [_told(name, path) for name, path in model_files().items()]


def _told(name: str, path: Path) -> dict[str, Any]:
    raw = _read(path)
    told = {key: raw.get(key, "") for key in ("title", "description", "size")}
    found = any(place.exists() for place in weight_places(str(raw.get("weights", "")), path.parent))
    return {"name": name, **told, "weights": found, "shipped": path.parent.parent != user_folder("models")}


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return {"title": f"unreadable: {str(error).splitlines()[0]}"}
    return raw if isinstance(raw, dict) else {"title": f"{path} is no table of keys and values"}
