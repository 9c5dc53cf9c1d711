"""Changes of the user's bank: one at a time, and each whole or not at all, even if its process is killed.

Files of a change are written into a hidden folder, whose renaming to PENDING makes the change: whoever changes or reads
the bank next carries out what a killed process left there. Readers take no lock, so that a preview and a card go before
their direction does, and come after it: no direction is ever beside those of another.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from directions.bank.entry import CARD, PREVIEW, SUFFIX
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import TRASH, next_numbered, refuse_existing

if TYPE_CHECKING:
    from filelock import BaseFileLock

PENDING, CLAIMS, LOCK = ".pending", ".claims", ".lock"
PATIENCE = 60.0  # seconds to wait for others; a change takes milliseconds
_GONE = ".gone"  # suffix of an empty file that stands for a direction to remove


class Change:
    """What shall become of a bank whose lock is held: nothing, until `commit`."""

    def __init__(self, bank: Path, staging: Path) -> None:
        self.bank, self.staging = bank, staging

    def put(self, path: Path, overwrite: bool = False, claimed: bool = False) -> Path:
        """Where to write the direction that shall be at `path`, its preview and its card, by their suffixes.

        What it replaces goes to the trash. Raises UsageError for a name that is taken (unless `overwrite`), or
        claimed by others; `claimed`: by the caller.
        """
        refuse_existing(path, overwrite)
        if path.is_dir():
            raise FlowgradError(f"{path} is a folder, where a direction should be. Move it away.")
        if not claimed and _claim_file(self.bank, path).exists():
            _take_claim(self.bank, path).release()
        self._copy_to_trash(path)
        return self._staged(path)

    def remove(self, path: Path) -> None:
        """Remove the direction at `path`, its preview and its card; they go to the trash."""
        self._copy_to_trash(path)
        self.drop(path)

    def drop(self, path: Path) -> None:
        """Remove them without a copy in the trash."""
        self._staged(path).with_suffix(_GONE).touch()

    def commit(self) -> None:
        """Make the change."""
        self.staging.rename(self.bank / PENDING)
        _carry_out(self.bank)

    def _staged(self, path: Path) -> Path:
        """Where the files for `path` wait; its folder is made, and must be one that can be changed."""
        staged = self.staging / path.relative_to(self.bank)
        for folder in (path.parent, staged.parent):
            folder.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"no permission to write to {path.parent}")
        return staged

    def _copy_to_trash(self, path: Path) -> None:
        files = family(path)
        if not files:
            return
        copies = self.staging.with_name(f"{PENDING}-{token_hex(4)}")
        copies.mkdir()
        for file in files:
            shutil.copyfile(file, copies / file.name)
        place = next_numbered(self.bank / TRASH / path.parent.name / path.stem)
        place.parent.mkdir(parents=True, exist_ok=True)
        copies.rename(place)


@contextmanager
def changing(bank: Path) -> Iterator[Change]:
    """Hold the bank's lock, which processes and threads take in turn, and change it.

    Raises FlowgradError where the file system refuses, or others keep the lock for longer than PATIENCE.
    """
    with refusing(f"change the bank {bank}"), _locked(bank, PATIENCE):
        staging = bank / f"{PENDING}-{token_hex(4)}"
        staging.mkdir()
        try:
            yield Change(bank, staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def recover(bank: Path) -> None:
    """Carry out what a killed process left undone, unless another process is about to."""
    if (bank / PENDING).exists():
        with suppress(OSError, FlowgradError), _locked(bank, 0):
            pass


@contextmanager
def claim(bank: Path, path: Path, overwrite: bool) -> Iterator[None]:
    """Keep a name for a direction that is being made, from now to the end of the block, or of the process.

    Raises UsageError if there is such a direction (unless `overwrite`), or another claim.
    """
    with changing(bank):
        refuse_existing(path, overwrite)
        lock = _take_claim(bank, path)
    try:
        yield
    finally:
        lock.release()


def family(path: Path) -> list[Path]:
    """Return the direction file, its preview and its card, as far as they exist."""
    return [file for file in map(path.with_suffix, (SUFFIX, PREVIEW, CARD)) if file.is_file()]


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn what the file system refuses into an error that says what was tried."""
    try:
        yield
    except OSError as error:
        remedy = "Check the permissions of the bank's folder, or name another bank with --bank."
        raise FlowgradError(f"cannot {what}: {error.strerror or error}. {remedy}") from error


@contextmanager
def _locked(bank: Path, patience: float) -> Iterator[None]:
    """Hold the bank's lock; first carry out what a killed process left undone."""
    from filelock import FileLock, Timeout  # which commands that only look into a bank do without

    bank.mkdir(parents=True, exist_ok=True)
    lock = FileLock(bank / LOCK)
    try:
        lock.acquire(patience, poll_interval=0.01)
    except Timeout as error:
        raise FlowgradError(
            f"another process has been changing the bank {bank} for {patience:g} seconds. Try again later."
        ) from error
    try:
        _carry_out(bank)
        yield
    finally:
        lock.release()


def _carry_out(bank: Path) -> None:
    """Do what PENDING says, from wherever its process was killed; remove what was never decided."""
    pending = bank / PENDING
    for staged in pending.glob(f"*/*{SUFFIX}"):
        _remove(bank / staged.relative_to(pending), (PREVIEW, CARD))
        staged.replace(bank / staged.relative_to(pending))
    for staged in pending.glob(f"*/*{_GONE}"):
        _remove(bank / staged.relative_to(pending), (PREVIEW, CARD, SUFFIX))
        staged.unlink()
    for suffix in (PREVIEW, CARD):
        for staged in pending.glob(f"*/*{suffix}"):
            staged.replace(bank / staged.relative_to(pending))
    for folder in bank.glob(f"{PENDING}*"):
        shutil.rmtree(folder)


def _remove(path: Path, suffixes: tuple[str, ...]) -> None:
    for suffix in suffixes:
        path.with_suffix(suffix).unlink(missing_ok=True)


def _claim_file(bank: Path, path: Path) -> Path:
    return bank / CLAIMS / path.parent.name / f"{path.stem}{LOCK}"


def _take_claim(bank: Path, path: Path) -> "BaseFileLock":
    """Take the claim on a name, with the bank's lock held. Raises UsageError if another process or thread has it."""
    from filelock import FileLock, Timeout

    file = _claim_file(bank, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, thread_local=False)  # a training may end in another thread than it began in
    try:
        lock.acquire(0)
    except Timeout as error:
        raise UsageError(
            f"{path.parent.name}/{path.stem} is being trained by another process. Choose another name, or wait for it."
        ) from error
    return lock
