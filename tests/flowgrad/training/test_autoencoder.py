"""Training an autoencoder, encoding pictures, and a flow on their latents."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from directions.own_models.autoencoder import AutoencoderJob, run_autoencoder_job
from directions.progress import Silent
from flowgrad.errors import UsageError
from flowgrad.models.autoencoder import load_first_stage
from flowgrad.models.diffusers_unet import WEIGHTS
from flowgrad.training.autoencoder.config import AutoencoderConfig, load_autoencoder_config
from flowgrad.training.autoencoder.objective import AutoencoderObjective, new_autoencoder, psnr, to_images
from flowgrad.training.data.latents import LatentPairs, load_latents, prepare_latents
from flowgrad.training.data.pictures import load_images, prepare_images
from flowgrad.training.loop.run import RunOptions
from flowgrad.training.loop.trainer import Budget, Trainer
from flowgrad.workers import Workers

CPU = torch.device("cpu")
NETWORK = {"size": 16, "channels": (8, 8), "latent_channels": 2, "groups": 4}
TRAINING = {"batch": 8, "crop": 8, "warmup": 2, "held_out": 0.25, "precision": "fp32"}
RECIPE = """
network: {size: 16, channels: [8, 8], latent_channels: 2, groups: 4}
training: {batch: 8, crop: 8, warmup: 5, held_out: 0.25, precision: fp32, ema: 0.9}
"""


def tiny(**changes: object) -> AutoencoderConfig:
    return AutoencoderConfig(network=NETWORK, training=TRAINING).change(**changes)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-two pictures of a square on grey."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(32):
        pixels = np.full((18, 18, 3), 60 + 5 * i, np.uint8)
        pixels[4:12, 4:12] = (250, 20, 20)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an autoencoder that has learned them."""
    out = tmp_path_factory.mktemp("autoencoder") / "out"
    recipe = out.parent / "tiny.yaml"
    recipe.write_text(RECIPE)
    options = RunOptions(out, Budget(steps=150), device="cpu", samples=4, evaluate_every=150)
    job = AutoencoderJob(options, source, recipe=str(recipe), licence="CC0", command="flowgrad train-autoencoder")
    assert run_autoencoder_job(job, Silent(), lambda steps: steps) > 15  # decibels; 7 before
    return out


def objective(config: AutoencoderConfig) -> AutoencoderObjective:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    network = new_autoencoder(config.network, 0)
    return AutoencoderObjective(network, pixels, np.arange(16), np.arange(16, 20), config, CPU)


def test_the_loss_is_its_formula() -> None:
    config = tiny(gradient_weight=0.5, kl_weight=0.1, flips=False, crop=16)
    mine, found = objective(config), []
    original = mine.network.encode

    def encode(images: torch.Tensor) -> object:
        found.append((images, original(images)))
        return found[-1][1]

    mine.network.encode = encode
    loss = float(mine.loss(0, 0.0, slice(None)).detach())
    images, posterior = found[0][0], found[0][1].latent_dist
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar)
    drawn = mine.loss(0, 0.0, slice(None))  # the same draws once more
    assert float(drawn.detach()) == pytest.approx(loss, rel=1e-6)
    decoded = torch.zeros_like(images)
    edges = [(decoded.diff(dim=d) - images.diff(dim=d)).abs().mean() for d in (2, 3)]
    expected = (decoded - images).abs().mean() + 0.5 * sum(edges)
    assert float(mine.distance(decoded, images)) == pytest.approx(float(expected), rel=1e-6)
    without = objective(tiny(gradient_weight=0.5, kl_weight=0.0, flips=False, crop=16)).loss(0, 0.0, slice(None))
    assert loss - float(without.detach()) == pytest.approx(0.1 * float(kl.mean().detach()), rel=1e-3)


def test_parts_of_a_batch_make_the_whole() -> None:
    mine = objective(tiny())
    halves = [float(mine.loss(3, 0.0, share).detach()) for share in (slice(0, 4), slice(4, 8))]
    assert sum(halves) / 2 == pytest.approx(float(mine.loss(3, 0.0, slice(None)).detach()), rel=1e-5)


def test_the_last_part_of_a_run_sees_whole_images_of_as_many_pixels() -> None:
    mine, shapes = objective(tiny(batch=8, crop=8, whole=0.5)), []
    mine.network.encoder.register_forward_hook(lambda _, images, __: shapes.append(tuple(images[0].shape)))
    for progress, share in ((0.4, slice(None)), (0.6, slice(None)), (0.6, slice(4, 8)), (0.6, slice(0, 1))):
        mine.loss(0, progress, share)
    assert shapes == [(8, 3, 8, 8), (2, 3, 16, 16), (1, 3, 16, 16), (1, 3, 16, 16)]


def test_the_decoder_alone_is_trained_on_latents_that_stay() -> None:
    trainer = Trainer(objective(tiny(decoder_only=True)), tiny().training)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.advance(0.0)
    moved = {name for name, value in trainer.network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and not [name for name in moved if name.startswith(("encoder", "quant_conv"))]


def test_psnr_is_its_formula() -> None:
    a, b = torch.rand(3, 3, 4, 4) * 2 - 1, torch.rand(3, 3, 4, 4) * 2 - 1
    errors = ((a - b) * 127.5).square().mean((1, 2, 3))
    assert psnr(a, b) == pytest.approx(float((10 * (255**2 / errors).log10()).mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [({"size": 15}, "multiple of 2"), ({"channels": (6, 8)}, "multiples of groups = 4"), ({"crop": 9}, "crop must be")],
)
def test_networks_that_cannot_be_are_refused(changes: dict[str, object], rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        tiny(**changes)


def test_the_shipped_recipe_is_the_default() -> None:
    assert load_autoencoder_config("faces128") == AutoencoderConfig()


def test_a_run_leaves_a_diffusers_folder_with_normalised_latents(trained: Path, source: Path) -> None:
    assert {"README.md", "config.json", WEIGHTS, "reconstructions.png", "curve.png"} <= {
        p.name for p in trained.iterdir()
    }
    card = (trained / "README.md").read_text()
    assert all(fact in card for fact in ("2x8x8", "CC0", "24 trained on, 8 held out", "flowgrad train-autoencoder"))
    assert all(value.dtype == torch.float16 for value in load_file(trained / WEIGHTS).values())
    stage = load_first_stage(trained, CPU, torch.float32)
    images = to_images(load_images(trained / "training").pixels, CPU)
    states = stage.encode(images)
    assert states.shape == (32, 2, 8, 8)
    assert torch.allclose(states.mean((0, 2, 3)), torch.zeros(2), atol=0.2)
    assert torch.allclose(states.std((0, 2, 3)), torch.ones(2), atol=0.2)
    assert psnr(stage.decode(states), images) > 15


def test_latents_are_those_of_pictures_and_their_mirror_images(trained: Path, source: Path, tmp_path: Path) -> None:
    for _ in prepare_images(source, 16, tmp_path):
        pass
    images, stage = load_images(tmp_path), load_first_stage(trained, CPU, torch.float32)
    list(prepare_latents(stage, "digits", images, tmp_path / "latents", CPU, Workers()))
    states = load_latents(tmp_path / "latents", images)
    shown = to_images(images.pixels, CPU)
    for flips, expected in ((False, shown), (True, shown.flip(3))):
        both = torch.from_numpy(states[np.arange(32)])[:, int(flips)].float()
        assert torch.allclose(both, stage.encode(expected), atol=5e-3)
    rows = np.arange(32)
    whole = LatentPairs(states, rows, flips=True).draw(rows, torch.Generator().manual_seed(1), slice(None))
    halves = [
        LatentPairs(states, rows, flips=True).draw(rows, torch.Generator().manual_seed(1), share)
        for share in (slice(0, 16), slice(16, 32))
    ]
    assert all(torch.equal(whole[i], torch.cat([half[i] for half in halves])) for i in range(2))
    mirrored = (whole[1] == torch.from_numpy(states[rows])[:, 1].float()).flatten(1).all(1)
    assert 8 < int(mirrored.sum()) < 24


def test_encoding_goes_on_and_starts_anew_for_other_weights(trained: Path, source: Path, tmp_path: Path) -> None:
    for _ in prepare_images(source, 16, tmp_path):
        pass
    images, stage = load_images(tmp_path), load_first_stage(trained, CPU, torch.float32)

    def encode(digits: str) -> int:
        list(prepare_latents(stage, digits, images, tmp_path / "latents", CPU, Workers()))
        return (tmp_path / "latents" / "rows-0000000.npy").stat().st_mtime_ns

    first = encode("one")
    assert encode("one") == first
    assert encode("two") != first


def test_the_same_steps_give_the_same_weights() -> None:
    runs = []
    for _ in range(2):
        trainer = Trainer(objective(tiny()), tiny().training)
        runs.append([trainer.advance(0.0).loss for _ in range(3)])
    assert runs[0] == runs[1]
