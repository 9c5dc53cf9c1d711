"""Where results go: names that say what was done, that never meet, and that replace no photo."""

import os
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from itertools import chain, count
from pathlib import Path

from directions.bank.bank import SUFFIX
from directions.photo.writing import SAVED_SUFFIXES
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import refuse_existing

NAME_LIMIT = 255  # bytes of a file's name, on the usual file systems
DONE_LIMIT = 80  # bytes of it that say what was done


def done_by(parts: Iterable[tuple[str, float]]) -> str:
    """What a mixture did, as part of a file's name: "smiling", "smiling@0.8+old@-0.3"; a strength of 1 is left out."""
    names = ((slug(Path(name).name.removesuffix(SUFFIX)), strength) for name, strength in parts)
    return shortened("+".join(name + ("" if strength == 1 else f"@{strength:g}") for name, strength in names))


def slug(text: str) -> str:
    """A text as part of a file's name: "an-old-face"."""
    return shortened(re.sub(r"[^\w.]+", "-", text).strip("-.") or "edited")


def shortened(done: str) -> str:
    """A text of DONE_LIMIT bytes at most, which differs where the text does."""
    raw = os.fsencode(done)
    if len(raw) <= DONE_LIMIT:
        return done
    digest = sha256(raw).hexdigest()[:8]
    return f"{_cut(done, DONE_LIMIT - 1 - len(digest))}-{digest}"


def _cut(text: str, limit: int) -> str:
    """The beginning of a text that has `limit` bytes at most."""
    raw = os.fsencode(text)
    return text if len(raw) <= limit else raw[:limit].decode("utf-8", "ignore")


def output_paths(
    photos: Iterable[Path], folder: Path, done: str, png: bool = False, taken: Iterable[Path] = ()
) -> Iterator[Path]:
    """Where each photo's result goes, one after the other: the photo's name, and what was `done`.

    A name that is taken, by an earlier photo or one of the paths `taken`, gets that of the photo's folder before it, or
    a number; names that differ in their case alone are one, as they are on some file systems. One that is too long is
    shortened. A suffix that cannot be written becomes .png, as do all with `png`. The same photos get the same names.
    """
    used = {path.name.casefold() for path in taken}
    numbers: defaultdict[str, Iterator[int]] = defaultdict(lambda: count(2))
    for photo in photos:
        suffix = photo.suffix if photo.suffix.lower() in SAVED_SUFFIXES and not png else ".png"
        ending = f"-{done}{suffix}"
        names = chain(
            (_joined(stem, ending) for stem in (photo.stem, f"{photo.absolute().parent.name}-{photo.stem}")),
            (_joined(photo.stem, f"-{i}{ending}") for i in numbers[(photo.stem + ending).casefold()]),
        )
        name = next(name for name in names if name.casefold() not in used)
        used.add(name.casefold())
        yield folder / name


def _joined(stem: str, ending: str) -> str:
    return _cut(stem, NAME_LIMIT - len(os.fsencode(ending))) + ending


class Inputs(Container[Path]):
    """The photos themselves, which no output may replace. They are looked up only where an output exists already."""

    def __init__(self, photos: Sequence[Path]) -> None:
        self._photos = photos

    @cached_property
    def _resolved(self) -> frozenset[str]:
        return frozenset(os.path.realpath(photo) for photo in self._photos)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, Path) and path.exists() and os.path.realpath(path) in self._resolved


def check_output(output: Path, inputs: Container[Path], overwrite: bool) -> None:
    """Raise UsageError for a file that may not be replaced: one of the photos never may."""
    if output in inputs:
        raise UsageError(f"{output} would replace one of the photos themselves. Choose another folder with --output.")
    refuse_existing(output, overwrite)


def check_folder(folder: Path) -> None:
    """Raise FlowgradError unless files can be written to a folder, or to one that is made there."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise FlowgradError(f"cannot write to {folder}: {there} is a file. Choose another folder with --output.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise FlowgradError(f"cannot write to {folder}: {there} is read-only. Choose another folder with --output.")
