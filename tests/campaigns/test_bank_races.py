"""Two processes that change one bank, and are killed at random moments: nothing is lost, and nothing is half there."""

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from directions.bank.bank import Bank
from flowgrad.errors import UsageError
from tests.helpers.bank_process import MODEL, add, add_and_remove, kill, marks, start

pytestmark = pytest.mark.slow

KILLS = 10


def test_writers_that_are_killed_lose_nothing(tmp_path: Path) -> None:
    bank, draw, counts = Bank(tmp_path / "bank"), random.Random(0), Counter[str]()
    for i in range(5):
        add(bank, f"kept-{i}", f"kept-{i}")
    for life in range(KILLS):
        # both work on the same names; what one adds, the other may replace and remove
        writers = [start(add_and_remove, bank.folder, f"{life}-{which}", life) for which in "ab"]
        running = time.monotonic() + 30
        while not any(entry.name.startswith("work") for entry in bank.list()) and time.monotonic() < running:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5))
        kill(writers[0])
        check(bank, counts)  # while the other goes on
        time.sleep(draw.uniform(0, 0.2))
        kill(writers[1])
        check(bank, counts)
        for name in sorted({path.parent.name for path in (bank.folder / ".trash").glob("*/work-*/*")}):
            try:
                assert len(marks(bank.restore(name))) == 1
                counts["restored"] += 1
            except UsageError:  # it is there
                counts["there"] += 1
        files = {path.name for path in (bank.folder / MODEL).iterdir()}
        assert files == {entry.name + suffix for entry in bank.list() for suffix in (".safetensors", ".png", ".md")}
        assert not list(bank.folder.glob(".pending*"))
    assert counts["whole"] > 5 * KILLS and counts["restored"] and counts["there"], counts
    print(f"\n{2 * KILLS} writers killed: {dict(counts)}")  # noqa: T201


def check(bank: Bank, counts: Counter[str]) -> None:
    """No direction of the bank is damaged, half there, or mixed up with another; those nobody touches are there."""
    entries = bank.list()
    assert {f"kept-{i}" for i in range(5)} <= {entry.name for entry in entries}
    for entry in entries:
        assert entry.info is not None, entry.error
        preview = entry.read_preview()
        assert preview in (None, entry.info.title.encode())
        counts["whole"] += 1
