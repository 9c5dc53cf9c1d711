"""A direction of a bank as it is read: its header and what lies beside it, without a lock, while others may write."""

from dataclasses import dataclass
from pathlib import Path

from directions.file.container import open_named, read_header
from directions.file.direction import Direction, read_direction, to_info
from directions.file.header import DirectionInfo
from directions.file.metadata import check_name
from directions.file.sampler import SamplerFile, SamplerInfo, read_sampler, to_sampler_info
from flowgrad.errors import FlowgradError

SUFFIX, PREVIEW, CARD = ".safetensors", ".png", ".md"
Stamp = tuple[int, int, int]  # tells a file from another that took its place


@dataclass(frozen=True)
class Entry:
    """One direction, or one sampler, of a bank. Both `info` and `sampler` are None, and `error` says why, where the
    file is damaged; else `info` is a direction's header, or `sampler` a sampler's.

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
    sampler: SamplerInfo | None = None

    @property
    def kind(self) -> str:
        """What it is, "sampler" or "direction"; a file that is damaged is taken for a direction."""
        return "sampler" if self.sampler else "direction"

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.stamp[2]

    def load(self) -> Direction:
        """Read the direction with its tensors. Raises FlowgradError where the file is damaged, or gone."""
        return read_direction(self.path)

    def load_sampler(self) -> SamplerFile:
        """Read the sampler with its tensors. Raises FlowgradError where it is damaged, gone, or a direction."""
        return read_sampler(self.path)

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
        info, sampler, error = _read(path)
        preview, card = (beside if beside.is_file() else None for beside in map(path.with_suffix, (PREVIEW, CARD)))
        if read_stamp(path) == stamp:
            return Entry(path.stem, path.parent.name, path, info, error, shipped, preview, card, stamp, sampler)
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


def _read(path: Path) -> tuple[DirectionInfo | None, SamplerInfo | None, str | None]:
    """The header, a direction's or a sampler's, or why there is none that is valid here."""
    try:
        check_name(path.stem)
        with open_named(path) as file:
            header = read_header(file)
            info = None if header.is_sampler else to_info(header)
            sampler = to_sampler_info(header) if header.is_sampler else None
            if found := info or sampler:
                check_home(path, found.model)
    except FlowgradError as error:
        return None, None, str(error)
    return info, sampler, None


def check_home(path: Path, model: str) -> None:
    """Raise FlowgradError for a file that was made for another model than its folder's."""
    if model != path.parent.name:
        where = f"made for the model {model}, but in the folder {path.parent.name}"
        raise FlowgradError(f"{where}. Move it to the folder {model}.")
