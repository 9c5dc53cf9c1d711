"""The models there are, from their configuration files alone: quick to list, without torch."""

from typing import Any

import yaml

from flowgrad.errors import FlowgradError
from flowgrad.resources import resource, user_folder


def list_models() -> list[dict[str, Any]]:
    """Name, title, description, size in pixels of each model, and whether its weights are there.

    Raises FlowgradError for a file that is no table. `flowgrad.models.load_config` checks each key.
    """
    found = []
    for path in sorted((resource("configs") / "models").glob("*.yaml")):
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise FlowgradError(f"{path} must be a table of keys and values. Install flowgrad again, or correct it.")
        told = {key: raw.get(key, "") for key in ("name", "title", "description", "size")}
        weights = str(raw.get("weights", ""))
        places = (path.parent, user_folder("models"), resource("weights"))
        found.append({**told, "weights": any((base / weights).exists() for base in places)})
    return found
