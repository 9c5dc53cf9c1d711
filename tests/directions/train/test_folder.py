"""A training's name and files: taken, claimed by another process, and free again."""

from pathlib import Path

import pytest

from directions.bank.bank import Bank
from directions.train.folder import SUMMARY, Run
from flowgrad.errors import UsageError
from tests.helpers.bank_process import MODEL, SPAWN, add, hold_a_claim, kill, start
from tests.helpers.command_line import call, failed


def test_what_is_taken_is_refused_before_the_name_is_claimed(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank")
    run = Run("smiling", bank, tmp_path / "run")
    run.folder.mkdir()
    (run.folder / SUMMARY).write_text("{}")
    with pytest.raises(UsageError, match=r"summary.json exists already"), run.claimed(MODEL):
        pass
    (run.folder / SUMMARY).unlink()
    with pytest.raises(UsageError, match="cannot name a direction"), Run("Big", bank, run.folder).claimed(MODEL):
        pass
    add(bank, "smiling", "other")
    with pytest.raises(UsageError, match="exists already"), run.claimed(MODEL):
        pass
    with Run("smiling", bank, run.folder, overwrite=True).claimed(MODEL):
        pass


def test_a_killed_trainings_name_is_its_own_again(home: Path) -> None:
    """And meanwhile another training of that name is told at once, before anything is loaded."""
    ready = SPAWN.Event()
    process = start(hold_a_claim, Bank.default().folder, "smiling", ready)
    try:
        assert ready.wait(60)
        train = ("train-direction", "--model", MODEL, "--samples", 2, "--text", "a smiling face", "--device", "none")
        train = (*train, "--name", "smiling")
        failed(call(*train), 2, f"{MODEL}/smiling is being trained by another process", "another name")
    finally:
        kill(process)
    failed(call(*train), 2, "device 'none' cannot be used")  # it goes on to load the model
    with Run("smiling", Bank.default(), home / "run").claimed(MODEL):
        pass
