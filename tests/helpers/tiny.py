"""A model and a guide too small to mean anything, in the formats of real ones: for tests of what surrounds them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from flowgrad.guidance.judge import JudgeNetwork, JudgeSizes, judge_metadata
from flowgrad.guidance.names import VOCABULARY_KEY
from flowgrad.models import Model, load_model
from flowgrad.models.diffusers_classes import network_classes
from flowgrad.models.diffusers_unet import WEIGHTS
from flowgrad.training.guide.config import NetworkConfig
from flowgrad.training.guide.objective import VOCABULARY_SIZE, new_network

SIZE, STEPS = 16, 6
WORDS = ("a", "an", "face", "smiling", "serious", "old", "young", "adult", "woman", "man")
PROBES = ("a smiling face - a serious face", "a woman - a man")

_CONFIG = """\
name: {name}
family: diffusers-unet
weights: .
size: {size}
patch: 2
steps: {steps}
guide: {guide}
subject: a face
aligned_faces: {aligned}
judge: {judge}
probes: [{probes}]
classes:
  expression: {{happy: a smiling face, neutral: a serious face}}
  age: {{young: a young face, adult: an adult face, old: an old face}}
class_offsets: {{happy: 0.5}}
"""


@dataclass(frozen=True)
class Tiny:
    """Folders and files to name on the command line."""

    model: Path
    guide: Path
    photos: Path

    @property
    def files(self) -> list[Path]:
        """The photos."""
        return sorted(self.photos.iterdir())


def make_tiny(folder: Path) -> Tiny:
    """Write a model (16x16 images, 6 steps), a guide and four photos below `folder`."""
    guide = make_guide(folder / "tiny-guide.safetensors")
    return Tiny(make_model(folder / "model", guide), guide, make_photos(folder / "photos", 4))


def make_model(folder: Path, guide: Path, *, name: str = "tiny", seed: int = 0, aligned: bool = False) -> Path:
    """Write a randomly initialised UNet2DModel with its flowgrad.yaml; the folder."""
    torch.manual_seed(seed)
    network = network_classes().unet(
        sample_size=SIZE // 2,
        in_channels=12,
        out_channels=12,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(network.config)))
    save_file(network.state_dict(), folder / WEIGHTS)
    told = {
        "guide": guide,
        "aligned": str(aligned).lower(),
        "judge": "faces64-judge" if aligned else "''",
        "probes": ", ".join(PROBES),
    }
    (folder / "flowgrad.yaml").write_text(_CONFIG.format(name=name, size=SIZE, steps=STEPS, **told))
    return folder


def load_described(path: Path, **keys: object) -> Model:
    """Load the model of a configuration file that is written to `path` with these keys, on the CPU in float32."""
    path.write_text(json.dumps(keys, default=str))  # JSON is YAML
    return load_model(str(path), "cpu", "fp32")


def make_guide(path: Path) -> Path:
    """Write a randomly initialised CLIP network that knows WORDS; its file."""
    sizes = NetworkConfig(
        embed_dim=16, resolution=32, vision_layers=(1, 1, 1, 1), vision_width=4, text_width=64, text_layers=1
    )
    state = {name: value.contiguous() for name, value in new_network(sizes, VOCABULARY_SIZE, 0).state_dict().items()}
    state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    save_file(state, path, {VOCABULARY_KEY: json.dumps(WORDS)})
    return path


def guide_recipe(column: str, values: tuple[str, str], template: str) -> str:
    """The YAML of a training of a small guide that tells two values of a column apart."""
    words = ", ".join(f"{{words: [{value}], means: {{{column}: [{value}]}}}}" for value in values)
    return f"""\
attributes: {{{column}: {{kind: category, column: {column}, values: [{", ".join(values)}]}}}}
slots: {{{column}: [{words}]}}
templates: ["{template}"]
network: {{embed_dim: 16, resolution: 32, vision_layers: [1, 1, 1, 1], vision_width: 8, text_layers: 1}}
training: {{batch: 16, captions: 16, pool: 32, precision: fp32, warmup: 5}}
"""


def make_judge(path: Path) -> Path:
    """Write a randomly initialised judge of one question, happy or sad; its file."""
    sizes = JudgeSizes(SIZE, (4, 8), (1, 1))
    torch.manual_seed(0)
    heads = {"expression": ("happy", "sad")}
    save_file(JudgeNetwork(sizes, 2).state_dict(), path, judge_metadata(sizes, heads))
    return path


def make_photos(folder: Path, count: int, size: int = SIZE, seed: int = 0) -> Path:
    """Write smooth random PNG images; their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for i in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"photo-{i}.png")
    return folder
