"""Many processes and one bank: a change is whole or not made, whoever reads, writes or dies meanwhile."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from directions.bank.bank import Bank
from flowgrad.errors import FlowgradError, UsageError
from tests.helpers.bank_process import (
    MODEL,
    SPAWN,
    add,
    change_for_ever,
    die_at,
    direction,
    hold_a_claim,
    kill,
    marks,
    race,
    start,
)


@contextmanager
def running(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    process = start(target, *arguments)
    try:
        yield process
    finally:
        kill(process)


@pytest.mark.parametrize("rounds", [20, pytest.param(150, marks=pytest.mark.slow)])
def test_of_two_that_add_a_name_at_once_one_succeeds(tmp_path: Path, rounds: int) -> None:
    won = race(tmp_path / "bank", rounds)
    assert sorted(won["one"] + won["two"]) == list(range(rounds))
    bank = Bank(tmp_path / "bank")
    assert len(bank.list()) == rounds
    for mark, names in won.items():
        for name in names:
            assert marks(bank.get(f"name-{name}")) == {mark}


def test_a_reader_sees_no_error_and_no_mixture_while_others_write(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank")
    add(bank, "kept", "kept")
    seen: set[str] = set()
    with running(change_for_ever, bank.folder):
        deadline = time.monotonic() + 60
        while len(seen) < 20 and time.monotonic() < deadline:
            entries = bank.list()
            assert "kept" in {entry.name for entry in entries}
            for entry in entries:
                assert entry.info is not None, entry.error
                preview = entry.read_preview()
                assert preview in (None, entry.info.title.encode())
                seen |= {entry.info.title} if preview else set()
    assert len(seen) == 20, "the reader saw too few of the writer's directions to tell"


def test_a_preview_of_a_direction_that_was_replaced_is_not_read(tmp_path: Path) -> None:
    bank = Bank(tmp_path)
    old = add(bank, "smiling", "old")
    assert old.read_preview() == b"old"
    new = add(bank, "smiling", "new", overwrite=True)
    assert old.read_preview() is None and new.read_preview() == b"new"
    bank.remove("smiling")
    assert new.read_preview() is None


def test_what_vanishes_while_it_is_listed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = Bank(tmp_path)
    gone = add(bank, "gone", "gone").path
    add(bank, "there", "there")
    files = Bank._files

    def then_removed(self: Bank) -> Any:
        found = files(self)
        gone.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Bank, "_files", then_removed)
    assert [entry.name for entry in bank.list()] == ["there"]
    with pytest.raises(UsageError, match="no direction is called 'gone'"):
        bank.get("gone")


# --- claims --------------------------------------------------------------------------------------------------------


def test_a_claimed_name_is_refused_at_once_and_free_when_its_process_is_killed(tmp_path: Path) -> None:
    bank, ready = Bank(tmp_path / "bank"), SPAWN.Event()
    add(bank, "other", "other")
    with running(hold_a_claim, bank.folder, "smiling", ready):
        assert ready.wait(60)
        for take in (
            lambda: bank.claim("smiling", MODEL).__enter__(),
            lambda: bank.claim("smiling", MODEL, overwrite=True).__enter__(),
            lambda: add(bank, "smiling", "mine"),
            lambda: bank.rename("other", "smiling"),
        ):
            with pytest.raises(UsageError, match=f"{MODEL}/smiling is being trained by another process"):
                take()
        add(bank, "another", "another")  # a claim is on one name alone
    with bank.claim("smiling", MODEL):
        assert marks(bank.add(direction("x"), "smiling", preview=b"x", card="x", claimed=True)) == {"x"}
    with pytest.raises(UsageError, match="exists already"), bank.claim("smiling", MODEL):
        pass
    with bank.claim("smiling", MODEL, overwrite=True):
        pass
    add(bank, "smiling", "y", overwrite=True)


# --- processes that are killed ---------------------------------------------------------------------------------------

CHANGES = {
    "add": lambda bank: add(bank, "fresh", "new"),
    "replace": lambda bank: add(bank, "mine", "new", overwrite=True),
    "replace without a preview": lambda bank: bank.add(direction("new"), "mine", overwrite=True),
    "remove": lambda bank: bank.remove("mine"),
    "restore": lambda bank: bank.restore("lost"),
    "rename": lambda bank: bank.rename("mine", "fresh"),
}


def state(bank: Bank) -> dict[str, tuple[str | None, str | None]]:
    """What a reader finds: by name, what the direction and its preview are marked with."""
    found = {entry.name: (entry.info, entry.preview) for entry in bank.list()}
    return {name: (info and info.title, preview and preview.read_text()) for name, (info, preview) in found.items()}


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize("change", CHANGES)
def test_wherever_a_process_dies_the_change_is_made_or_not(tmp_path: Path, change: str) -> None:
    origin = Bank(tmp_path / "origin")
    for name in ("lost", "mine", "other"):
        add(origin, name, name)
    origin.remove("lost")
    done = Bank(shutil.copytree(origin.folder, tmp_path / "done"))
    CHANGES[change](done)
    before, after = state(origin), state(done)
    assert before != after
    for moment in count(1):
        bank = Bank(shutil.copytree(origin.folder, tmp_path / f"bank-{moment}"))
        died = die_at(lambda bank=bank: CHANGES[change](bank), bank.folder, moment)
        assert state(bank) in (before, after), f"neither, after a death at the {moment}-th touch of a file"
        add(bank, "next", "next")
        bank.remove("next")  # the dead process's lock and leftovers are no hindrance
        assert not list(bank.folder.glob(".pending*"))
        suffixes = {True: (".safetensors", ".png", ".md"), False: (".safetensors",)}
        whole = {name + suffix for name, (_, preview) in state(bank).items() for suffix in suffixes[bool(preview)]}
        assert {path.name for path in (bank.folder / MODEL).iterdir()} == whole
        if "lost" not in state(bank):
            assert marks(bank.restore("lost")) == {"lost"}
        if "mine" not in state(bank) and "fresh" not in state(bank):
            assert marks(bank.restore("mine")) == {"mine"}
        if not died:
            break
    assert moment > 10


def test_a_bank_that_may_not_be_changed_says_so_and_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = Bank(tmp_path)
    add(bank, "mine", "mine")
    monkeypatch.setattr("directions.bank.changes.os.access", lambda *_: False)
    with pytest.raises(FlowgradError, match=r"cannot change the bank .*no permission to write to .*faces128"):
        bank.remove("mine")
    with pytest.raises(FlowgradError, match=r"cannot write to .*faces128 is read-only"):
        add(bank, "new", "new")
    assert marks(bank.get("mine")) == {"mine"} and len(bank.list()) == 1


def test_restoring_what_another_has_just_restored(tmp_path: Path) -> None:
    bank = Bank(tmp_path)
    add(bank, "mine", "mine")
    bank.remove("mine")
    bank.restore("mine")
    with pytest.raises(UsageError, match="no removed direction is called 'mine'"):
        bank.restore("mine")
