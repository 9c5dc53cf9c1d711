"""The READMEs are executed: every command of theirs, in order, and the Python example."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise

import pytest

from directions.apply.inversion import join, sample_images
from directions.bank.card import is_safe
from directions.bank.mixture import parse_mixture
from directions.commands import apply
from directions.photo.reading import to_images
from flowgrad.models import load_model
from flowgrad.resources import DEFAULT_MODEL
from tests.helpers.paths import ROOT
from tests.helpers.tiny import guide_recipe

PAGES = ("README.md", "flowgrad/training/README.md", "flowgrad/models/README.md", "flowgrad/README.md")
PAGES += ("flowgrad/sampling/README.md",)
PAGES += (
    "directions/README.md",
    "directions/train/README.md",
    "directions/photo/README.md",
    "directions/page/README.md",
    "tests/README.md",
)
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}  # in the order in which commands are run
SET_UP = "pip install"
# nobody waits for hours in a test
SHORTER = {"--minutes": "0.01", "--pairs": "16", "--count": "2", "--size": "64", "--pool": "64", "--gradients": "16"}
QUICK = {
    # fewer and shorter steps, and nothing preserved: a guide of seconds outweighs little
    ("train-direction",): ["--iterations", "2", "--step-size", "0.003", "--eta", "1", "--calibration-photos", "2"],
    ("edit",): ["--iterations", "1"],
    ("sampler", "train"): ["--weight", "0.2"],  # what is asked for mildly is not rare
}


def blocks(language, pages=PAGES):
    return re.findall(rf"```{language}\n(.*?)```", "\n".join(TEXTS[page] for page in pages), flags=re.DOTALL)


def commands(pages=PAGES):
    """Each `flowgrad ...` line, continuation lines joined; the set-up lines and comments left out."""
    text = "\n".join(blocks("bash", pages)).replace("\\\n", " ")
    parts = [part.strip() for line in text.splitlines() for part in line.split("&&")]
    return [part.split("  #")[0].strip() for part in parts if part.startswith("flowgrad ")]


def shortened(words):
    """The words of a command, with less to do; the main job, which the set-up runs, as it is."""
    known = [SHORTER.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    quick = next((more for name, more in QUICK.items() if words[: len(name)] == [*name]), [])
    return known if "my-smile" in words else known + quick


def run(arguments, folder):
    own = {"FLOWGRAD_BANK": str(folder / "bank"), "FLOWGRAD_MODELS": str(folder / "models")}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **own}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(map(str, arguments))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    """A user's folder: a photo, ten photos and some "shoes"; all samples of the model, so that it can be anywhere."""
    place = tmp_path
    pictures = to_images(join(sample_images(load_model(), 10, seed=40)).images)
    (place / "photos").mkdir()
    for i, picture in enumerate(pictures):
        picture.save(place / "photos" / f"{i}.png")
    pictures[0].resize((256, 256)).save(place / "photo.jpg")
    (place / "shoes").mkdir()
    for i in range(20):
        pictures[i % 10].rotate(i).resize((256, 256)).save(place / "shoes" / f"{i}.png")
    (place / "unseen-shoes").mkdir()
    for i in range(2):
        pictures[i].save(place / "unseen-shoes" / f"{i}.png")
    rows = [f"{i}.png,{('boot', 'sandal')[i % 2]}" for i in range(20)]
    (place / "shoes.csv").write_text("\n".join(["file,kind", *rows]))
    (place / "direction_bank").mkdir()
    shutil.copy(ROOT / "direction_bank" / "strokes.png", place / "direction_bank")
    (place / "shoes.yaml").write_text(guide_recipe("kind", ("boot", "sandal"), "a {kind}"))
    return place


def test_there_are_exactly_two_set_up_commands():
    assert len([line for block in blocks("bash") for line in block.splitlines() if SET_UP in line]) == 2


def test_every_command_exists():
    """Quickly, for every run of the tests: names and options are those of the program."""
    import typer

    from cli import app

    root = typer.main.get_command(app)
    for command in commands():
        group, words = root, shlex.split(command)[1:]
        while hasattr(group, "commands") and words and words[0] in group.commands:
            group = group.commands[words.pop(0)]
        known = {option for parameter in group.params for option in parameter.opts}
        used = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= known, command


@pytest.mark.parametrize("page", [*PAGES, "help"])
def test_examples_stay_within_what_is_measured_as_safe(page):
    from directions.bank.bank import Bank

    text = {**TEXTS, "help": str(apply.apply_direction.__doc__)}[page]
    for line in re.findall(r"(apply-direction (?:smiling|old)[^#\n|`]*)", text):
        spec, *options = shlex.split(line)[1:]
        values = dict(re.findall(r"--(strengths?)[ =]([-\d.,]+)", " ".join(options)))
        factors = [float(value) for value in (values.get("strengths") or values.get("strength", "1")).split(",")]
        for name, strength in parse_mixture(spec):
            calibration = Bank.default().get(name, DEFAULT_MODEL).info.calibration
            assert all(is_safe(calibration, factor * strength) for factor in factors), line


@pytest.mark.parametrize("page", PAGES)
def test_shipped_files_that_are_linked_are_there(page):
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", TEXTS[page]):
        assert ((ROOT / page).parent / target).exists(), target


def test_no_name_is_given_twice():
    """Whoever follows the pages one after another is never told that a name exists already."""
    words = [shlex.split(command) for command in commands()]
    names = [following for line in words for word, following in pairwise(line) if word == "--name"]
    assert len(names) > 5
    assert len(set(names)) == len(names)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands([page])])
def test_every_command_works(folder, page):
    for command in commands([page]):
        run([sys.executable, "-m", "cli", *shortened(shlex.split(command)[1:])], folder)


@pytest.mark.slow
def test_the_python_example_works(folder):
    (example,) = (block for block in blocks("python") if "smiling.jpg" in block)
    run([sys.executable, "-c", example], folder)
    assert (folder / "smiling.jpg").stat().st_size > 0
