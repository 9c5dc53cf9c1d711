"""Where photos are: files and folders, patterns, members of tar archives, rows of Parquet tables, lists on standard
input; each of them by a path of this machine or by an address that fsspec reaches.

A source is small and can be sent to other processes, which read it themselves: an archive is read forwards, a table one
group of rows at a time, so that neither is ever in memory as a whole.
"""

import sys
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from directions.photo.reading import BYTES_LIMIT, SUFFIXES, check_file
from flowgrad.addresses import (
    Place,
    StorageError,
    exists,
    files_in,
    is_folder,
    is_pattern,
    matching,
    open_bytes,
    read_bytes,
    to_place,
)
from flowgrad.containers import MISSING_PYARROW, require_pictures, tar_members
from flowgrad.errors import FlowgradError, UsageError, reason
from flowgrad.training.data.pictures import ENCODING

LIST = "-"  # what names standard input
ARCHIVES, TABLES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"), (".parquet",)
_AGAIN = "Copy it again from where it came from."


@dataclass(frozen=True)
class Source:
    """A photo: the file `at` a place, or a `member` of that file.

    start, size: where its bytes are in an archive once that is unpacked; of a table, start is the row, and size is 0.
    damage: what is said in place of reading: the source then stands for a file itself, or for the rest of it.
    """

    at: Place
    member: str = ""
    start: int = 0
    size: int = 0
    damage: str = ""

    def __str__(self) -> str:
        return f"{self.at}/{self.member}" if self.member else str(self.at)

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(self.member or str(self.at))

    @property
    def name(self) -> str:
        """Of the file or member, without its folders."""
        return self._pure.name

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """How the name ends: ".jpg"."""
        return self._pure.suffix

    @property
    def folder(self) -> str:
        """The name of the folder in which the file is."""
        return self.at.absolute().parent.name if isinstance(self.at, Path) else PurePosixPath(self.at).parent.name

    @property
    def container(self) -> str:
        """The name of the archive or table without its suffix; of other files, their own."""
        name = PurePosixPath(str(self.at)).name
        ending = next((end for end in (*ARCHIVES, *TABLES) if name.lower().endswith(end)), "")
        return name[: len(name) - len(ending)]

    @property
    def _bytes(self) -> int:
        """How many bytes it has, of an archive's once they are unpacked; 0 where that is not known."""
        if isinstance(self.at, Path) and not self.member:
            with suppress(OSError):  # of what is not there, reading says so
                return self.at.stat().st_size
        return self.size

    def read(self) -> bytes:
        """The photo's file. Raises FlowgradError, which names it."""
        if self.damage:
            raise FlowgradError(self.damage)
        if isinstance(self.at, Path):
            check_file(self.at)
        if (size := self._bytes) > BYTES_LIMIT:
            most = f"no photo that can be read has more than {BYTES_LIMIT / 1e9:.2g}"
            raise FlowgradError(f"{self} has {size / 1e9:.2g} GB: {most}. Leave it out, or save it smaller.")
        if not self.member:
            return read_bytes(self.at)
        try:
            return _row(self.at, self.start) if _is_table(self.at) else _stored(self.at, self.start, self.size)
        except (*ENCODING, ValueError) as error:
            raise FlowgradError(f"{self} cannot be read: {self.at} is damaged ({reason(error)}). {_AGAIN}") from error


def find_sources(named: Iterable[str]) -> list[Source]:
    """The photos that are named, in order, none twice: files, folders as their files by name, patterns, "-".

    An archive or a table is all of its photos; a damaged one is those that can be found, and one source that says so
    when it is read. Raises UsageError naming all that does not exist, for what holds no photo, and for nothing at all;
    FlowgradError where a store refuses or does not answer.
    """
    found: dict[object, Source] = {}
    missing: list[str] = []
    for name in _listed(named):
        place = to_place(name)
        files = matching(place) if is_pattern(place) else [place]
        if not files or not exists(files[0]):
            missing.append(name)
            continue
        for source in _sources_at(name, files):
            key = source.at.resolve() if isinstance(source.at, Path) else source.at
            found.setdefault((key, source.member), source)
    if missing:
        verb = "does" if len(missing) == 1 else "do"
        raise UsageError(
            f"{', '.join(missing)} {verb} not exist. Name image files, folders, archives or tables of them."
        )
    if not found:
        raise UsageError("no photo was named. Give image files, or folders of them.")
    return list(found.values())


def _listed(named: Iterable[str]) -> Iterator[str]:
    """The names as given, those on standard input, one in a line, in place of a "-"."""
    for name in named:
        if name == LIST:
            yield from (line for line in sys.stdin.read().splitlines() if line.strip())
        else:
            yield name


def _sources_at(name: str, files: list[Place]) -> Iterator[Source]:
    """The photos of files that were named together; of folders among them, what is a photo or holds some."""
    count = 0
    for file in files:
        if is_folder(file):
            inside = [path for path in files_in(file) if _is_visible(path) and _holds_photos(path)]
        else:
            inside = [file]
        for source in chain.from_iterable(map(_photos_of, inside)):
            count += 1
            yield source
    if not count:
        raise UsageError(f"{name} holds no image ({', '.join(SUFFIXES)}). Name another folder, or the files.")


def _is_visible(place: Place) -> bool:
    return not PurePosixPath(str(place)).name.startswith(".")


def _holds_photos(place: Place) -> bool:
    return PurePosixPath(str(place)).suffix.lower() in SUFFIXES or _is_table(place) or _is_archive(place)


def _is_table(place: Place) -> bool:
    return str(place).lower().endswith(TABLES)


def _is_archive(place: Place) -> bool:
    return str(place).lower().endswith(ARCHIVES)


def _photos_of(place: Place) -> Iterable[Source]:
    """The photos of one file: itself, unless it is an archive or a table."""
    if isinstance(place, Path):
        check_file(place)
    if not (_is_table(place) or _is_archive(place)):
        return [Source(place)]
    return _readable(place, _rows(place) if _is_table(place) else _members(place))


def _readable(place: Place, sources: Iterator[Source]) -> Iterator[Source]:
    """The sources up to where the file is damaged, and one that says so."""
    try:
        yield from sources
    except StorageError:
        raise
    except FlowgradError as error:
        yield Source(place, damage=str(error))
    except (*ENCODING, ValueError) as error:
        yield Source(place, damage=f"{place} is damaged ({reason(error)}). {_AGAIN}")


def _members(place: Place) -> Iterator[Source]:
    with open_bytes(place) as file, tarfile.open(fileobj=file, mode="r:*") as archive:
        for member in tar_members(archive):
            path = PurePosixPath(member.name)
            if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts):
                yield Source(place, member.name, member.offset_data, member.size)


@lru_cache(maxsize=1)
def _opened(place: Place) -> Any:
    """An archive, unpacked, to be read at any position; forwards is fastest."""
    unpacked: Any = tarfile.open(fileobj=open_bytes(place), mode="r:*")  # noqa: SIM115 (read photo by photo)
    return unpacked.fileobj


def _stored(place: Place, start: int, size: int) -> bytes:
    file = _opened(place)
    file.seek(start)
    content = bytes(file.read(size))
    if len(content) < size:
        raise EOFError("it ends before this photo does")
    return content


def _rows(place: Place) -> Iterator[Source]:
    """A source for each row, named by its number and, where the table has one, by the suffix of its path."""
    for row, suffix in enumerate(_suffixes(*_table(place)[:2])):
        yield Source(place, f"{row:08d}{suffix if suffix in SUFFIXES else ''}", row)


def _suffixes(table: Any, column: str) -> Iterator[str]:
    """How the path of each row's picture ends; "" where the table says none."""
    if table.schema_arrow.field(column).type.num_fields == 0:  # bytes without a path
        yield from repeat("", table.metadata.num_rows)
        return
    for batch in table.iter_batches(columns=[f"{column}.path"]):
        for cell in batch.column(0).to_pylist():
            yield PurePosixPath((cell or {}).get("path") or "").suffix.lower()


@lru_cache(maxsize=1)
def _table(place: Place) -> tuple[Any, str, np.ndarray]:
    """A Parquet file, its column of pictures, and the first rows of its groups, ending with the count of all."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise FlowgradError(f"{place} {MISSING_PYARROW}") from error
    table = ParquetFile(open_bytes(place))
    sizes = [table.metadata.row_group(i).num_rows for i in range(table.metadata.num_row_groups)]
    return table, require_pictures(str(place), table.schema_arrow), np.cumsum([0, *sizes])


@lru_cache(maxsize=1)
def _group(place: Place, group: int) -> Any:
    """The pictures of one group of rows."""
    table, column, _ = _table(place)
    return table.read_row_group(group, columns=[column]).column(column)


def _row(place: Place, row: int) -> bytes:
    starts = _table(place)[2]
    group = int(np.searchsorted(starts, row, "right")) - 1
    cell = _group(place, group)[row - int(starts[group])].as_py()
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not content:
        raise FlowgradError(f"{place}: row {row} holds no bytes of a picture.")
    return bytes(content)
