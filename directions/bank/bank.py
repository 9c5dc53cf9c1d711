"""The bank: folders of direction files, `<bank>/<model>/<name>.safetensors`, with previews and cards beside them.

The user's bank is searched first, then the one that ships with flowgrad, which is never written to. Listing reads
headers alone and needs the standard library alone.
"""

import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from directions.bank.card import to_card
from directions.bank.changes import changing, claim, family, recover, refusing
from directions.bank.entry import CARD, PREVIEW, SUFFIX, Entry, read_entry
from directions.bank.line import Line, read_line
from directions.bank.sampler_card import asked, to_sampler_card
from directions.file.container import open_named, read_header
from directions.file.direction import Direction, read_direction, write_direction
from directions.file.header import DirectionInfo
from directions.file.metadata import check_name
from directions.file.sampler import SamplerFile, SamplerInfo, read_sampler, write_sampler
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import TRASH
from flowgrad.resources import DEFAULT_MODEL, resource, user_folder

_USE = {
    "sampler": "Draw from it: flowgrad sample --sampler {}",
    "direction": "Apply it: flowgrad apply-direction {}",
}


@dataclass(frozen=True)
class Bank:
    """The user's `folder`, which need not exist yet, and the `shipped` one (None: none), searched in this order."""

    folder: Path
    shipped: Path | None = None

    @classmethod
    def default(cls, path: Path | None = None) -> "Bank":
        """Return the bank at `path`, else at FLOWGRAD_BANK, else in the user's data folder; with the shipped one."""
        return cls(Path(path).expanduser() if path else user_folder("bank"), _shipped_folder())

    def list(self, model: str | None = None, kind: str | None = "direction") -> tuple[Entry, ...]:
        """Return the directions by model and name (or the samplers, or both: None); damaged files are among directions.

        A file of the user's hides a shipped one of the same model and name. Raises FlowgradError for a folder that
        cannot be read.
        """
        entries = [entry for place in self._places(model) if (entry := read_entry(*place))]
        return tuple(entry for entry in entries if kind in (None, entry.kind))

    def lines(self, model: str | None = None, kind: str | None = "direction") -> tuple[Line, ...]:
        """Return what there is to tell of each one that `list` returns, of which less is read; see `read_line`."""
        lines = [line for place in self._places(model) if (line := read_line(*place))]
        return tuple(line for line in lines if kind in (None, line.kind))

    def models(self) -> tuple[str, ...]:
        """Return the names of the models that there are directions or samplers for."""
        return tuple(dict.fromkeys(model for model, _ in self._files()))

    def get(self, name: str, model: str | None = None, kind: str | None = "direction") -> Entry:
        """Return the direction called `name`: "smiling", or "faces64/smiling" if several models have one.

        Of several models that have one, the default model's is meant. kind: "sampler", or None for either. Raises
        UsageError for an unknown name (with the nearest ones), one that several other models have, and one of the
        other kind.
        """
        model, name = _split(name, model)
        places = self._files().items()
        found = {key[0]: place for key, place in places if key[1] == name and model in (None, key[0])}
        found = {DEFAULT_MODEL: found[DEFAULT_MODEL]} if DEFAULT_MODEL in found else found
        if len(found) > 1:
            remedy = f"Write {next(iter(found))}/{name}, for example."
            raise UsageError(f"{name!r} is in the bank for several models: {', '.join(found)}. {remedy}")
        entry = read_entry(*found.popitem()[1]) if found else None
        if entry and kind not in (None, entry.kind) and not entry.error:
            raise UsageError(f"{name!r} is a {entry.kind}, not a {kind}. {_USE[entry.kind].format(name)}")
        return entry or self._refuse_unknown(name, model, kind)

    def search(self, words: str) -> tuple[Entry, ...]:
        """Return the entries in which every word occurs (name, title, texts, tags, model), best match first."""
        scored = [(_score(entry, words.lower().split()), entry) for entry in self.list(kind=None)]
        return tuple(entry for score, entry in sorted(scored, key=lambda pair: -pair[0]) if score > 0)

    def path_for(self, name: str, model: str) -> Path:
        """Return where the user's bank keeps, or would keep, the direction `name` of `model`. Raises UsageError."""
        return self.folder / check_name(model, "model") / f"{check_name(name)}{SUFFIX}"

    def claim(self, name: str, model: str, overwrite: bool = False) -> AbstractContextManager[None]:
        """Keep a name, for the length of a `with` block, for a direction that is made in it and added as `claimed`.

        A claim ends with its process. Raises UsageError for a name that is bad, taken (unless `overwrite`) or claimed.
        """
        return claim(self.folder, self.path_for(name, model), overwrite)

    def add(
        self,
        direction: Direction | SamplerFile,
        name: str,
        *,
        preview: bytes | None = None,
        card: str | None = None,
        overwrite: bool = False,
        claimed: bool = False,
    ) -> Entry:
        """Put a direction or a sampler into the user's bank, with a PNG preview and a Markdown card if given.

        All of it gets there, or nothing. What it replaces goes to the trash. `claimed`: the caller has a claim on the
        name. Raises UsageError for a name that is bad, taken (unless `overwrite`), or claimed by others.
        """
        path = self.path_for(name, direction.info.model)
        with changing(self.folder) as change:
            new = change.put(path, overwrite, claimed)
            _write(direction, new)
            if preview is not None:
                new.with_suffix(PREVIEW).write_bytes(preview)
            if card is not None:
                new.with_suffix(CARD).write_text(card, encoding="utf-8")
            change.commit()
            return _present(path)

    def import_file(self, path: Path, name: str | None = None, overwrite: bool = False) -> Entry:
        """Put a file from elsewhere into the user's bank, after checking all of it; default name: the file's.

        Raises FlowgradError for a file that breaks the format, UsageError for a name that is taken or bad.
        """
        return self.add(read_any(path), name or _to_name(path.stem), overwrite=overwrite)

    def export(
        self, name: str, destination: Path, model: str | None = None, overwrite: bool = False, rank: int | None = None
    ) -> Path:
        """Write a direction or a sampler to a file, or into a folder under its own name. Returns the file's path.

        rank: of how many patterns the file of a direction is made, see `Direction.compact`; None keeps it as it is.
        Raises UsageError if that file exists (unless `overwrite`), and for a rank that a direction cannot have or of a
        sampler; FlowgradError if the direction is damaged.
        """
        entry = self.get(name, model, "direction" if rank else None)
        target = Path(destination)
        if target.is_dir():
            target = target / entry.path.name
        elif target.suffix != SUFFIX:
            raise UsageError(f"{target} is no folder, and no {SUFFIX} file. Name one of the two.")
        return _write(entry.load().compact(rank) if rank else _load(entry), target, overwrite)

    def remove(self, name: str, model: str | None = None) -> Entry:
        """Move a direction of the user's to the trash, whence `restore` brings it back; returns what it was.

        Raises UsageError for an unknown or a shipped direction.
        """
        self._own(name, model, "removed")  # before a lock is asked for, which a folder may not allow
        with changing(self.folder) as change:
            entry = self._own(name, model, "removed")
            change.remove(entry.path)
            change.commit()
        return entry

    def restore(self, name: str, model: str | None = None) -> Entry:
        """Bring back what was last removed or replaced under this name.

        Raises UsageError if nothing was, or if the name is taken again.
        """
        model, name = _split(name, model)
        if not self.folder.is_dir():
            self._refuse_unremoved(name, ())
        with changing(self.folder) as change:
            trashed = [path for path in (self.folder / TRASH).glob("*/*/*") if path.is_dir()]  # <model>/<name>/<number>
            versions = [path for path in trashed if name == path.parent.name and model in (None, path.parts[-3])]
            if not versions:
                self._refuse_unremoved(name, {path.parent.name for path in trashed})
            last = max(versions, key=lambda path: (path.stat().st_mtime_ns, len(path.name), path.name))
            target = self.path_for(name, last.parts[-3])
            new = change.put(target)
            for path in last.iterdir():
                shutil.copyfile(path, new.with_name(path.name))
            change.commit()
            shutil.rmtree(last)
            return _present(target)

    def rename(self, name: str, new_name: str, model: str | None = None) -> Entry:
        """Give a direction of the user's another name; a card, which speaks of it by its name, is written anew.

        Raises UsageError if that is taken or bad, or it is shipped.
        """
        self._own(name, model, "renamed")
        with changing(self.folder) as change:
            entry = self._own(name, model, "renamed")
            target = self.path_for(new_name, entry.model)
            new = change.put(target)
            for path in family(entry.path):
                shutil.copyfile(path, new.with_suffix(path.suffix))
            if entry.card and (info := entry.info or entry.sampler):
                new.with_suffix(CARD).write_text(card_of(new_name, info), encoding="utf-8")
            change.drop(entry.path)
            change.commit()
            return _present(target)

    def _files(self) -> dict[tuple[str, str], tuple[Path, bool]]:
        """Return (path, shipped) by (model, name), in order; the user's files hide shipped ones."""
        recover(self.folder)
        found: dict[tuple[str, str], tuple[Path, bool]] = {}
        for folder, shipped in ((self.folder, False), (self.shipped, True)):
            for path in _direction_files(folder) if folder else ():
                found.setdefault((path.parent.name, path.stem), (path, shipped))
        return dict(sorted(found.items()))

    def _places(self, model: str | None) -> Iterable[tuple[Path, bool]]:
        """(path, shipped) of the files for a model (None: all), in order."""
        return [place for key, place in self._files().items() if model in (None, key[0])]

    def _refuse_unknown(self, name: str, model: str | None, kind: str | None) -> NoReturn:
        from difflib import get_close_matches

        names = sorted({line.name for line in self.lines(model, kind)})
        nearest = ", ".join(get_close_matches(name, names, n=3, cutoff=0.4))
        whose = f" for {model}" if model else ""
        if name.endswith(SUFFIX):
            remedy = f"To use a file, put it into the bank first: flowgrad bank import {name}"
        elif nearest:
            remedy = f"Nearest: {nearest}."
        else:
            remedy = "See what there is with: flowgrad bank list" if names else "There is none yet; train one."
        raise UsageError(f"no {kind or 'direction or sampler'}{whose} is called {name!r}. {remedy}")

    def _own(self, name: str, model: str | None, verb: str) -> Entry:
        entry = self.get(name, model, None)
        if entry.shipped:
            remedy = "Add one of your own under that name to hide it."
            raise UsageError(f"{entry.name!r} ships with flowgrad and cannot be {verb}. {remedy}")
        return entry

    def _refuse_unremoved(self, name: str, removed: Iterable[str]) -> NoReturn:
        known = ", ".join(sorted(removed)) or "nothing"
        raise UsageError(f"no removed direction is called {name!r}. The trash holds: {known}.")


def card_of(name: str, info: DirectionInfo | SamplerInfo) -> str:
    """The Markdown card of a direction or a sampler under a name."""
    return to_sampler_card(name, info) if isinstance(info, SamplerInfo) else to_card(name, info)


def _load(entry: Entry) -> Direction | SamplerFile:
    return entry.load_sampler() if entry.sampler else entry.load()


def _write(content: Direction | SamplerFile, path: Path, overwrite: bool = False) -> Path:
    if isinstance(content, SamplerFile):
        return write_sampler(content, path, overwrite)
    return write_direction(content, path, overwrite)


def _shipped_folder() -> Path | None:
    try:
        return resource("direction_bank")
    except FileNotFoundError:  # a bank of one's own is enough
        return None


def _direction_files(folder: Path) -> list[Path]:
    if not folder.exists():
        return []
    with refusing(f"read the bank {folder}"):
        models = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        files = [path for model in models for path in model.iterdir()]
    return [path for path in files if path.name.endswith(SUFFIX) and not path.name.startswith(".")]


def _present(path: Path) -> Entry:
    """The direction of the user's that was just put at `path`."""
    entry = read_entry(path, shipped=False)
    if entry is None:
        raise FlowgradError(f"{path} was removed by a program that does not know the bank's lock. Try again.")
    return entry


def read_any(path: Path) -> Direction | SamplerFile:
    """Read a direction or a sampler, whole. Raises FlowgradError naming the file, the rule it breaks and the remedy."""
    with open_named(path) as file:
        is_sampler = read_header(file).is_sampler
    return read_sampler(path) if is_sampler else read_direction(path)


def _score(entry: Entry, words: Sequence[str]) -> int:
    """Return how well an entry matches: the sum over words of the best field's weight, 0 if any word is missing."""
    fields = [(8, entry.name), (2, entry.model)]
    if entry.info:
        fields += [(6, " ".join(entry.info.tags)), (5, entry.info.title), (4, entry.info.text)]
        fields += [(1, entry.info.source_text), (1, entry.info.description)]
    if entry.sampler:
        fields += [(6, " ".join(entry.sampler.tags)), (5, entry.sampler.title), (4, asked(entry.sampler))]
        fields += [(2, entry.kind), (1, entry.sampler.description)]
    scores = [max(_match(word, text.lower()) * weight for weight, text in fields) for word in words]
    return sum(scores) if all(scores) else 0


def _match(word: str, text: str) -> int:
    """Return 3 for a whole word of the text, 2 for the start of one, 1 for a part, 0 for none."""
    parts = re.split(r"[\s._,-]+", text)
    if word in parts or word == text:
        return 3
    return 2 if any(part.startswith(word) for part in parts) else int(word in text)


def _split(name: str, model: str | None) -> tuple[str | None, str]:
    """Return (model, name) of "name" or "model/name"; a model given beside it wins."""
    head, slash, tail = name.partition("/")
    return (model or head, tail) if slash and "/" not in tail and not tail.endswith(SUFFIX) else (model, name)


def _to_name(stem: str) -> str:
    """Return a file's stem as a name: "My Smile (2)" gives "my-smile-2"."""
    return re.sub(r"[^a-z0-9._]+", "-", stem.lower()).strip("-._")
