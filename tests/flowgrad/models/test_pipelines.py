"""Models as diffusers saves them: unconditional and text-conditioned, against the library's own pipelines."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
    ScoreSdeVeScheduler,
    UNet2DModel,
    VQModel,
)

from flowgrad.errors import FlowgradError
from flowgrad.memory import activation_sizes
from flowgrad.models import Model, ModelConfig
from flowgrad.models.pipelines import part_kinds
from flowgrad.models.text_flows import text_flow
from flowgrad.ode import Grid, integrate
from flowgrad.velocity import checked
from tests.helpers.pipelines import PIPELINES, has_transformers, make_autoencoder, make_pipeline, make_unet
from tests.helpers.tiny import load_described


def load(folder: Path, size: int = 16, steps: int = 4, **keys: object) -> Model:
    keys = {"name": "tiny-diffusers", "family": "diffusers", "weights": folder, "size": size, "steps": steps, **keys}
    return load_described(folder.parent / f"{folder.name}.yaml", **keys)


def start(model: Model) -> torch.Tensor:
    return model.noise(2, seed=0)


@pytest.mark.parametrize("scheduler", [DDPMScheduler(), DDIMScheduler(prediction_type="v_prediction", steps_offset=1)])
def test_a_diffusion_pipeline_becomes_its_ddim(tmp_path: Path, scheduler: object):
    unet = make_unet()
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "model")
    model = load(tmp_path / "model")
    sampler = DDIMScheduler.from_config(scheduler.config, clip_sample=False)
    sampler.set_timesteps(4)
    x = start(model)
    with torch.no_grad():
        for t in sampler.timesteps:
            x = sampler.step(unet(x, t).sample, t, x).prev_sample
    x1 = integrate(model.velocity, start(model), Grid.full(4)).x1
    torch.testing.assert_close(model.decode(x1), x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.encode(model.decode(x1)), x1)


def test_a_rectified_flow_alone_with_its_scheduler(tmp_path: Path):
    unet, scheduler = make_unet(), FlowMatchEulerDiscreteScheduler(shift=2.0)
    unet.save_pretrained(tmp_path / "model")
    scheduler.save_pretrained(tmp_path / "model")
    model = load(tmp_path / "model")
    scheduler.set_timesteps(4)
    x = start(model)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(integrate(model.velocity, start(model), Grid.full(4)).x1, x, atol=1e-5, rtol=1e-5)
    assert len(model.fingerprint) == 16
    gradients, kept = [], []
    for checkpointing in (False, True):
        leaf = start(load(tmp_path / "model")).requires_grad_()
        velocity = load(tmp_path / "model", checkpointing=checkpointing).velocity
        with activation_sizes() as counted:
            gradients.append(torch.autograd.grad(velocity(leaf, torch.tensor(0.5)).square().sum(), leaf)[0])
        kept.append(sum(counted.values()))
    torch.testing.assert_close(*gradients)
    assert kept[1] < kept[0] / 2


def test_a_network_of_rectified_flows_authors_needs_no_scheduler(tmp_path: Path):
    unet = make_unet()
    unet.save_pretrained(tmp_path / "model")
    model = load(tmp_path / "model", prediction="velocity")
    x = start(model)
    with torch.no_grad():
        for k in range(4):
            x = x + unet(x, 1000 * (1 - k / 4)).sample / 4
    torch.testing.assert_close(integrate(model.velocity, start(model), Grid.full(4)).x1, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_a_latent_diffusion_pipeline_draws_what_the_library_draws(tmp_path: Path, kind: str):
    torch.manual_seed(0)
    own = {"kind": VQModel, "num_vq_embeddings": 16} if kind == "vq" else {}
    stage = make_autoencoder(3, scaling_factor=0.5, **own)
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    pipe = LDMPipeline(stage, make_unet(), scheduler)
    pipe.save_pretrained(tmp_path / "model")
    model = load(tmp_path / "model", size=32)
    assert model.shape == (3, 16, 16)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(batch_size=2, generator=torch.Generator().manual_seed(1), num_inference_steps=4, output_type="np")
    x0 = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        images = model.decode(integrate(model.velocity, x0, Grid.full(4)).x1)
    shown = torch.tensor(drawn.images).permute(0, 3, 1, 2)
    torch.testing.assert_close((images / 2 + 0.5).clamp(0, 1), shown, atol=1e-4, rtol=1e-4)


@has_transformers
@pytest.mark.parametrize("kind", PIPELINES)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_text_pipeline_draws_what_the_library_draws(tmp_path: Path, kind: str, guidance: float):
    pipe = make_pipeline(kind)
    pipe.save_pretrained(tmp_path / "model")
    words = {"prompt": "a cat", **({"negative_prompt": "a dog"} if kind != "flux" else {})}
    prediction = "velocity" if kind == "instaflow" else "scheduler"
    told = {**words, "guidance_scale": guidance, "prediction": prediction}
    model = load(tmp_path / "model", size=32, **told)
    x0 = start(model)
    v = checked(model.velocity(x0, torch.tensor([0.0, 0.6])), x0)
    alone = [model.velocity(x0[i : i + 1], torch.tensor(t)) for i, t in enumerate((0.0, 0.6))]
    torch.testing.assert_close(v, torch.cat(alone), atol=1e-5, rtol=1e-4)
    other = load(tmp_path / "model", size=32, **{**told, "prompt": "a house"})
    assert other.fingerprint != model.fingerprint
    assert not torch.equal(other.velocity(x0, torch.tensor(0.3)), model.velocity(x0, torch.tensor(0.3)))
    if kind == "instaflow":
        return
    shown = drawn_by_the_library(pipe, kind, x0, guidance)
    with torch.no_grad():
        images = model.decode(integrate(model.velocity, x0, Grid.full(4)).x1)
    torch.testing.assert_close((images / 2 + 0.5).clamp(0, 1), shown, atol=2e-3, rtol=1e-3)


@has_transformers
@pytest.mark.parametrize("kind", PIPELINES)
def test_weights_are_in_the_dtype_that_is_asked_for(tmp_path: Path, kind: str):
    make_pipeline(kind).save_pretrained(tmp_path / "model")
    config = ModelConfig(name="tiny", family="diffusers", weights=str(tmp_path / "model"), size=32)
    kinds = part_kinds(tmp_path / "model")
    part = "transformer" if "transformer" in kinds else "unet"
    flow = text_flow(config, tmp_path / "model", kinds, part, 16, torch.device("cpu"), torch.bfloat16)
    assert {parameter.dtype for parameter in flow.module.parameters()} == {torch.bfloat16}


def drawn_by_the_library(pipe, kind: str, x0: torch.Tensor, guidance: float) -> torch.Tensor:
    words = {"negative_prompt": "a dog"} if kind != "flux" else {}
    latents = pipe._pack_latents(x0, *x0.shape[:3], x0.shape[3]) if kind == "flux" else x0
    found = pipe(
        "a cat",
        **words,
        height=32,
        width=32,
        num_images_per_prompt=2,
        latents=latents,
        num_inference_steps=4,
        guidance_scale=guidance,
        output_type="np",
    )
    return torch.tensor(found.images).permute(0, 3, 1, 2)


@has_transformers
def test_instaflow_steps_as_its_authors_do(tmp_path: Path):
    pipe = make_pipeline("instaflow")
    pipe.save_pretrained(tmp_path / "model")
    model = load(tmp_path / "model", size=32, prediction="velocity", prompt="a cat")
    x = start(model)
    embedding = pipe.encode_prompt("a cat", pipe.device, 1, False)[0].expand(2, -1, -1)
    with torch.no_grad():
        for k in range(4):
            time = torch.full((2,), 1000 * (1 - k / 4))
            x = x + pipe.unet(x, time, embedding).sample / 4
    torch.testing.assert_close(integrate(model.velocity, start(model), Grid.full(4)).x1, x, atol=1e-5, rtol=1e-5)


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_the_field_depends_on_is_in_the_fingerprint(tmp_path: Path):
    stage = make_autoencoder(3, scaling_factor=0.7)
    LDMPipeline(stage, make_unet(), DDIMScheduler(prediction_type="v_prediction")).save_pretrained(tmp_path / "model")
    scheduler, vqvae = (tmp_path / "model" / name for name in ("scheduler", "vqvae"))
    found = [load(tmp_path / "model", size=32).fingerprint]
    for path, changes in (
        (scheduler / "scheduler_config.json", {"beta_end": 0.03}),
        (scheduler / "scheduler_config.json", {"prediction_type": "sample"}),
        (vqvae / "config.json", {"scaling_factor": 0.1}),
    ):
        rewrite(path, **changes)
        found.append(load(tmp_path / "model", size=32).fingerprint)
    for shift in (2.0, 3.0):
        FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(scheduler)
        found.append(load(tmp_path / "model", size=32).fingerprint)
    assert len(set(found)) == len(found)
    rewrite(scheduler / "scheduler_config.json", _diffusers_version="0.0.1")
    unet = tmp_path / "model" / "unet"
    torch.save({}, unet / "diffusion_pytorch_model.bin")  # other forms of the weights, which are not read
    (unet / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"")
    assert load(tmp_path / "model", size=32).fingerprint == found[-1]


@has_transformers
def test_a_prompt_that_is_not_used_is_not_in_the_fingerprint_and_its_encoder_is(tmp_path: Path):
    make_pipeline("stable-diffusion").save_pretrained(tmp_path / "model")
    first = load(tmp_path / "model", size=32, prompt="a cat").fingerprint
    assert load(tmp_path / "model", size=32, prompt="a cat", negative_prompt="a dog").fingerprint == first
    pipe = make_pipeline("stable-diffusion")
    next(pipe.text_encoder.parameters()).data.mul_(2)
    pipe.save_pretrained(tmp_path / "other")
    assert load(tmp_path / "other", size=32, prompt="a cat").fingerprint != first


def test_a_network_beside_the_index_is_found_as_diffusers_finds_it(tmp_path: Path):
    DDPMPipeline(make_unet(), DDPMScheduler()).save_pretrained(tmp_path / "model")
    expected = load(tmp_path / "model").fingerprint
    for path in (tmp_path / "model" / "unet").iterdir():
        path.rename(tmp_path / "model" / path.name)
    (tmp_path / "model" / "unet").rmdir()
    assert load(tmp_path / "model").fingerprint == expected


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch):
    """What is said of a folder that does not load; nothing is looked for on the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refused(folder: Path, **changes: object) -> str:
        with pytest.raises(FlowgradError) as error:
            load(folder, **changes)
        assert len(str(error.value).splitlines()) <= 2
        return str(error.value)

    return refused


def test_a_pipeline_that_cannot_be_read_says_so(tmp_path: Path, refusal):
    folder = tmp_path / "model"
    DDPMPipeline(make_unet(), DDPMScheduler()).save_pretrained(folder)
    assert "size is 32, and the model's images have 16 pixels" in refusal(folder, size=32)
    assert "which reads no prompt: remove it" in refusal(folder, prompt="a cat")
    assert "which reads no guidance_scale: remove it" in refusal(folder, guidance_scale=2.0)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "is damaged" in refusal(folder)
    unet_3d, unet_2d = ["diffusers", "UNet3DConditionModel"], ["diffusers", "UNet2DModel"]
    rewrite(folder / "model_index.json", unet=unet_3d)
    assert "has a UNet3DConditionModel: only" in refusal(folder)
    rewrite(folder / "model_index.json", unet=unet_2d, vae=["evil", "Evil"])
    assert "is evil.Evil, code of its own, which is not run" in refusal(folder)
    (folder / "model_index.json").write_text("{")
    assert "missing or damaged" in refusal(folder)


def test_a_scheduler_that_cannot_be_read_says_so(tmp_path: Path, refusal):
    make_unet().save_pretrained(tmp_path / "model")
    assert "has no scheduler" in refusal(tmp_path / "model")
    for scheduler, changes, message in (
        (ScoreSdeVeScheduler(), {}, "is a ScoreSdeVeScheduler: only flow-matching"),
        (DDPMScheduler(), {"steps": 2000}, "does not give 2000 steps"),
        (DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"), {}, "must not begin at pure noise"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), {}, "does not give 4 steps"),
    ):
        scheduler.save_pretrained(tmp_path / "model")
        assert message in refusal(tmp_path / "model", **changes)


def test_a_network_that_is_no_field_says_so(tmp_path: Path, refusal):
    sizes = json.loads(make_unet().to_json_string())
    for key, value, message in (
        ("out_channels", 6, "takes 3 channels and returns 6"),
        ("num_class_embeds", 10, "asks for a class"),
        ("sample_size", [16, 8], "its states are 16 x 8, and only squares"),
    ):
        UNet2DModel.from_config({**sizes, key: value}).save_pretrained(tmp_path / "model")
        assert message in refusal(tmp_path / "model", prediction="velocity")
    UNet2DModel.from_config({**sizes, "sample_size": None}).save_pretrained(tmp_path / "model")
    assert load(tmp_path / "model", size=32, prediction="velocity").shape == (3, 32, 32)


def test_a_hub_name_that_cannot_be_fetched_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def offline(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    hub = {"name": "tiny", "family": "diffusers", "weights": "someone/some-flow", "size": 16, "steps": 4}
    with pytest.raises(FlowgradError, match=r"could not be fetched .*no route to host.*\n.*the folder's path"):
        load_described(tmp_path / "hub.yaml", **hub)
    make_unet().save_pretrained(tmp_path / "cached")
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "cached")
    asked: list[str] = []

    def cached(_: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(tmp_path / "cached")

    monkeypatch.setattr("huggingface_hub.snapshot_download", cached)
    first = load_described(tmp_path / "hub.yaml", **hub)
    assert first.shape == (3, 16, 16) and not any(pattern.endswith(".bin") for pattern in asked)
    make_unet().save_pretrained(tmp_path / "cached", safe_serialization=False)
    (tmp_path / "cached" / "diffusion_pytorch_model.safetensors").unlink()
    again, x = load_described(tmp_path / "hub.yaml", **hub), start(first)
    assert asked[-1] == "diffusion_pytorch_model*.bin", "weights that are in one format are not fetched in the other"
    assert torch.equal(again.velocity(x, torch.tensor(0.5)), first.velocity(x, torch.tensor(0.5)))
