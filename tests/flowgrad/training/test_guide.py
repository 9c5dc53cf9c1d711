"""Guides: loading, encoding, errors, and their training from images and labels."""

import json
import math
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from directions.own_models.guide import GuideJob, run_guide_job
from directions.progress import Silent
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.guidance.guide import Guide, to_network
from flowgrad.guidance.guide_files import load_guide
from flowgrad.guidance.names import words_of
from flowgrad.training.data.images import read_images, to_model_range
from flowgrad.training.data.pictures import to_square
from flowgrad.training.guide.augment import augment
from flowgrad.training.guide.config import GuideConfig, load_guide_config
from flowgrad.training.guide.evaluation import area_under_curve, guide_auc, questions
from flowgrad.training.guide.labels import Labels, read_labels, read_table, split_rows
from flowgrad.training.guide.objective import GuideObjective, data_key, export_guide
from flowgrad.training.loop.card import Card
from flowgrad.training.loop.run import RunOptions
from flowgrad.training.loop.trainer import Budget, Trainer, train

CONFIG = GuideConfig.model_validate(
    {
        "attributes": {"colour": {"kind": "category", "column": "colour", "values": ["red", "blue"]}},
        "slots": {
            "colour": [
                {"words": ["red", "warm"], "means": {"colour": ["red"]}},
                {"words": ["blue", "cold"], "means": {"colour": ["blue"]}},
            ]
        },
        "templates": ["a {colour} thing", "a thing"],
        "network": {"embed_dim": 16, "resolution": 32, "vision_layers": [1, 1, 1, 1], "vision_width": 4}
        | {"context_length": 8, "text_width": 64, "text_layers": 1},
        "training": {"batch": 8, "captions": 8, "pool": 32, "precision": "fp32", "ema": 0.5, "warmup": 2},
        "evaluation": [
            {"name": "red / blue", "text": "a red thing", "against": "a blue thing", "positive": {"colour": ["red"]}}
        ],
        "card": {"title": "Colours", "license": "Free."},
    }
)


def _data(count: int = 16) -> tuple[Tensor, Labels]:
    """Noisy images, in turn reddish and bluish."""
    noise = torch.randint(0, 90, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    noise[::2, 0] += 160
    noise[1::2, 2] += 160
    rows = [{"file": f"{row}.png", "colour": ("red", "blue")[row % 2]} for row in range(count)]
    return noise, read_labels(rows, CONFIG)


def _trainer(seed: int = 0) -> Trainer:
    config = CONFIG.change(seed=seed)
    return Trainer(GuideObjective(*_data(), config, torch.device("cpu")), config.training)


def _losses(trainer: Trainer, steps: int) -> list[float]:
    return [step.loss for step in train(trainer, Budget(steps=steps)) if step.loss is not None]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a guide that has learned red from blue."""
    trainer = _trainer()
    losses = _losses(trainer, 25)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    folder = tmp_path_factory.mktemp("colours") / "colours"
    return export_guide(trainer.objective, trainer.averaged_state(), folder, {"data": "synthetic", "steps": "25"})


@pytest.fixture(scope="module")
def guide(exported: Path) -> Guide:
    """The same, loaded."""
    return load_guide(str(exported))


def test_a_guide_is_frozen_and_describes_itself(guide: Guide, exported: Path) -> None:
    assert (guide.name, guide.resolution, guide.context_length) == ("colours", 32, 8)
    assert len(guide.fingerprint) == 16 and int(guide.fingerprint, 16) >= 0
    assert guide.logit_scale == pytest.approx(math.exp(load_file(exported)["logit_scale"].item()), rel=1e-5)
    assert not guide.training and not any(value.requires_grad for value in guide.parameters())


def test_images_of_any_size_become_unit_vectors_with_gradients(guide: Guide) -> None:
    for size in (32, 48, 20):
        images = torch.rand(2, 3, size, size).mul(2).sub(1).requires_grad_()
        found = guide.encode_images(images)
        assert found.shape == (2, 16) and torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-5)
        (gradient,) = torch.autograd.grad(found[:, 0].sum(), images)
        assert gradient.abs().sum() > 0


def test_batches_agree_with_one_by_one(guide: Guide) -> None:
    images = to_model_range(_data()[0][:4])
    alone = torch.cat([guide.encode_images(image[None]) for image in images])
    assert torch.allclose(guide.encode_images(images), alone, atol=1e-5)


def test_texts_are_unit_vectors_without_gradient_and_cached(guide: Guide) -> None:
    first = guide.encode_texts(["a red thing", "a thing", "a red thing"])
    assert first.shape == (3, 16) and not first.requires_grad
    assert torch.allclose(first.norm(dim=1), torch.ones(3), atol=1e-5) and torch.equal(first[0], first[2])
    assert torch.equal(guide.encode_texts(["a red thing"])[0], first[0])


def test_wrong_texts_are_refused(guide: Guide) -> None:
    with pytest.raises(UsageError, match="has 7 tokens and this guide reads at most 6: use a shorter text"):
        guide.encode_texts(["a very red thing on a thing"])
    with pytest.raises(UsageError, match="is empty"):
        guide.encode_texts([" "])
    for texts in ([], "a thing"):
        with pytest.raises(UsageError, match="needs a sequence of one or more texts"):
            guide.encode_texts(texts)


def test_unknown_words_are_named_once_in_order(guide: Guide) -> None:
    assert guide.unknown_words("A Red thing") == []
    assert guide.unknown_words("a zebra-striped thing, a zebra") == ["zebra", "striped"]
    guide_without = Guide(guide.network, "other", guide.fingerprint)
    assert guide_without.unknown_words("a zebra") == []
    assert words_of("A woman's 20-year-old") == ["a", "woman's", "20", "year", "old"]


def test_training_tells_the_colours_apart(guide: Guide) -> None:
    images, labels = _data(8)
    areas = guide_auc(guide, to_model_range(images), *questions(CONFIG, labels))
    assert areas == {"red / blue": 1.0}


def test_auc_counts_ties_half_and_skips_what_is_not_labelled() -> None:
    scores = torch.tensor([3.0, 1.0, 1.0, 0.0, 9.0])
    labels = torch.tensor([1.0, 1.0, 0.0, 0.0, torch.nan])
    assert area_under_curve(scores, labels) == pytest.approx((2 + 1.5) / 4)
    with pytest.raises(UsageError, match="both kinds of image, got 0 positive"):
        area_under_curve(scores, torch.zeros(5))


def test_auc_is_of_a_photo_with_its_mirror_image_and_of_a_text_alone_if_it_has_no_other(guide: Guide) -> None:
    images, labels = torch.rand(12, 3, 32, 32) * 2 - 1, {"x": torch.tensor([1.0, 0.0] * 6)}
    both = guide.encode_images(images) + guide.encode_images(images.flip(3))
    (text,) = guide.encode_texts(["a red thing"])
    areas = guide_auc(guide, images, labels, {"x": ("a red thing", "")})
    assert areas["x"] == pytest.approx(area_under_curve(both @ text, labels["x"]))
    assert guide_auc(guide, images.flip(3), labels, {"x": ("a red thing", "")}) == pytest.approx(areas)


def test_auc_needs_labels_for_each_prompt(guide: Guide) -> None:
    with pytest.raises(UsageError, match="no labels for 'x'"):
        guide_auc(guide, torch.zeros(2, 3, 32, 32), {}, {"x": ("a", "b")})


def test_training_repeats_itself_by_seed() -> None:
    runs = [_losses(_trainer(seed), 3) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_what_a_run_draws_from_has_a_key() -> None:
    images, labels = _data()
    changed = Labels(labels.files, labels.probabilities.flip(0))
    keys = {data_key(images, labels), data_key(images.flip(0), labels), data_key(images, changed)}
    keys.add(data_key(images[::2], labels.rows(range(0, 16, 2))))
    assert len(keys) == 4
    assert data_key(*_data()) == data_key(images, labels)


def _run(tmp_path: Path, steps: int = 2, config: GuideConfig = CONFIG, **values: object) -> Path:
    """Train on four pictures of two colours; the weights' path."""
    photos = tmp_path / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    for i, colour in enumerate(["red", "blue"] * 2):
        Image.new("RGB", (40, 32), colour).save(photos / f"{i}.png")
    rows = [f"{i}.png,{('red', 'blue')[i % 2]}" for i in range(4)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,colour", *rows]))
    options = RunOptions(tmp_path / "out", Budget(steps=steps), device="cpu", checkpoint_minutes=0)
    job = GuideJob(photos, tmp_path / "labels.csv", config, options, **values)
    return run_guide_job(job, Silent(), lambda steps: steps)[0]


def test_files_of_others_are_not_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "out" / "README.md"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UsageError, match=r"README.md that no run left there"):
        _run(tmp_path)
    assert mine.read_text() == "mine"


def test_a_job_goes_on_to_its_budget_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(GuideObjective):
        def loss(self, step: int, progress: float, share: slice) -> Tensor:
            if step == 2:
                raise KeyboardInterrupt
            return super().loss(step, progress, share)

    whole = load_file(_run(tmp_path / "whole", steps=4))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("directions.own_models.guide.GuideObjective", Stopped)
        _run(tmp_path / "cut", steps=4)
    assert (tmp_path / "cut" / "out" / "training" / "checkpoint.pt").is_file()
    cut = load_file(_run(tmp_path / "cut", steps=4))
    assert all(torch.equal(value, cut[key]) for key, value in whole.items())


def test_a_run_of_another_config_start_or_other_data_does_not_go_on(tmp_path: Path, exported: Path) -> None:
    _run(tmp_path)
    with pytest.raises(UsageError, match="another recipe"):
        _run(tmp_path, config=CONFIG.change(seed=1))
    with pytest.raises(UsageError, match="other weights to begin with"):
        _run(tmp_path, start=str(exported))
    with pytest.raises(UsageError, match="other data"):
        _run(tmp_path, part="even")


def test_export_is_half_precision_with_zeros_for_unused_tokens(exported: Path) -> None:
    state = load_file(exported)
    embedding = state["token_embedding.weight"]
    assert embedding.shape == (49408, 64) and embedding.dtype == torch.float16
    assert int((embedding.abs().sum(1) > 0).sum()) == 9  # the six words, both ends of a text and its padding
    with safe_open(exported, "pt") as file:
        metadata = file.metadata()
    assert set(json.loads(metadata["flowgrad.vocabulary"])) == {"a", "an", "red", "warm", "blue", "cold", "thing"}
    assert metadata["flowgrad.data"] == "synthetic" and metadata["flowgrad.steps"] == "25"


def test_the_card_states_figures_and_licence(tmp_path: Path) -> None:
    rows = (("", "AUC"), ("red / blue", "0.988"))
    Card("Colours", "A guide.", "Free.", {"pictures": "4"}, {"steps": "25"}, rows, "On the test split.").write(tmp_path)
    text = (tmp_path / "README.md").read_text()
    facts = ("# Colours", "| steps | 25 |", "Free.", "| red / blue | 0.988 |", "On the test split.", "| pictures | 4 |")
    assert [fact for fact in facts if fact not in text] == []


def test_augmentation_is_seeded_and_stays_in_range() -> None:
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first, again, other = (augment(images.clone(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == images.shape and first.min() >= 0 and first.max() <= 1


def test_missing_and_damaged_weights(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(FlowgradError, match=r"no guide is called 'nobody' .*: use one of them"):
        load_guide("nobody")
    with pytest.raises(FlowgradError, match=r"there is no guide at .*none.safetensors: check the path"):
        load_guide(str(tmp_path / "none.safetensors"))
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(exported.read_bytes()[:-1000])
    with pytest.raises(FlowgradError, match="is damaged or not safetensors"):
        load_guide(str(torn))


def test_other_architectures_are_refused(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(FlowgradError, match="is not a network of CLIP's architecture"):
        load_guide(str(path))
    state = load_file(exported)
    state["visual.layer1.0.conv2.weight"] = torch.zeros(3)
    with pytest.raises(FlowgradError, match="is not a network of CLIP's architecture"):
        to_network(state, path)
    save_file(load_file(exported), path, metadata={"flowgrad.vocabulary": "["})
    with pytest.raises(FlowgradError, match=r"damaged flowgrad.vocabulary"):
        load_guide(str(path))


def test_images_from_a_folder_and_a_zip_agree(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
    (folder,) = read_images(tmp_path, ["a.png"], 20)
    (zipped,) = read_images(tmp_path / "a.zip", ["a.png"], 20)
    assert torch.equal(folder, zipped) and folder.shape == (3, 20, 20) and folder.dtype == torch.uint8
    assert abs(folder.float().mean().item() - pixels[:, 10:50].mean()) < 3


def test_images_are_read_as_train_flow_reads_pictures(tmp_path: Path) -> None:
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(tmp_path / "deep.png")
    turned, exif = np.zeros((40, 40, 3), np.uint8), Image.Exif()
    turned[:20] = 255
    exif[0x0112] = 3  # upside down
    Image.fromarray(turned).save(tmp_path / "turned.png", exif=exif)
    Image.new("RGB", (9, 8), "red").save(tmp_path / "small.png")
    archive = shutil.make_archive(str(tmp_path.parent / "packed"), "gztar", tmp_path)
    names = ["clear.png", "deep.png", "turned.png", "small.png"]
    found = list(read_images(tmp_path, names, 16))
    for image, name in zip(found[:3], names, strict=False):
        expected = to_square((tmp_path / name).read_bytes(), 16)
        assert torch.equal(image, torch.from_numpy(expected.copy()).permute(2, 0, 1))
    assert [int(image[0, 2, 8]) for image in found] == [255, 155, 0, 255]
    assert found[3].shape == (3, 16, 16)  # enlarged
    assert all(map(torch.equal, read_images(archive, names, 16), found))


def test_missing_and_damaged_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    Image.new("RGB", (8, 8)).save(tmp_path / "script.png", "EPS")
    for name in ("bad.png", "script.png"):
        with pytest.raises(FlowgradError, match=rf"{name} is no usable image \(unreadable\)"):
            list(read_images(tmp_path, [name], 8))
    with pytest.raises(FlowgradError, match=r"names 'none.png', which .* does not hold"):
        list(read_images(tmp_path, ["none.png"], 8))
    with pytest.raises(UsageError, match="neither a folder nor a zip or tar"):
        list(read_images(tmp_path / "bad.png", ["x"], 8))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "bad.png", "locked.png")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[6] |= 1  # it needs a password, say its header and the archive's list
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(FlowgradError, match=r"locked.png is no usable image \(unreadable\)"):
        list(read_images(tmp_path / "a.zip", ["locked.png"], 8))
    monkeypatch.setattr("flowgrad.training.data.pictures.LARGEST", 5)
    with pytest.raises(FlowgradError, match=r"bad.png is no usable image \(too large\)"):
        list(read_images(tmp_path, ["bad.png"], 8))


@pytest.fixture(scope="module")
def shipped() -> Guide:
    """The guide that travels with the package."""
    return load_guide()


def test_the_shipped_guide_reads_the_words_people_type(shipped: Guide) -> None:
    assert shipped.name == "faces64-guide" and shipped.resolution == 64
    assert shipped.unknown_words("a photo of an old woman with a smile, looking surprised") == []
    assert shipped.unknown_words("a face with a moustache") == ["moustache"]


def test_the_shipped_guide_knows_which_texts_agree(shipped: Guide) -> None:
    smiling, happy, angry, woman, female, man = shipped.encode_texts(
        ["a smiling face", "a happy face", "an angry face", "a woman", "a female face", "a man"]
    )
    assert smiling @ happy > smiling @ angry and woman @ female > woman @ man


def test_the_shipped_guide_on_held_out_photos(shipped: Guide, shared: Path) -> None:
    config = load_guide_config("faces64")
    table = read_table(shared / "faces" / "labels.csv")
    labels = read_labels(table, config).rows(split_rows(table, config.table, config.table.test)[::3])
    images = torch.stack(list(read_images(shared / "faces" / "utkface_aligned.zip", labels.files, 64)))
    truths, prompts = questions(config, labels)
    common = ["smiling / neutral", "woman / man", "old / young adult", "baby / rest"]
    areas = guide_auc(shipped, to_model_range(images), truths, {name: prompts[name] for name in common})
    assert min(areas.values()) > 0.9, areas


def test_half_precision_loses_nothing(exported: Path) -> None:
    trainer = _trainer()
    _losses(trainer, 2)
    state = trainer.objective.exported(trainer.averaged_state())
    full = Guide(to_network(state, exported), "full", "0" * 16)
    network = to_network({key: value.half().float() for key, value in state.items()}, exported)
    images = to_model_range(_data(4)[0])
    assert torch.allclose(full.encode_images(images), Guide(network, "half", "0" * 16).encode_images(images), atol=5e-3)


def test_labels_keep_their_rows() -> None:
    _, labels = _data(4)
    assert labels.rows([3, 0]).files == ["3.png", "0.png"]
    assert labels.rows([3, 0]).probabilities.tolist() == [[0, 1], [1, 0]]


def test_training_can_start_from_a_guide(exported: Path) -> None:
    trainer = _trainer()
    trainer.objective.start_from(exported)
    state = load_file(exported)
    begun = trainer.objective.exported(trainer.network.state_dict())
    assert torch.allclose(begun["token_embedding.weight"], state["token_embedding.weight"].float())
    losses = [float(t.objective.loss(0, 0.0, slice(None)).detach()) for t in (trainer, _trainer())]
    assert losses[0] < losses[1]
    wider = CONFIG.model_copy(update={"network": CONFIG.network.model_copy(update={"embed_dim": 24})})
    with pytest.raises(UsageError, match="is a guide of other sizes"):
        GuideObjective(*_data(), wider, torch.device("cpu")).start_from(exported)
