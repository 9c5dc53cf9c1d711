"""A direction of a bank as it is read: its header and what lies beside it, without a lock, while others may write."""

from dataclasses import dataclass
from pathlib import Path

from directions.file.direction import Direction, read_direction, read_info
from directions.file.header import DirectionInfo, check_name
from flowgrad.errors import FlowgradError

SUFFIX, PREVIEW, CARD = ".safetensors", ".png", ".md"
Stamp = tuple[int, int, int]  # tells a file from another that took its place


@dataclass(frozen=True)
class Entry:
    """One direction of a bank. `info` is None, and `error` says why, where the file is damaged.

    `preview` (PNG) and `card` (Markdown) are None where the file has none. `stamp` is that of the file which `info`
    was read from.
    """

    name: str
    model: str
    path: Path
    info: DirectionInfo | None
    error: str | None
    shipped: bool
    preview: Path | None
    card: Path | None
    stamp: Stamp

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.stamp[2]

    def load(self) -> Direction:
        """Read the direction with its tensors. Raises FlowgradError where the file is damaged, or gone."""
        return read_direction(self.path)

    def read_preview(self) -> bytes | None:
        """The PNG file; None where there is none, or where the direction was replaced or removed since it was read."""
        try:
            content = self.preview.read_bytes() if self.preview else None
        except OSError:  # it was removed since
            return None
        return content if read_stamp(self.path) == self.stamp else None


def read_entry(path: Path, shipped: bool) -> Entry | None:
    """Read the direction at `path`; None if there is none, since others may remove files that were just listed.

    A direction that is replaced meanwhile is read again. Its preview and card are put beside it after it, and removed
    before it (see `changes`): those that are there between two equal stamps are its own.
    """
    while (stamp := read_stamp(path)) is not None:
        info, error = _read(path)
        preview, card = (beside if beside.is_file() else None for beside in map(path.with_suffix, (PREVIEW, CARD)))
        if read_stamp(path) == stamp:
            return Entry(path.stem, path.parent.name, path, info, error, shipped, preview, card, stamp)
    return None


def read_stamp(path: Path) -> Stamp | None:
    """The stamp of a file, or of what else there is at `path`; None for nothing."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    except OSError:  # a folder that may not be read: reading says so
        return 0, 0, 0
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path) -> tuple[DirectionInfo | None, str | None]:
    """The header, or why there is none that is valid here."""
    try:
        check_name(path.stem)
        info = read_info(path)
        if info.model != path.parent.name:
            remedy = f"Move it to the folder {info.model}."
            where = f"made for the model {info.model}, but in the folder {path.parent.name}"
            raise FlowgradError(f"{path}: {where}. {remedy}")
    except FlowgradError as error:
        return None, str(error)
    return info, None
