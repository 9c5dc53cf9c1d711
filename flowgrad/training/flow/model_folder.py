"""What a trained flow is given away as: a folder with weights, configuration, pictures and a card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from flowgrad.files import atomic_path
from flowgrad.markdown import table
from flowgrad.models import ModelConfig
from flowgrad.models.diffusers_unet import WEIGHTS, write_unet_config
from flowgrad.resources import FOLDER_CONFIG


@dataclass(frozen=True)
class Card:
    """What a model's card says: tables of data, recipe and results, the command, and pictures with their captions."""

    model: ModelConfig
    data: Mapping[str, str]
    recipe: Mapping[str, str]
    results: Mapping[str, str]
    command: str
    pictures: Mapping[str, str]

    def markdown(self) -> str:
        """The README.md of the model's folder."""
        parts = [
            f"# {self.model.title or self.model.name}",
            self.model.description,
            f"Licence: {self.model.licence}.",
            "## Data",
            _table(self.data),
            "## Recipe",
            _table(self.recipe),
            f"```\n{self.command}\n```",
            "## Results",
            _table(self.results),
            *(f"{text}\n\n![{text}]({name})" for name, text in self.pictures.items()),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"


def _table(rows: Mapping[str, str]) -> str:
    return table(("", ""), rows.items())


def write_model(folder: Path, network: Any, weights: Mapping[str, Tensor], config: ModelConfig, half: bool) -> None:
    """Write `config.json`, the safetensors weights (float16 if `half`) and `flowgrad.yaml`, which is written last.

    network: the UNet2DModel whose configuration it is. Raises FlowgradError where the disk refuses.
    """
    dtype = torch.float16 if half else torch.float32
    state = {key: value.detach().to("cpu", dtype).contiguous() for key, value in weights.items()}
    write_unet_config(network, folder)
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    keys = config.model_dump(mode="json", exclude_defaults=True)
    with atomic_path(folder / FOLDER_CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(keys, sort_keys=False, allow_unicode=True), encoding="utf-8")


def write_card(folder: Path, card: Card) -> None:
    """Write README.md."""
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text(card.markdown(), encoding="utf-8")


def sheet(images: Tensor, columns: int) -> Image.Image:
    """One picture of all images (B, 3, H, W) in [-1, 1], in rows of `columns`, two pixels of white between them."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    count, size, gap = len(pixels), pixels.shape[1], 2
    step = size + gap
    page = np.full((-(-count // columns) * step - gap, min(columns, count) * step - gap, 3), 255, np.uint8)
    for i, picture in enumerate(pixels):
        top, left = i // columns * step, i % columns * step
        page[top : top + size, left : left + size] = picture
    return Image.fromarray(page)


def write_sheet(path: Path, images: Tensor, columns: int) -> None:
    """Write such a picture."""
    with atomic_path(path) as temporary:
        sheet(images, columns).save(temporary)


def write_log(path: Path, log: Sequence[Mapping[str, Any]]) -> None:
    """Write records as lines of JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(dict(record)) + "\n" for record in log), encoding="utf-8")


def write_curve(path: Path, log: Sequence[Mapping[str, Any]]) -> None:
    """Draw the training loss (means between records) and the held-out loss over the images seen."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for key, style, label in (("loss", "-", "training"), ("held_out", "o-", "held out, averaged weights")):
        points = [(record["seen"], record[key]) for record in log if record[key] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=3)
    known = [record["held_out"] for record in log if record["held_out"] is not None]
    if known and max(known) > 3 * min(known):  # the first steps would flatten all that follows
        axes.set_ylim(0, 3 * min(known))
    axes.set(xlabel="images seen", ylabel="loss")
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
