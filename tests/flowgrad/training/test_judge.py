"""The judge: its answers, its weights' errors, and its training."""

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from flowgrad.errors import FlowgradError
from flowgrad.guidance.judge import Judge, JudgeSizes, judge_metadata, load_judge
from flowgrad.resources import resource
from flowgrad.training.data.images import read_images, to_model_range
from flowgrad.training.guide.judge import (
    EXPRESSIONS,
    FACE_HEADS,
    SETTINGS,
    JudgeObjective,
    answers,
    export_judge,
    expression_weights,
    heads_loss,
    judge_figures,
)
from flowgrad.training.guide.labels import read_table
from flowgrad.training.loop.trainer import Budget, Trainer, train

SIZES = JudgeSizes(resolution=32, widths=(8, 16), depths=(1, 1))
NAMES = ["neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised"]
NAMES += ["female", "male", "baby", "child", "young", "middle-aged", "old"]


def _row(happy: float, gender: str, age: str) -> dict[str, str]:
    row = dict.fromkeys(NAMES[:7], "0") | {"happy": str(happy), "neutral": str(1 - happy)}
    return row | {"gender": gender, "age": age}


def _trainer(seed: int = 0) -> Trainer:
    images = torch.randint(0, 90, (16, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[::2, 0] += 160
    table = [_row(1.0, "female", "30") if row % 2 == 0 else _row(0.0, "male", "70") for row in range(16)]
    settings = SETTINGS.model_copy(update={"batch": 16, "seed": seed, "warmup": 2})
    return Trainer(JudgeObjective(images, answers(table, FACE_HEADS), SIZES, settings), settings)


def _losses(trainer: Trainer, steps: int) -> list[float]:
    return [step.loss for step in train(trainer, Budget(steps=steps)) if step.loss is not None]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny judge that has learned two kinds of image."""
    trainer = _trainer()
    losses = _losses(trainer, 30)
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    return export_judge(trainer.averaged_state(), SIZES, FACE_HEADS, tmp_path_factory.mktemp("judge"))


def test_answers_have_names_and_sum_to_one_per_question(exported: Path) -> None:
    judge = load_judge(str(exported))
    for size in (32, 50):
        found = judge.probabilities(torch.rand(3, 3, size, size) * 2 - 1)
        assert list(found) == NAMES and all(value.shape == (3,) for value in found.values())
        for names in judge.heads.values():
            assert torch.allclose(torch.stack([found[name] for name in names]).sum(0), torch.ones(3), atol=1e-5)


def test_a_trained_judge_tells_what_it_learned(exported: Path) -> None:
    objective = _trainer().objective
    figures = judge_figures(load_judge(str(exported)), to_model_range(objective.images), objective.truths)
    assert figures["gender, accuracy"] == 1 and figures["happy, AUC"] == 1
    assert "sad, AUC" not in figures


def test_training_repeats_itself_by_seed() -> None:
    runs = [_losses(_trainer(seed), 3) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_unknown_answers_add_nothing_to_the_loss() -> None:
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    known = {"a": torch.tensor([[1.0, 0.0], [1.0, 0.0]]), "b": torch.zeros(2, 2)}
    assert torch.allclose(heads_loss(logits, known), heads_loss(logits[:, :2], {"a": known["a"]}))


def test_rare_expressions_are_drawn_more_often() -> None:
    truth = torch.tensor([[1.0, 0.0]] * 9 + [[0.0, 1.0]])
    weights = expression_weights(truth)
    assert weights[9] > weights[0] and weights[0] == weights[8]


def test_missing_and_damaged_weights(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(FlowgradError, match="no judge is called 'nobody'"):
        load_judge("nobody")
    path = tmp_path / "judge.safetensors"
    path.write_bytes(exported.read_bytes()[:500])
    with pytest.raises(FlowgradError, match="is damaged or not safetensors"):
        load_judge(str(path))
    save_file(load_file(exported), path)
    with pytest.raises(FlowgradError, match="is not a judge's weights"):
        load_judge(str(path))
    for sizes in (JudgeSizes(32, (8, 17), (1, 1)), JudgeSizes(32, (10**9,), (1,)), JudgeSizes(32, (8,), (1, 1))):
        save_file(load_file(exported), path, metadata=judge_metadata(sizes, {"a": NAMES}))
        with pytest.raises(FlowgradError, match="is not a judge's weights"):
            load_judge(str(path))


@pytest.fixture(scope="module")
def shipped() -> Judge:
    """The judge that travels with the package."""
    return load_judge()


def test_the_card_says_how_a_judge_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [["file", "split", "age", "gender", *EXPRESSIONS]]
    with ZipFile("utkface_aligned.zip", "w") as archive:
        for i in range(4):
            Image.new("RGB", (64, 64), (60 * i, 0, 0)).save("face.png")
            archive.write("face.png", f"{i}.png")
            rows.append([f"{i}.png", "train", str(20 * i), ("female", "male")[i % 2], "1", *"000000"])
    Path("labels.csv").write_text("\n".join(map(",".join, rows)))
    card = (resource("weights") / "faces64-judge" / "README.md").read_text()
    script = card.split("```python\n")[1].split("```")[0].replace("minutes=6.5", "steps=1")
    exec(script, {})  # the card's own words
    assert load_judge("my-judge/model.safetensors").heads == load_judge().heads


def test_the_shipped_judge_answers_every_question(shipped: Judge) -> None:
    assert list(shipped.probabilities(torch.zeros(1, 3, 64, 64))) == NAMES


def test_the_shipped_judge_on_held_out_photos(shipped: Judge, shared: Path) -> None:
    table = [row for row in read_table(shared / "faces" / "labels.csv") if row["split"] == "test"][::3]
    files = [row["file"] for row in table]
    images = torch.stack(list(read_images(shared / "faces" / "utkface_aligned.zip", files, 64)))
    figures = judge_figures(shipped, to_model_range(images), answers(table, FACE_HEADS))
    assert figures["happy, AUC"] > 0.93 and figures["gender, accuracy"] > 0.8, figures
