"""The commands that paint, on a tiny model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from directions.bank.bank import Bank
from directions.paint.job import Plan, to_job
from directions.paint.job import paint as paint_candidates
from directions.paint.methods import WITH_GRADIENTS, Method
from directions.paint.request import read_region, read_strokes
from directions.photo.reading import to_images, to_tensor
from directions.progress import Silent
from flowgrad.models import Region, load_model
from tests.helpers.command_line import call, failed, passed
from tests.helpers.pipelines import has_transformers, make_pipeline


@pytest.fixture
def strokes(home):
    image = Image.new("RGB", (40, 40), "white")
    image.paste("red", (0, 0, 20, 40))
    image.save(home / "strokes.png")
    mask = Image.new("L", (40, 40))
    mask.paste(255, (10, 20, 30, 40))
    mask.save(home / "mask.png")
    return home / "strokes.png"


def paint(tiny, strokes, *arguments):
    return json.loads(passed("paint", strokes, "--model", tiny.model, "--json", *arguments))


@pytest.mark.parametrize("method", list(Method))
def test_every_method_paints_candidates_a_sheet_and_a_summary(method, tiny, strokes, home):
    steps = ("--steps", 1) if method in WITH_GRADIENTS else ()
    summary = paint(tiny, strokes, "--method", method.value, "--count", 2, "--output", home / "out", *steps)
    names = sorted(path.name for path in (home / "out").iterdir())
    assert names == ["candidate-0-0.png", "candidate-0-1.png", "sheet.png", "summary.json"]
    assert Image.open(home / "out/candidate-0-0.png").size == (16, 16)
    assert summary["method"] == method.value and len(summary["rmse"]) == 2
    assert json.loads((home / "out/summary.json").read_text()) == summary


def test_a_candidate_is_the_same_whatever_the_count(tiny, strokes, home):
    for count in (1, 3):
        paint(tiny, strokes, "--count", count, "--steps", 1, "--seed", 4, "--output", home / str(count))
    assert (home / "1/candidate-4-0.png").read_bytes() == (home / "3/candidate-4-0.png").read_bytes()


def test_a_region_changes_nothing_outside_and_its_words_are_measured(tiny, strokes, home):
    words = ("--text", "an old face", "--region", f"{home / 'mask.png'}=a smiling face")
    paint(tiny, strokes, "--count", 1, "--steps", 1, "--text", "an old face", "--output", home / "plain")
    summary = paint(tiny, strokes, "--count", 1, "--steps", 1, *words, "--output", home / "words")
    assert list(summary["text"]) == ["an old face - a face", "a smiling face - a face"]
    before, after = (np.asarray(Image.open(home / name / "candidate-0-0.png")) for name in ("plain", "words"))
    assert abs(after[:6].astype(int) - before[:6]).max() <= 1  # the mask begins in row 8


def test_a_saved_painting_is_a_direction_for_any_seed(tiny, strokes, home):
    summary = paint(tiny, strokes, "--save", "red-half", "--count", 2, "--steps", 2, "--output", home / "out")
    assert summary["name"] == "red-half" and len(summary["rmse_trained"]) == 10
    entry = Bank.default().get("red-half")
    assert entry.info.images == 10 and entry.preview and entry.info.text == ""
    sample = ("sample", "--model", tiny.model, "--count", 2, "--json")
    painted = json.loads(passed(*sample, "--direction", "red-half", "--output", home / "painted"))["files"]
    plain = json.loads(passed(*sample, "--output", home / "plain"))["files"]
    assert Image.open(painted[0]).tobytes() != Image.open(plain[0]).tobytes()
    assert "red-half" in passed("bank", "show", "red-half")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--strength", 0), ("strength", "0")),
        (("--strength", 1.5), ("strength", "1.5")),
        (("--method", "sdedit", "--steps", 3), ("sdedit", "--steps")),
        (("--save", "x", "--method", "control"), ("--save", "--method")),
        (("--save", "x", "--steps", 0), ("--save", "--steps")),
        (("--save", "no name"), ("no name",)),
        (("--text", "xyzzy"), ("xyzzy",)),
        (("--source", "a face"), ("--source", "--text")),
        (("--region", "mask.png"), ("mask and words", "mask.png")),
        (("--region", "mask.png=xyzzy"), ("xyzzy",)),
    ],
)
def test_a_wrong_call_says_what_is_wrong_and_writes_nothing(arguments, words, tiny, strokes, home):
    failed(call("paint", strokes, "--model", tiny.model, "--output", "out", *arguments), 2, *words)
    assert not (home / "out").exists()


def test_files_are_not_overwritten_unasked(tiny, strokes, home):
    (home / "out").mkdir()
    (home / "out/sheet.png").touch()
    failed(call("paint", strokes, "--model", tiny.model, "--output", "out"), 2, "sheet.png", "--overwrite")


def test_an_evaluation_compares_methods_and_goes_on_where_it_was(tiny, home):
    wanted = ("--model", tiny.model, "--count", 3, "--judge", "faces64-judge", "--json", "--overwrite")
    wanted = ("paint-evaluate", tiny.photos, *wanted, "--method", "sdedit", "--method", "gradop+", "--steps", "0,1")
    first = json.loads(passed(*wanted, "--strengths", "0.5"))
    assert [(row["method"], row["steps"]) for row in first["rows"]] == [
        ("sdedit", None),
        ("gradop+ 0 steps", 0),
        ("gradop+ 1 steps", 1),
    ]
    assert first["paintings"] == 3 and all(row["distance"] > 0 and row["rmse"] > 0 for row in first["rows"])
    again = json.loads(passed(*wanted, "--strengths", "0.5,0.7"))
    assert again["rows"][:3] == first["rows"]  # to the seconds that they took
    assert (home / "paint-evaluation/curve.png").is_file()


@pytest.mark.parametrize("steps", ["x", "-1", "1.5"])
def test_an_evaluation_takes_whole_numbers_of_steps(steps, tiny, home):
    failed(call("paint-evaluate", tiny.photos, "--model", tiny.model, f"--steps={steps}"), 2, "--steps")


# --- models that read words -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A tiny random pipeline that reads a prompt of letters."""
    folder = tmp_path_factory.mktemp("pipeline")
    make_pipeline("instaflow").save_pretrained(folder / "weights")
    settings = "size: 32, steps: 4, prediction: velocity, prompt: a cat"
    (folder / "reader.yaml").write_text(f"{{name: reader, family: diffusers, weights: weights, {settings}}}")
    return folder / "reader.yaml"


@has_transformers
def test_a_model_that_reads_words_is_loaded_with_the_text_and_the_regions(pipeline, strokes, home):
    def painted(name, *arguments):
        wanted = ("--count", 1, "--method", "sdedit", "--strength", 0.7, "--precision", "fp32")
        passed("paint", strokes, "--model", pipeline, *wanted, "--output", name, *arguments)
        summary = json.loads((home / name / "summary.json").read_text())
        return summary, np.asarray(Image.open(home / name / "candidate-0-0.png")).astype(int)

    summary, image = painted("words", "--text", "a dog", "--region", f"{home / 'mask.png'}=a hat")
    assert summary["regions"] == [{"mask": str(home / "mask.png"), "text": "a hat - a photo"}]
    mask = read_region(f"{home / 'mask.png'}=a hat", read_strokes(strokes, 32), "a photo").mask
    model = load_model(str(pipeline), "cpu", "fp32", "a dog", [Region(torch.from_numpy(mask), "a hat")])
    assert model.config.prompt == "a dog, a hat"
    canvas = to_tensor([read_strokes(strokes, 32).image])
    images = paint_candidates(to_job(model, None, None), canvas, Plan(Method.sdedit, 0.7), 1, Silent())
    assert abs(image - np.asarray(to_images(images)[0])).max() <= 1
    unmasked = load_model(str(pipeline), "cpu", "fp32", "a dog, a hat")
    x, t = model.noise(1, 0), torch.tensor(0.0)
    assert not torch.equal(model.velocity(x, t), unmasked.velocity(x, t))


@has_transformers
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--save", "x", "--text", "a dog"), ("--save", "prompt", "'a cat'", "--text")),
        (("--save", "x", "--region", "mask.png=a hat"), ("--save", "'a cat'", "--region")),
        (("--region", "mask.png=a hat", "--region", "mask.png=a dog"), ("'a hat'", "'a dog'", "overlap")),
        (
            (
                "--region",
                f"mask.png={'a' * 90}",
            ),
            ("aaa",),
        ),
    ],
)
def test_what_a_model_that_reads_words_cannot_have_is_refused(arguments, words, pipeline, strokes, home):
    failed(call("paint", strokes, "--model", pipeline, "--output", "out", *arguments), 2, *words)
    assert not (home / "out").exists()
