"""A run that is interrupted in its last moments."""

from pathlib import Path

import pytest

from directions.bank.bank import Bank
from directions.train import run
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
