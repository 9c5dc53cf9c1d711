"""Where a training puts its direction and its files, and what it may replace; told without torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from directions.bank.bank import Bank
from flowgrad.files import refuse_existing

CHECKPOINT, SUMMARY, FIGURE, CURVES = "checkpoint.pt", "summary.json", "before-after.png", "curves.png"


@dataclass(frozen=True)
class Run:
    """Where a training puts its direction and its files; whether it goes on from an interrupted one, and may replace.

    name: of the direction in the bank.
    """

    name: str
    bank: Bank
    folder: Path
    resume: bool = True
    overwrite: bool = False

    @property
    def checkpoint(self) -> Path:
        """The file that an interrupted training goes on from."""
        return self.folder / CHECKPOINT

    @property
    def was_ending(self) -> bool:
        """Whether it was killed in its last moments: with a summary, while the direction went into the bank."""
        return self.resume and self.checkpoint.exists() and (self.folder / SUMMARY).exists()

    @contextmanager
    def claimed(self, model: str) -> Iterator[None]:
        """Keep the name in the bank for the length of a `with` block, before anything is computed.

        Raises UsageError if the name is bad, or it or the run's files are taken, or another process is training it.
        The figures of an unfinished run, which has a checkpoint, may be drawn again, and what it put into the bank in
        its last moments may be replaced.
        """
        self.bank.path_for(self.name, model)
        overwrite = self.overwrite or self.was_ending
        for file in (SUMMARY,) if self.checkpoint.exists() else (SUMMARY, FIGURE, CURVES):
            refuse_existing(self.folder / file, overwrite)
        with self.bank.claim(self.name, model, overwrite):
            yield
