"""Training a flow: the mathematics, the data's order, kills and resumptions, several processes, and what it writes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from directions.own_models.flow import FlowJob, run_flow_job
from directions.own_models.flow_source import FlowSource
from directions.progress import Silent
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.guidance.guide_files import load_guide
from flowgrad.models import load_config, load_model
from flowgrad.models.diffusers_unet import WEIGHTS
from flowgrad.ode import Grid
from flowgrad.training.data.pictures import load_images, prepare_images
from flowgrad.training.flow.config import FlowConfig, load_flow_config
from flowgrad.training.flow.objective import FlowObjective, ImagePairs, draw_times, flow_loss, new_unet, vary
from flowgrad.training.flow.reflow import PairPlan, curvature, draw_pairs, load_pairs, sample
from flowgrad.training.flow.run import (
    FlowResult,
    FlowRun,
    config_of,
    image_data,
    model_config,
    prepare_reflow_data,
    reflow_data,
)
from flowgrad.training.loop.run import RunOptions, read_checkpoint
from flowgrad.training.loop.trainer import Budget, Trainer, TrainStep
from flowgrad.workers import Workers
from tests.helpers.flow_process import TINY
from tests.helpers.paths import ROOT, killed_write
from tests.helpers.tiny import make_guide

T = TypeVar("T")
SCRIPT = ROOT / "tests" / "helpers" / "flow_process.py"


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """Coarse samples; and one thread, for networks this small lose more by waiting for a second than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowgrad.training.flow.run.SHEET_STEPS", 3)
        yield
    torch.set_num_threads(before)


def tiny(**changes: object) -> FlowConfig:
    return FlowConfig().change(**{**TINY, "batch": 8, "warmup": 2, "held_out": 0.25, **changes})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-two pictures; tests that change them copy the folder."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(32):
        pixels = np.full((18, 18, 3), 60 + 5 * i, np.uint8)
        pixels[4:12, 4:12] = (250, 20, 20)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


def open_run(
    source: Path, output: Path, config: FlowConfig, steps: int = 4, start: str | None = None, **options: object
) -> FlowRun:
    settings = RunOptions(output, Budget(steps=steps), evaluate_every=100, samples=2, device="cpu", **options)
    settings.begin()
    for _ in prepare_images(source, config.network.size, output / "training"):
        pass
    return FlowRun(image_data(load_images(output / "training"), config), config, settings, start)


# mathematics


def test_loss_is_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, 5, 3, 4, 4, generator=generator)
    t = torch.rand(5, generator=generator)
    expected = 0.0
    for i in range(5):
        x_t = (1 - t[i]) * x0[i] + t[i] * x1[i]
        expected += float((x_t**2 * t[i] - (x1[i] - x0[i])).square().mean()) / 5
    found = flow_loss(lambda x, t: x**2 * t.view(-1, 1, 1, 1), x0, x1, t)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_times_mix_two_distributions() -> None:
    t = draw_times(20_000, 0.2, Generator().manual_seed(0))
    assert t.min() >= 0
    assert t.max() <= 1
    uniform, normal = t[:4000], t[4000:]
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(uniform.var()) == pytest.approx(1 / 12, abs=0.004)
    logits = torch.logit(normal)
    assert float(logits.mean()) == pytest.approx(0, abs=0.03)
    assert float(logits.std()) == pytest.approx(1, abs=0.03)


def test_draws_do_not_depend_on_the_share() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    pairs, rows = ImagePairs(pixels, np.arange(12), flips=True, augment=True), np.arange(8)

    def draw(share: slice) -> tuple[Tensor, Tensor]:
        return pairs.draw(rows, Generator().manual_seed(1), share)

    whole, halves = draw(slice(None)), (draw(slice(0, 4)), draw(slice(4, 8)))
    for i in range(2):
        assert torch.equal(whole[i], torch.cat([half[i] for half in halves]))
    assert whole[1].abs().max() <= 1


def test_flips_mirror_half_and_nothing_is_changed_unasked() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 3), dtype=np.uint8)
    rows = np.arange(200)
    plain = ImagePairs(pixels, rows).draw(rows, Generator().manual_seed(0), slice(None))[1]
    assert torch.equal(((plain + 1) * 127.5).round().byte(), torch.from_numpy(pixels).permute(0, 3, 1, 2))
    flipped = ImagePairs(pixels, rows, flips=True).draw(rows, Generator().manual_seed(0), slice(None))[1]
    mirrored = (flipped == plain.flip(3)).flatten(1).all(1)
    assert 70 < int(mirrored.sum()) < 130
    assert torch.equal(flipped[~mirrored], plain[~mirrored])


def test_variation_in_the_middle_is_none() -> None:
    images = torch.rand(3, 3, 32, 32) * 1.8 - 0.9
    assert torch.equal(vary(images, torch.full((3, 2), 2), torch.ones(3, 2)), images)
    shifted = vary(images, torch.tensor([[3, 2]] * 3), torch.ones(3, 2))
    assert torch.equal(shifted[:, :, :-1], images[:, :, 1:])


# a run


def test_the_loss_falls(source: Path, tmp_path: Path) -> None:
    run = open_run(source, tmp_path / "out", tiny(learning_rate=1e-2, warmup=5, ema=0.8, batch=16), steps=60)
    records = list(run.steps())
    assert [record.step for record in records] == list(range(61))
    start, end = records[0].held_out, records[-1].held_out
    assert start is not None and end is not None
    assert end < 0.7 * start
    assert [record.held_out for record in records[1:-1]] == [None] * 59
    assert records[-1].progress == 1
    assert records[-1].rate < 0.05


def test_a_run_writes_a_model_that_loads_and_a_card(source: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "Tiny Squares", tiny()
    model = model_config(out, config, None, title="Squares", licence="CC0")
    run = open_run(source, out, config)
    list(run.steps())
    result = run.finish(model, "flowgrad train-flow squares")
    assert (result.steps, result.seen) == (4, 32)
    loaded = load_model(str(out), device="cpu", precision="fp32")
    assert (loaded.name, loaded.shape, loaded.config.licence) == ("tiny-squares", (3, 16, 16), "CC0")
    noise = run.noise(2)
    for value in run.trainer.average.values():
        value.copy_(value.half())  # what is written
    with run.trainer.averaged():
        expected = sample(run.objective.velocity, noise, Grid.full(3))
    assert torch.allclose(sample(loaded.velocity, noise, Grid.full(3)), expected, atol=1e-5)
    card = (out / "README.md").read_text()
    facts = [
        "# Squares",
        "CC0",
        "24 trained on, 8 held out",
        "flowgrad train-flow squares",
        f"{result.held_out_end:.5f}",
    ]
    assert [fact for fact in facts if fact not in card] == []
    pictures = {"samples.png", "curve.png", "training/samples/step-0000000.png", "training/samples/step-0000004.png"}
    assert {name for name in pictures if not (out / name).is_file()} == set()
    lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 4]


def test_a_trained_model_is_trained_on(source: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    run = open_run(source, first, tiny())
    list(run.steps())
    run.finish(model_config(first, tiny(), None), "first")
    config = config_of(str(first), FlowConfig().change(batch=8, held_out=0.25, precision="fp32"))
    assert config.network == tiny().network
    second = open_run(source, tmp_path / "second", config, steps=2, start=str(first))
    records = list(second.steps())
    assert records[0].held_out == pytest.approx(run.run.log[-1]["held_out"], rel=1e-5)
    second.finish(model_config(tmp_path / "second", config, str(first)), "second")
    assert (tmp_path / "second" / "samples-before.png").is_file()
    assert "curvature of the model it began with" in (tmp_path / "second" / "README.md").read_text()


# recipes


def test_recipes_are_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("network: {size: 32}\ntraining: {batch: 16}\n")
    assert load_flow_config(path).change(batch=8).training.batch == 8
    assert load_flow_config(path).change(batch=None).training.batch == 16
    path.write_text("training: {batchs: 16}\n")
    with pytest.raises(UsageError, match=r"unknown key 'training.batchs'; did you mean 'batch'\?"):
        load_flow_config(path)
    path.write_text("network: [")
    with pytest.raises(UsageError, match="not a readable YAML"):
        load_flow_config(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 20}, "multiple of 8"),
        ({"channels": (64, 128)}, "one entry for each"),
        ({"channels": (40, 128, 256)}, "multiples of groups = 32"),
        ({"head_dim": 60}, "multiples of head_dim = 60"),
        ({"batch": 1}, "greater than or equal to 2"),
    ],
)
def test_networks_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FlowConfig().change(**changes)


def test_the_default_is_the_layout_of_faces64() -> None:
    assert config_of("faces64", FlowConfig()) == FlowConfig()
    shipped = json.loads((load_config("faces64").weights_path / "config.json").read_text())
    with torch.device("meta"):
        own = json.loads(new_unet(FlowConfig().network, 3, 64, 0).to_json_string())
    assert {key: own[key] for key in shipped if key[0] != "_"} == {k: v for k, v in shipped.items() if k[0] != "_"}


def test_wrong_names_show_before_training(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lower-case letters"):
        model_config(tmp_path, tiny(), None, name="My Model")
    assert model_config(tmp_path / "Überschuhe 64", tiny(), None).name == "berschuhe-64"
    assert model_config(tmp_path, tiny(flips=True), None).mirror and not model_config(tmp_path, tiny(), None).mirror
    assert not model_config(tmp_path, tiny(flips=True), None, in_pixels=False).mirror  # latents know left and right
    onward = model_config(tmp_path, tiny(), "faces64")
    assert onward.mirror and onward.aligned_faces and onward.guide == "faces64-guide"
    assert onward.licence == load_config("faces64").licence
    assert model_config(tmp_path, tiny(), "faces64", licence="CC0").licence == "CC0"


def test_another_subject_has_no_face_models_settings(tmp_path: Path) -> None:
    assert model_config(tmp_path, tiny(), "faces64", subject="a face").guide == "faces64-guide"
    own = model_config(tmp_path, tiny(), "faces64", subject="a shoe")
    assert (own.subject, own.guide, own.mirror, own.aligned_faces, own.probes) == ("a shoe", "", False, False, ())
    assert load_config("faces64").gate and not model_config(tmp_path, tiny(), "faces64").gate


def test_a_guide_beside_the_model_it_began_with_is_copied(source: Path, flow: str, tmp_path: Path) -> None:
    first = shutil.copytree(flow, tmp_path / "first", ignore=shutil.ignore_patterns("training"))
    make_guide(first / "own-guide.safetensors")
    with (first / "flowgrad.yaml").open("a") as file:
        file.write("guide: own-guide.safetensors\n")
    out = tmp_path / "second"
    run = open_run(source, out, tiny(), steps=1, start=str(first))
    list(run.steps())
    run.finish(model_config(out, tiny(), str(first)), "")
    shutil.rmtree(first)
    assert yaml.safe_load((out / "flowgrad.yaml").read_text())["guide"] == "own-guide.safetensors"
    assert load_guide(load_config(str(out)).guide).name == "own-guide"


# kills and resumptions


def test_an_unfinished_run_is_not_overwritten_nor_mixed_with_another(source: Path, tmp_path: Path) -> None:
    list(open_run(source, tmp_path, tiny()).steps())
    with pytest.raises(UsageError, match="another recipe"):
        open_run(source, tmp_path, tiny(learning_rate=1e-5))
    other = shutil.copytree(source, tmp_path / "other")
    Image.new("RGB", (20, 20)).save(other / "zz.png")
    with pytest.raises(UsageError, match="other data"):
        open_run(other, tmp_path, tiny())


def test_a_run_that_is_not_to_go_on_is_kept_in_the_trash(source: Path, tmp_path: Path) -> None:
    list(open_run(source, tmp_path, tiny()).steps())
    before = (tmp_path / "training" / "checkpoint.pt").read_bytes()
    again = open_run(source, tmp_path, tiny(learning_rate=1e-5), resume=False)
    assert again.trainer.step == 0
    assert (tmp_path / ".trash" / "training" / "1" / "checkpoint.pt").read_bytes() == before


def test_a_run_that_began_with_other_weights_is_not_gone_on_with(source: Path, flow: str, tmp_path: Path) -> None:
    list(open_run(source, tmp_path / "out", tiny(), start=flow).steps())
    other = shutil.copytree(flow, tmp_path / "other", ignore=shutil.ignore_patterns("training"))
    assert open_run(source, tmp_path / "out", tiny(), start=str(other)).trainer.step == 4  # moved
    state = load_file(other / WEIGHTS)
    save_file({name: value + 1 for name, value in state.items()}, other / WEIGHTS, {"format": "pt"})
    for start in (str(other), None):
        with pytest.raises(UsageError, match="other weights to begin with"):
            open_run(source, tmp_path / "out", tiny(), start=start)


def test_a_model_is_not_overwritten_by_resuming_a_run_that_is_not_there(source: Path, tmp_path: Path) -> None:
    run = open_run(source, tmp_path, tiny(), steps=1)
    list(run.steps())
    run.finish(model_config(tmp_path, tiny(), None), "")
    shutil.rmtree(tmp_path / "training")
    with pytest.raises(UsageError, match=r"README\.md that no run left there"):
        open_run(source, tmp_path, tiny())


@pytest.mark.parametrize("name", ["README.md", "config.json", "diffusion_pytorch_model.safetensors", "samples.png"])
def test_files_of_others_are_not_overwritten(source: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=f"has a {name} that no run left there: choose another"):
        open_run(source, tmp_path, tiny())


def test_a_run_that_is_killed_before_its_first_checkpoint_leaves_nothing_in_the_way(
    source: Path, flow: str, tmp_path: Path
) -> None:
    next(open_run(source, tmp_path, tiny(), start=flow).steps())
    assert [path.name for path in tmp_path.iterdir()] == ["training"]
    run = open_run(source, tmp_path, tiny(), start=flow)
    list(run.steps())
    run.finish(model_config(tmp_path, tiny(), flow), "")
    assert open_run(source, tmp_path, tiny(), start=flow).trainer.step == 4  # as if killed in finishing


def test_resuming_removes_what_a_killed_save_left_and_compiles_as_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(open_run(source, tmp_path, tiny()).steps())
    checkpoint = tmp_path / "training" / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    leftover = killed_write(checkpoint)
    checkpoint.write_bytes(whole)
    assert not open_run(source, tmp_path, tiny(), steps=10**6).run.compiled  # as it was
    assert not leftover.exists()
    monkeypatch.setattr("flowgrad.training.loop.run.shutil.which", lambda _: None)
    with pytest.raises(UsageError, match="needs a C"):
        open_run(source, tmp_path, tiny(), compiled=True)


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for content in (b"", b"nothing", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(FlowgradError, match="not a readable checkpoint"):
            read_checkpoint(path)
    torch.save({"format": 99}, path)
    with pytest.raises(FlowgradError, match="in format 2"):
        read_checkpoint(path)


def lines_of(process: "subprocess.CompletedProcess[str]") -> list[dict[str, object]]:
    assert process.returncode == 0, process.stderr[-2000:]
    return [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]


def command(source: Path, output: Path, steps: int, batch: int = 4) -> list[str]:
    return [sys.executable, str(SCRIPT), str(source), str(output), str(steps), str(batch)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def finished(arguments: list[str]) -> list[dict[str, object]]:
    run = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    return lines_of(run)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++, which is not there")
def test_compiled_it_learns_the_same() -> None:
    config = tiny(batch=16)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), dtype=np.uint8)
    pairs, losses = ImagePairs(pixels, np.arange(32)), []
    for compiled in (False, True):
        network, device = new_unet(config.network, 3, 16, 0), torch.device("cpu")
        trainer = Trainer(FlowObjective(network, pairs, pairs, config, device, compiled), config.training)
        losses.append([trainer.advance(0.0).loss for _ in range(3)] + [trainer.held_out_loss()])
        assert list(trainer.state()["network"]) == list(new_unet(config.network, 3, 16, 0).state_dict())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_compiling_needs_a_compiler(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowgrad.training.loop.run.shutil.which", lambda _: None)
    with pytest.raises(UsageError, match="install it, or train uncompiled"):
        open_run(source, tmp_path, tiny(), compiled=True)
    assert not open_run(source, tmp_path, tiny(), steps=10**6).run.compiled
    monkeypatch.undo()
    if shutil.which("g++"):
        assert open_run(source, tmp_path, tiny(), steps=10**6).run.compiled  # long runs are


@pytest.mark.slow
def test_two_processes_lose_what_one_with_the_double_batch_does(source: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    one = finished(command(source, tmp_path / "one", 8, batch=8))
    two = finished([*torchrun, *command(source, tmp_path / "two", 8, batch=8)[1:]])
    assert len(one) == len(two) == 10
    for key in ("loss", "held_out"):
        a = [r[key] for r in one[:-1] if r[key] is not None]
        b = [r[key] for r in two[:-1] if r[key] is not None]
        assert b == pytest.approx(a, rel=1e-3), "Muon's orthogonal steps enlarge the last digits of gradients"


# reflow


@pytest.fixture(scope="module")
def flow(source: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("flow") / "tiny"
    run = open_run(source, out, tiny(learning_rate=4e-3, warmup=10, ema=0.9, batch=16), steps=30)
    list(run.steps())
    return str(run.finish(model_config(out, run.config, None), "").folder)


def test_pairs_are_the_flows_own_and_drawn_once(flow: str, tmp_path: Path) -> None:
    model = load_model(flow, device="cpu", precision="fp32")
    plan = PairPlan(model.fingerprint, 300, 2, seed=5)
    assert [step.done for step in draw_pairs(model, plan, tmp_path)] == [256, 300]
    train, held_out = load_pairs(tmp_path, 0.1)
    assert (len(train), len(held_out)) == (270, 30)
    x0, x1 = train.draw(np.array([3, 260]), Generator(), slice(None))
    assert torch.allclose(sample(model.velocity, x0, Grid.full(2)), x1, atol=2e-3)
    (tmp_path / "rows-0000256.npy").unlink()  # as after a kill
    kept = (tmp_path / "rows-0000000.npy").stat().st_mtime_ns
    list(draw_pairs(model, plan, tmp_path))
    assert (tmp_path / "rows-0000000.npy").stat().st_mtime_ns == kept
    assert torch.equal(load_pairs(tmp_path, 0.1)[0].draw(np.array([3, 260]), Generator(), slice(None))[1], x1)
    list(draw_pairs(model, PairPlan(model.fingerprint, 20, 2, seed=6), tmp_path))
    assert len(list(tmp_path.glob("rows-*.npy"))) == 1  # other pairs replace them
    with pytest.raises(UsageError, match="16 pairs"):
        PairPlan("", 3, 2, 0)


def test_curvature_of_straight_and_bent_flows() -> None:
    x0 = torch.randn(4, 3, 4, 4)
    assert curvature(lambda x, t: torch.ones_like(x), x0, 10) == pytest.approx(0, abs=1e-10)
    bent = curvature(lambda x, t: 2 * t * torch.ones_like(x), x0, 1000)
    assert bent == pytest.approx(1 / 3, abs=5e-3)  # the variance of 2t over the square of its mean


def test_resuming_with_other_pairs_keeps_those_that_are_there(flow: str, tmp_path: Path) -> None:
    options = RunOptions(tmp_path, Budget(steps=1), device="cpu")
    list(prepare_reflow_data(flow, 16, 1, 0, options, Workers()))
    list(prepare_reflow_data(flow, 17, 1, 0, options, Workers()))  # nothing is trained on them yet
    options.checkpoint.write_bytes(b"")
    with pytest.raises(UsageError, match="had other pairs: resume with the same"):
        list(prepare_reflow_data(flow, 16, 1, 0, options, Workers()))
    assert len(np.load(tmp_path / "training" / "pairs" / "rows-0000000.npy")) == 17


@pytest.mark.slow
def test_reflow_straightens(flow: str, tmp_path: Path) -> None:
    out, config = tmp_path / "straight", config_of(flow, tiny(learning_rate=3e-3, warmup=5, ema=0.9, batch=16))
    options = RunOptions(out, Budget(steps=150), device="cpu", samples=2)
    list(prepare_reflow_data(flow, 256, 20, 0, options, Workers()))
    run = FlowRun(reflow_data(flow, config, out), config, options, flow)
    records: list[TrainStep] = list(run.steps())
    assert records[-1].held_out is not None and records[0].held_out is not None
    assert records[-1].held_out < records[0].held_out
    folder = run.finish(model_config(out, config, flow), "reflow").folder
    noise = torch.randn(16, 3, 16, 16, generator=Generator().manual_seed(9))
    bends = [curvature(load_model(str(name), "cpu", "fp32").velocity, noise, 20) for name in (flow, folder)]
    assert bends[1] < 0.8 * bends[0]


# the job


def test_a_job_goes_from_pictures_to_a_model(source: Path, tmp_path: Path) -> None:
    recipe, out, reporter = tmp_path / "tiny.yaml", tmp_path / "squares", Silent()
    source = shutil.copytree(source, tmp_path / "source")
    sizes = {
        key: list(value) if isinstance(value, tuple) else value for key, value in TINY.items() if key != "precision"
    }
    recipe.write_text(yaml.safe_dump({"network": sizes, "training": {"batch": 8, "held_out": 0.25}}))
    (source / "broken.jpg").write_bytes(b"nothing")
    options = RunOptions(out, Budget(steps=2), device="cpu")
    job = FlowJob(options, FlowSource(source), recipe=str(recipe), changes={"learning_rate": 1e-3})
    seen: list[int] = []

    def follow(steps: Iterator[TrainStep]) -> Iterator[TrainStep]:
        for step in steps:
            seen.append(step.step)
            yield step

    result = run_flow_job(job, reporter, follow)
    assert seen == [0, 1, 2]
    assert load_model(str(result.folder), device="cpu").shape == (3, 16, 16)
    assert reporter.warnings == [f"left out of {source}: 1 unreadable"]


def tiny_job(tmp_path: Path, images: Path | None, compiled: bool = False, **values: object) -> FlowJob:
    """A job of two steps that writes into `out`."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(yaml.safe_load(tiny().model_dump_json())))
    options = RunOptions(tmp_path / "out", Budget(steps=2), device="cpu", compiled=compiled)
    return job(options, images, **{"recipe": str(recipe), **values})


def run_tiny(job: FlowJob, workers: Workers | None = None) -> FlowResult:
    return run_flow_job(job, Silent(), lambda steps: steps, workers)


def test_resuming_with_other_pictures_keeps_those_that_are_there(source: Path, tmp_path: Path) -> None:
    run_tiny(tiny_job(tmp_path, source))
    files = [tmp_path / "out" / "training" / name for name in ("images.npy", "images.json")]
    before = [file.read_bytes() for file in files]
    other = shutil.copytree(source, tmp_path / "other")
    Image.new("RGB", (20, 20)).save(other / "zz.png")
    with pytest.raises(UsageError, match="of a run with other pictures"):
        run_tiny(tiny_job(tmp_path, other))
    with pytest.raises(UsageError, match="another recipe"):
        run_tiny(tiny_job(tmp_path, source, changes={"size": 8}))
    assert [file.read_bytes() for file in files] == before
    (other / "zz.png").unlink()
    for path in other.iterdir():
        path.touch()  # a copy has the same pictures, and other dates
    assert run_tiny(tiny_job(tmp_path, other)).steps == 2


def test_wrong_calls_are_refused_before_data_are_prepared(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="multiple of the 3 processes"):
        run_tiny(tiny_job(tmp_path, source), Workers(0, 3))
    monkeypatch.setattr("flowgrad.training.loop.run.shutil.which", lambda _: None)
    with pytest.raises(UsageError, match="install it, or train uncompiled"):
        tiny_job(tmp_path, source, compiled=True)
    assert not (tmp_path / "out").exists()


def test_the_drawing_of_pairs_tells_how_far_it_is(flow: str, tmp_path: Path) -> None:
    class Told(Silent):
        def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
            kept = list(items)
            found.append((label, total, len(kept)))
            return kept

    found: list[tuple[str, int | None, int]] = []
    run_flow_job(tiny_job(tmp_path, None, reflow=flow, pairs=300, pair_steps=1), Told(), lambda steps: steps)
    assert found == [("drawing pairs, 256 at a time", 2, 2)]


def one_step(output: Path) -> RunOptions:
    return RunOptions(output, Budget(steps=1), device="cpu")


def job(options: RunOptions, images: Path | None = None, **values: object) -> FlowJob:
    """A job of pictures or of what is named; `values` are of the source and of the job."""
    of_source = {key: values.pop(key) for key in [field.name for field in fields(FlowSource)] if key in values}
    return FlowJob(options, FlowSource(images, **of_source), **values)


def test_pairs_must_fit_the_network_they_train(flow: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="draws 16 pixels, and faces64 64"):
        _ = job(one_step(tmp_path), reflow=flow, start="faces64").config


def test_pairs_are_not_mirrored(flow: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="flips and augment are for pictures"):
        _ = job(one_step(tmp_path), reflow=flow, changes={"flips": True}).config


def test_jobs_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lies among the pictures"):
        run_tiny(job(one_step(tmp_path / "model"), tmp_path))
    for sources in ({}, {"images": tmp_path, "reflow": "faces64"}):
        with pytest.raises(UsageError, match="either pictures"):
            job(one_step(tmp_path), **sources)
    with pytest.raises(UsageError, match="--splits is for pictures"):
        job(one_step(tmp_path), reflow="faces64", splits=tmp_path)
    for drawn in ({"pairs": 100}, {"pair_steps": 20}):
        with pytest.raises(UsageError, match="are of what --reflow draws"):
            job(one_step(tmp_path), tmp_path, **drawn)
    with pytest.raises(UsageError, match="no 'shoes' in configs/flows"):
        load_flow_config("shoes")
    with pytest.raises(UsageError, match="is of size 64, not 32"):
        _ = job(one_step(tmp_path), tmp_path, start="faces64", changes={"size": 32}).config


def test_the_shipped_recipe_is_the_default() -> None:
    assert load_flow_config("faces64") == FlowConfig()
