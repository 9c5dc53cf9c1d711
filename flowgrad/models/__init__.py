"""Checkpoints become models: a velocity field, and the way between images and its states."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from torch import Tensor

from flowgrad.errors import UsageError, reason
from flowgrad.memory import Batched
from flowgrad.model_config import ModelConfig, load_config
from flowgrad.models.parts import Parts
from flowgrad.models.regions import Region, check_apart, prompt_with
from flowgrad.ode import IN_PLACE, Store
from flowgrad.resources import DEFAULT_MODEL
from flowgrad.seeds import Key, Source, normal

__all__ = ["Model", "ModelConfig", "Region", "attends_to_words", "build_model", "load_config", "load_model"]

LOADERS = {  # the module of each family, imported when it is needed: each has a function `load`
    "diffusers-unet": "diffusers_unet",
    "rf-ncsnpp": "ncsnpp",
    "ldm": "compvis",
    "diffusers": "pipelines",
}
WITH_WORDS = "diffusers"  # the family of models that may read a prompt
TIME_CONVENTION = "t=0 noise, t=1 data"
STORES = {"device": IN_PLACE, "host": Store("cpu"), "host-half": Store("cpu", torch.float16)}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Model:
    """A frozen generative ODE.

    velocity: see `flowgrad.velocity`, on as many images at a time as fit; shape: of one state, D; encode: images
    (B, 3, H, W) in [-1, 1] -> states (B, *D) at t = 1; decode: back; both differentiable. fingerprint: of the weights
    (and of the prompt and its regions, where there are any), 16 hexadecimal digits. source: where latents come from, if
    not from a standard normal distribution; see `flowgrad.sampling`.
    """

    config: ModelConfig
    velocity: Batched
    shape: tuple[int, ...]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    fingerprint: str
    device: torch.device
    source: Source | None = None

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def batch(self) -> int:
        """Images that go through the model together, at most."""
        return self.config.batch

    @property
    def in_latents(self) -> bool:
        """Whether states are latents, which a network decodes, and not images."""
        return self.shape != (3, self.config.size, self.config.size)

    @property
    def store(self) -> Store:
        """Where the fine trajectories of images are kept."""
        return STORES[self.config.trajectories]

    def noise(self, count: int, seed: int) -> Tensor:
        """(count, *D) latents, each from a key of its own: image i of a seed does not depend on `count`."""
        return self.latents([(seed, i) for i in range(count)])

    def latents(self, keys: Sequence[Key]) -> Tensor:
        """(B, *D) latents of the model's source, one for each key and from that key alone."""
        return self.source(keys) if self.source else normal(self.shape, keys).to(self.device)


def load_model(
    name: str = DEFAULT_MODEL,
    device: str = "auto",
    precision: str = "auto",
    prompt: str | None = None,
    regions: Sequence[Region] = (),
) -> Model:
    """Load a model by its name, its YAML file, or a folder with a flowgrad.yaml.

    device: "auto" (CUDA, else the CPU) or any torch device. precision: "fp32", "bf16", "fp16", or "auto", which is
    the configuration's `dtype`, and if that is "auto" too, bf16 where the hardware multiplies it faster than fp32,
    else fp32. prompt: in place of the configuration's. regions: where in the image words of the prompt are meant; the
    prompt that is read, with the words that it did not have, is that of the model's `config`. Raises UsageError for a
    wrong name, device or precision, for a prompt or regions that the model does not read, for regions that overlap and
    for words that its token limit cuts off; FlowgradError for missing or damaged weights.
    """
    config = load_config(name)
    if prompt is not None:
        config = _with_prompt(config, prompt)
    return build_model(config, device, precision, regions)


def build_model(
    config: ModelConfig, device: str = "auto", precision: str = "auto", regions: Sequence[Region] = ()
) -> Model:
    """Load the model of a configuration; see `load_model`."""
    place = resolve_device(device)
    dtype = resolve_precision(config.dtype if precision == "auto" else precision, place)
    if regions:
        check_apart(regions)
        config = _with_prompt(config, prompt_with(config.prompt, regions))
    load: Callable[..., Parts] = import_module(f"flowgrad.models.{LOADERS[config.family]}").load
    if regions:
        load = partial(load, regions=regions)
    parts = load(config, place, dtype)
    return Model(config, Batched(parts.velocity, config.batch), *parts[1:], place)


def _with_prompt(config: ModelConfig, prompt: str) -> ModelConfig:
    """The configuration at another prompt. Raises UsageError for a family of models that reads none."""
    if config.family != WITH_WORDS:
        raise UsageError(
            f"{config.name}, of the family {config.family}, reads no words: leave prompt and regions out, or use a "
            f"text-conditioned model of the family {WITH_WORDS}"
        )
    return config.model_copy(update={"prompt": prompt})


def attends_to_words(config: ModelConfig) -> bool:
    """Whether a model reads a prompt, so that it can be given one, and regions; its weights are not loaded.

    Raises FlowgradError if its files are missing or damaged.
    """
    if config.family != WITH_WORDS:
        return False
    return import_module(f"flowgrad.models.{LOADERS[WITH_WORDS]}").is_text_conditioned(config)


def resolve_device(device: str) -> torch.device:
    """A torch device for "auto" or a device's name. Raises UsageError for one that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r} cannot be used here ({reason(error)}): try cpu or auto") from error


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """A dtype for "auto" or a precision's name. Raises UsageError for another name."""
    if precision == "auto":
        return torch.bfloat16 if _multiplies_bf16(device) else torch.float32
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be one of auto, {', '.join(PRECISIONS)}; got {precision!r}")
    return PRECISIONS[precision]


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = torch.cpu.get_capabilities() if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return bool(flags.get("amx_bf16") or flags.get("avx512_bf16"))
