"""A run that is interrupted in its last moments."""

from pathlib import Path

import pytest

from directions.apply.identity import SURELY_THE_SAME, descriptors, distances
from directions.apply.inversion import join, sample_images
from directions.bank.bank import Bank
from directions.photo.faces import available
from directions.progress import Silent
from directions.train import run
from directions.train.recipe import load_recipe
from directions.train.task import Task
from flowgrad.models import load_model
from tests.helpers.command_line import call
from tests.helpers.tiny import Tiny

QUICK = ("--iterations", "2", "--intervals", "3", "--augmentations", "1", "--eta", "1", "--calibration-photos", "2")


@pytest.mark.usefixtures("home")
def test_one_that_ends_while_it_writes_to_the_bank_goes_on(tiny: Tiny) -> None:
    def interrupted(*given: object, **named: object) -> None:
        add(*given, **named)
        raise KeyboardInterrupt

    words = ("train-direction", tiny.photos, "--text", "a smiling face", "--name", "smiling", "--model", tiny.model)
    words = (*words, *QUICK, "--bank", "bank", "--output", "run")
    add = run.add_illustrated
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "add_illustrated", interrupted)
        assert call(*words).exit_code == 130 and Path("run/checkpoint.pt").exists()
    before = Bank(Path("bank")).get("smiling").load().u
    assert call(*words[:-1], "another-run").exit_code == 2  # another run does not replace it
    assert call(*words).exit_code == 0
    assert (Bank(Path("bank")).get("smiling").load().u == before).all()
    assert not Path("run/checkpoint.pt").exists() and list(Path("bank/.trash/tiny/smiling").iterdir())
    assert call(*words).exit_code == 2  # that is finished


@pytest.mark.slow
@pytest.mark.skipif(not available(), reason="needs the extra `faces`")
def test_an_edit_of_strength_1_keeps_the_person_and_gains_the_text() -> None:
    model = load_model()
    photo = join(sample_images(model, 1, seed=5))
    task = Task.create(model, photo, "an old face", source="a young adult face", recipe=load_recipe())
    edited, effect = run.edit(task, 1.0, Silent())
    (apart,) = distances(descriptors(edited.after), descriptors(photo.images)).tolist()
    assert apart < SURELY_THE_SAME and effect > 1 and 0 < edited.share <= 1
    half, less = run.edit(task, 0.5, Silent())
    assert half.share == edited.share and 0 < less < effect
