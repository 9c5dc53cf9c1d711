"""Models as diffusers saves them, by folder or by name on the Hugging Face hub, and their samplers as schedules."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.utils import logging
from torch import Tensor, nn

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import file_fingerprint
from flowgrad.models.autoencoder import FirstStage
from flowgrad.models.config import ModelConfig
from flowgrad.models.diffusers_unet import unet_class
from flowgrad.models.parts import Parts, check_size, identity, joint_fingerprint
from flowgrad.models.schedule import Network, Schedule, ScheduledVelocity, ddim_schedule, rectified

INDEX, SCHEDULER = "model_index.json", "scheduler_config.json"
_WEIGHTS = "diffusion_pytorch_model*"  # of a network alone; other files beside an index are whole models once more
_FILES = ("*.json", "*.txt", "*.model", "*/*.safetensors", _WEIGHTS + ".safetensors")
_NOT_NEEDED = ("*.fp16.*", "*.bf16.*", "*.non_ema.*", "safety_checker/*")
_LIBRARIES = ("diffusers", "transformers")
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts of pipelines that no field depends on
_FAILURES = (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, ImportError)


def load_diffusers(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Parts:
    """Load what a folder or a hub name holds: a UNet2DModel alone or in a pipeline, or a text-conditioned pipeline.

    Raises FlowgradError if it cannot be had, is damaged, or is of a kind that is not read.
    """
    folder = local_folder(config)
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    kinds = part_kinds(folder, index)
    if kinds.get("transformer") or (kinds.get("unet") or "UNet2DModel") != "UNet2DModel":
        from flowgrad.models.text_flows import load_text_flow

        return load_text_flow(config, folder, kinds, device, dtype)
    return load_unconditional(config, folder, kinds, device, dtype)


def part_kinds(folder: Path, index: Mapping[str, Any]) -> dict[str, str | None]:
    """The classes of a pipeline's parts by name, None for those it has not.

    Raises FlowgradError for a class of neither diffusers nor transformers: code in the folder, which is never run.
    """
    parts = {name: entry for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
    for name, (library, kind) in parts.items():
        if library not in (None, *_LIBRARIES) and name not in UNUSED:
            raise FlowgradError(
                f"the {name} of {folder} is {library}.{kind}, code of its own, which is not run: use a model of "
                "diffusers' and transformers' classes"
            )
    return {name: kind for name, (_, kind) in parts.items()}


def load_unconditional(
    config: ModelConfig, folder: Path, kinds: Mapping[str, str | None], device: torch.device, dtype: torch.dtype
) -> Parts:
    """A UNet2DModel with its scheduler, and with its autoencoder if `kinds` names one (`vqvae` or `vae`).

    Raises FlowgradError if it is damaged, asks for more than states and times, or is told of a prompt.
    """
    _refuse_texts(config, folder)
    inner = folder / "unet" if (folder / "unet").is_dir() else folder  # as diffusers itself looks
    network = load_component(unet_class(), inner).to(device).to(memory_format=torch.channels_last)
    check_channels(network.config, inner)
    if config.checkpointing:
        network.enable_gradient_checkpointing()
    velocity = ScheduledVelocity(*_unconditional(network, config, folder), dtype)
    stage = next((name for name in ("vqvae", "vae") if kinds.get(name)), None)
    if stage is None:
        fingerprint = folder_fingerprint([inner], velocity.told)
        return Parts(velocity, _shape(network, config, 1), identity, identity, fingerprint)
    first_stage, factor = load_first_stage(folder / stage, kinds[stage] or "", velocity.gain, device, dtype)
    fingerprint = folder_fingerprint([inner, folder / stage], velocity.told, first_stage.told)
    return Parts(velocity, _shape(network, config, factor), first_stage.encode, first_stage.decode, fingerprint)


def _refuse_texts(config: ModelConfig, folder: Path) -> None:
    given = {"prompt": config.prompt, "negative_prompt": config.negative_prompt}
    given["guidance_scale"] = "" if config.guidance_scale == 1 else "given"
    if told := [key for key, value in given.items() if value]:
        raise FlowgradError(f"{folder} holds an unconditional model, which reads no {told[0]}: remove it")


def _unconditional(network: Any, config: ModelConfig, folder: Path) -> tuple[Network, Schedule, str]:
    """The network as a function of states and times, its steps, and what it predicts."""

    def called(x: Tensor, time: Tensor) -> Tensor:
        return network(x, time, return_dict=False)[0]

    if config.prediction == "velocity":
        return rectified(called, config.steps)
    return called, *to_schedule(load_scheduler(folder), config.steps)


def check_channels(told: Mapping[str, Any], where: Path) -> None:
    """Raise FlowgradError for a network that is no field of its states: it returns others, or asks for a class."""
    inward, outward = told["in_channels"], told.get("out_channels") or told["in_channels"]
    if inward != outward:
        raise FlowgradError(
            f"{where} takes {inward} channels and returns {outward}: models for inpainting, or with learned "
            "variances, cannot be read"
        )
    if told.get("class_embed_type") or told.get("num_class_embeds"):
        raise FlowgradError(f"{where} asks for a class: only unconditional and text-conditioned models can be read")


def _shape(network: Any, config: ModelConfig, factor: int) -> tuple[int, int, int]:
    """Of states; the size is the network's own, or the configuration's where it says none.

    Raises FlowgradError unless it is a square, and the configuration's.
    """
    found = network.config["sample_size"] or config.size // factor
    height, width = found if isinstance(found, (tuple, list)) else (found, found)
    if height != width:
        raise FlowgradError(f"{config.name}: its states are {height} x {width}, and only squares can be read")
    check_size(config, height, factor)
    return int(network.config["in_channels"]), height, width


def local_folder(config: ModelConfig) -> Path:
    """The folder of `weights`: a path, or the hub's files of that name, downloaded once.

    Raises FlowgradError saying what failed and what to do.
    """
    if not config.on_hub:
        return config.weights_file()
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return _download(config.weights)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise FlowgradError(
            f"{config.weights} is no folder here, and could not be fetched from the Hugging Face hub ({reason}).\n"
            "Check the name and the connection (`hf auth login` for gated models), or download it elsewhere "
            "and give the folder's path as `weights`"
        ) from error


def _download(name: str) -> Path:
    """The hub's files of a model, each weight once: safetensors, and where a part has none, its .bin."""
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(name, allow_patterns=list(_FILES), ignore_patterns=list(_NOT_NEEDED)))
    parts = [path.parent for path in folder.rglob("config.json")]
    older = [part.relative_to(folder).as_posix() for part in parts if not any(part.glob("*.safetensors"))]
    if older:
        patterns = [_WEIGHTS + ".bin" if part == "." else f"{part}/*.bin" for part in older]
        snapshot_download(name, allow_patterns=patterns, ignore_patterns=list(_NOT_NEEDED))
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises FlowgradError if the file is missing, damaged, or holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FlowgradError(f"{path} is missing or damaged ({error}): get the model again") from error
    if not isinstance(found, dict):
        raise FlowgradError(f"{path} must be a JSON object; got {type(found).__name__}: get the model again")
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Keep diffusers from drawing progress bars and from warning of its own arguments' names."""
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.enable_progress_bar()


def load_component(kind: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A frozen network that diffusers saved to `folder`. Raises FlowgradError if it is damaged or another kind."""
    named = read_json(folder / "config.json").get("_class_name")
    if named != kind.__name__:
        raise FlowgradError(f"{folder} holds {named}, where a {kind.__name__} is needed. Check `weights` and `family`")
    try:
        with quiet():
            network: nn.Module = kind.from_pretrained(folder, torch_dtype=dtype, low_cpu_mem_usage=False)
    except _FAILURES as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise FlowgradError(f"the {kind.__name__} in {folder} is damaged ({reason}): get it again") from error
    return network.eval().requires_grad_(False)


def load_first_stage(
    folder: Path, kind: str, gain: float, device: torch.device, dtype: torch.dtype
) -> tuple[FirstStage, int]:
    """The autoencoder of a pipeline, and by how much its latents are smaller than images."""
    classes = {"VQModel": VQModel, "AutoencoderKL": AutoencoderKL}
    if kind not in classes:
        raise FlowgradError(f"{folder} holds {kind}: only {' and '.join(classes)} can be read")
    network = load_component(classes[kind], folder).to(device)
    scale, shift = (network.config.get(key) for key in ("scaling_factor", "shift_factor"))
    return FirstStage(network, (scale or 1.0) * gain, shift or 0.0, dtype), first_stage_factor(network.config)


def first_stage_factor(told: Mapping[str, Any]) -> int:
    """By how much an autoencoder's latents are smaller than images, from its config.json."""
    return 2 ** (len(told.get("block_out_channels", (64,))) - 1)


def folder_fingerprint(folders: Sequence[Path], *conditions: str) -> str:
    """16 hexadecimal digits of the weights loaded from some folders, and of what else the field depends on."""
    return joint_fingerprint(*(file_fingerprint(file) for folder in folders for file in _loaded(folder)), *conditions)


def _loaded(folder: Path) -> list[Path]:
    """The files of weights that are read where there are several forms of them."""
    plain = [file for file in sorted(folder.glob("*")) if not re.search(r"\.(fp16|bf16|non_ema)\.", file.name)]
    return [f for f in plain if f.suffix == ".safetensors"] or [f for f in plain if f.suffix == ".bin"]


# --- samplers ----------------------------------------------------------------------------------------------------


def load_scheduler(folder: Path) -> Any:
    """A flow-matching Euler scheduler, or DDIM with the betas of whichever diffusion scheduler the folder has.

    Raises FlowgradError for another kind.
    """
    places = [place for place in (folder / "scheduler" / SCHEDULER, folder / SCHEDULER) if place.is_file()]
    if not places:
        raise FlowgradError(f"{folder} has no scheduler/{SCHEDULER}: save the model with its scheduler")
    found = read_json(places[0])
    name = str(found.get("_class_name"))
    if name == FlowMatchEulerDiscreteScheduler.__name__:
        return FlowMatchEulerDiscreteScheduler.from_config(found)
    if "beta_schedule" in found or "beta_start" in found:
        return DDIMScheduler.from_config(found)
    raise FlowgradError(f"{places[0]} is a {name}: only flow-matching Euler and DDPM's relatives can be read")


def to_schedule(
    scheduler: Any, steps: int, shares: Sequence[float] | None = None, shift: float | None = None
) -> tuple[Schedule, str]:
    """A scheduler's steps, and what the network predicts; `shares` and `shift` (mu) as its pipeline gives them.

    Clipping and thresholding of a diffusion scheduler are left out: they are no part of the ODE. A last step that
    would do nothing (`set_alpha_to_one: false` without `steps_offset`) goes to clean data instead.
    Raises FlowgradError for steps that it cannot give.
    """
    try:
        return _steps_of(scheduler, steps, shares, shift)
    except (ValueError, IndexError, UsageError) as error:
        reason = str(error).splitlines()[0][:160]
        raise FlowgradError(
            f"the scheduler does not give {steps} steps ({reason}): change `steps`, or its {SCHEDULER}"
        ) from error


def _steps_of(scheduler: Any, steps: int, shares: Sequence[float] | None, shift: float | None) -> tuple[Schedule, str]:
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        scheduler.set_timesteps(None if shares else steps, sigmas=list(shares) if shares else None, mu=shift)
        times = torch.cat([scheduler.timesteps.double(), torch.zeros(1, dtype=torch.float64)])
        return Schedule(times, scheduler.sigmas.double()), "flow"
    scheduler.set_timesteps(steps)
    timesteps, final = scheduler.timesteps.tolist(), float(scheduler.final_alpha_cumprod)
    if final <= float(scheduler.alphas_cumprod[timesteps[-1]]):
        final = 1.0
    return ddim_schedule(scheduler.alphas_cumprod, timesteps, final), str(scheduler.config["prediction_type"])
