"""Where results go: names that say what was done, that never meet, and that replace no photo."""

import glob
import os
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from itertools import chain, count
from pathlib import Path, PurePosixPath

from directions.bank.bank import SUFFIX
from directions.photo.sources import Source
from directions.photo.writing import SAVED_SUFFIXES
from flowgrad.addresses import Place, below, exists
from flowgrad.errors import UsageError
from flowgrad.files import occupied

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


class _Names:
    """Names of one folder, which never meet, even if only their case differs, as on some file systems."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._used = {name.casefold() for name in taken}
        self._numbers: defaultdict[str, Iterator[int]] = defaultdict(lambda: count(2))

    def take(self, stem: str, folder: str, ending: str) -> str:
        """The stem and the ending; if that is taken, the folder's name or a number beside the stem."""
        names = chain(
            (_joined(name, ending) for name in (stem, f"{folder}-{stem}" if folder else stem)),
            (_joined(stem, f"-{i}{ending}") for i in self._numbers[(stem + ending).casefold()]),
        )
        name = next(name for name in names if name.casefold() not in self._used)
        self._used.add(name.casefold())
        return name


def output_paths(
    sources: Iterable[Source], folder: Place, done: str, png: bool = False, taken: Iterable[Path] = ()
) -> Iterator[Place]:
    """Where each photo's result goes, one after the other: the photo's name, and what was `done`.

    A name that is taken, by an earlier photo or one of the paths `taken`, gets that of the photo's folder before it, or
    a number; names that differ in their case alone are one, as they are on some file systems. One that is too long is
    shortened. A suffix that cannot be written becomes .png, as do all with `png`. Photos of an archive or a table go to
    a folder named after it. The same photos get the same names.
    """
    files, folders = _Names(path.name for path in taken), _Names()
    held: Place | None = None  # the archive or table that photos come from
    for source in sources:
        suffix = source.suffix if source.suffix.lower() in SAVED_SUFFIXES and not png else ".png"
        ending = f"-{done}{suffix}"
        if not source.member:
            yield below(folder, files.take(source.stem, source.folder, ending))
            continue
        if source.at != held:
            held, inside = source.at, _Names()
            own = below(folder, folders.take(source.container, source.folder, ""))
        yield below(own, inside.take(source.stem, PurePosixPath(source.member).parent.name, ending))


def _joined(stem: str, ending: str) -> str:
    return _cut(stem, NAME_LIMIT - len(os.fsencode(ending))) + ending


class Inputs(Container[Place]):
    """The photos themselves, which no output may replace. They are looked up only where an output exists already."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    @cached_property
    def _resolved(self) -> frozenset[str]:
        return frozenset(_resolved(place) for place in {source.at for source in self._sources})

    def __contains__(self, place: object) -> bool:
        return isinstance(place, (Path, str)) and exists(place) and _resolved(place) in self._resolved


def _resolved(place: Place) -> str:
    return os.path.realpath(place) if isinstance(place, Path) else place.rstrip("/")


def check_output(output: Place, inputs: Container[Place], overwrite: bool) -> None:
    """Raise UsageError for a file that may not be replaced: one of the photos never may."""
    if output in inputs:
        raise UsageError(f"{output} would replace one of the photos themselves. Choose another folder with --output.")
    if not overwrite and exists(output):
        raise occupied(output)


def check_apart(folder: Place, sources: Iterable[Source]) -> None:
    """Raise UsageError if results would lie among the photos: workers that know some photos must replace no other."""
    homes = {source.at.parent if isinstance(source.at, Path) else source.at.rsplit("/", 1)[0] for source in sources}
    if _resolved(folder) in {_resolved(home) for home in homes}:
        raise UsageError(f"{folder} holds photos that are to be edited. Choose another folder with --output.")


def unfinished(folder: Path, done: str) -> list[Path]:
    """The beginnings of results in a folder: what killed runs left there, and what others are writing just now."""
    name = re.compile(rf"\..*-{re.escape(done)}-[0-9a-f]{{8}}\.\w+")
    return [path for path in folder.rglob(f".*-{glob.escape(done)}-*") if name.fullmatch(path.name)]


def remove(paths: Iterable[Path]) -> None:
    """Remove files, of which some may be gone."""
    for path in paths:
        path.unlink(missing_ok=True)


def remove_unfinished(folder: Path, done: str) -> None:
    """Remove the beginnings of results that a killed run left in a folder; call it while nobody writes there."""
    remove(unfinished(folder, done))
