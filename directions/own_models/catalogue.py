"""The models there are, from their configuration files alone: quick to list, without torch."""

from pathlib import Path
from typing import Any

import yaml

from flowgrad.resources import HUB_NAME, model_files, user_folder, weight_places


def list_models() -> list[dict[str, Any]]:
    """Name, title, description and size in pixels of each model, whether its weights are there or on the hub, and
    whose it is.

    A file that is no table is listed with its error as title. `flowgrad.models.load_config` checks each key.
    """
    return [_told(name, path) for name, path in model_files().items()]


def _told(name: str, path: Path) -> dict[str, Any]:
    raw = _read(path)
    told = {key: raw.get(key, "") for key in ("title", "description", "size")}
    weights = str(raw.get("weights", ""))
    found = any(place.exists() for place in weight_places(weights, path.parent))
    hub = not found and raw.get("family") == "diffusers" and bool(HUB_NAME.fullmatch(weights))
    return {"name": name, **told, "weights": found, "hub": hub, "shipped": path.parent.parent != user_folder("models")}


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or a date that there is not
        return {"title": f"unreadable: {str(error).splitlines()[0]}"}
    return raw if isinstance(raw, dict) else {"title": f"{path} is no table of keys and values"}
