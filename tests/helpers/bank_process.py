"""Processes that change a bank at the same time, or are killed while they do."""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from directions.bank.bank import Bank
from directions.bank.entry import Entry
from directions.file.direction import Direction
from directions.file.header import DirectionInfo
from flowgrad.errors import UsageError
from flowgrad.resources import DEFAULT_MODEL

MODEL = DEFAULT_MODEL
FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime", "shutil.copyfile"}
SPAWN = multiprocessing.get_context("spawn")  # processes of their own, as two terminals have


def direction(mark: object, model: str = MODEL) -> Direction:
    """A direction that says what it is marked with."""
    info = DirectionInfo(title=str(mark), model=model, fingerprint="abc", steps=10)
    return Direction.create(np.ones((2, 3)), np.array([0, 5]), info)


def add(bank: Bank, name: str, mark: object, **how: Any) -> Entry:
    """Put a direction into the bank, with a preview and a card that say what it is marked with."""
    return bank.add(direction(mark), name, preview=str(mark).encode(), card=str(mark), **how)


def marks(entry: Entry) -> set[str]:
    """All that the files of a direction are marked with: one mark, unless it is mixed up with another."""
    assert entry.info is not None and entry.preview and entry.card, f"{entry.name} is not whole: {entry.error}"
    return {entry.info.title, entry.load().info.title, entry.preview.read_text(), entry.card.read_text()}


def add_rounds(folder: Path, mark: str, rounds: int, barrier: Any, answer: Connection) -> None:
    """Add a direction of a new name in each round, at the same moment as others do; answers in which it succeeded."""
    won = []
    for i in range(rounds):
        barrier.wait()
        try:
            add(Bank(folder), f"name-{i}", mark)
            won.append(i)
        except UsageError:
            continue
    answer.send(won)


def race(folder: Path, rounds: int) -> dict[str, list[int]]:
    """Two processes that add directions of the same names at once: the rounds that each has won."""
    barrier, won, running = SPAWN.Barrier(2), {}, []
    for mark in ("one", "two"):
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=add_rounds, args=(folder, mark, rounds, barrier, theirs))
        process.start()
        running.append((mark, ours, process))
    for mark, ours, process in running:
        won[mark] = ours.recv()
        process.join()
    return won


def change_for_ever(folder: Path) -> None:
    """Replace, remove, restore and rename directions until the process is killed."""
    bank, count = Bank(folder), 0
    while True:
        count += 1
        add(bank, "changed", count, overwrite=True)
        bank.remove("changed")
        bank.restore("changed")
        bank.rename("changed", "renamed")
        bank.rename("renamed", "changed")


def add_and_remove(folder: Path, mark: str, seed: int) -> None:
    """Add, replace, remove and restore directions of five names, which others work on too, until it is killed."""
    bank, draw, count = Bank(folder), random.Random(f"{mark}{seed}"), 0
    while True:
        name, count = f"work-{draw.randrange(5)}", count + 1
        change = draw.choice((partial(add, mark=f"{mark}-{count}", overwrite=True), Bank.remove, Bank.restore))
        with suppress(UsageError):  # it is there already, or gone
            change(bank, name)


def hold_a_claim(folder: Path, name: str, ready: Any) -> None:
    """Claim a name, and keep it until the process is killed."""
    with Bank(folder).claim(name, MODEL):
        ready.set()
        time.sleep(600)


def start(target: Callable[..., None], *arguments: Any) -> Any:
    """A process that runs a function of this module."""
    process = SPAWN.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def kill(process: Any) -> None:
    """End a process at once, as `kill -9` does."""
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def die_at(change: Callable[[], object], folder: Path, count: int) -> bool:
    """Run a change in a process that dies at its `count`-th touch of a file below `folder`; whether it came to that."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    touched = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal touched
        if event in FILE_EVENTS and str(arguments[0]).startswith(str(folder)):
            touched += 1
            if touched == count:
                os._exit(9)

    sys.addaudithook(watch)
    try:
        change()
    finally:
        os._exit(0)
