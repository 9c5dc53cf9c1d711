"""What became of many photos, in a file of JSON lines that is added to as they are done, and read when a run goes on.

A line: `input` (where the photo is), `sha256` (of its file, "" if that could not be read), `output` (null: none),
`direction` (with its strengths), and for each edited face, the largest first, `strength` (the share of it that was
applied), `distance` (dlib's between before and after; null where it was not measured) and `verdict` (what is unusual,
or null); `unedited` (why there was nothing to edit), `error`, and `options`, a hash of all that the result depends on
but for the photo.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from directions.apply.targets import Known
from directions.apply.wanted import Outcome, Wanted
from directions.photo.reading import check_file
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import FINGERPRINT, atomic_path, check_folder, remove_leftovers
from flowgrad.ode import Control

Record = dict[str, Any]
_KEYS = {"input", "sha256", "output", "direction", "strength", "distance", "verdict", "unedited", "error", "options"}
_TEXTS = ("input", "sha256", "options")
_START = b'{"input": '  # how a line begins


def options_of(control: Control, wanted: Wanted, fingerprint: str, precision: str, png: bool) -> str:
    """A hash of what results depend on but for the photos: of the directions at their strengths, and how they are used.

    fingerprint: of the model's weights.
    """
    how = (wanted.strengths, wanted.crop, wanted.face, wanted.align, wanted.budget, str(wanted.inversion))
    said = [*how, wanted.copy_unedited, wanted.title if wanted.strengths else "", fingerprint, precision, png]
    digest = sha256(json.dumps([*said, control.grid.starts, control.grid.steps]).encode())
    digest.update(control.values.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:FINGERPRINT]


def to_record(outcome: Outcome, direction: str, options: str) -> Record:
    """A line of a manifest."""
    return {
        "input": str(outcome.photo),
        "sha256": outcome.sha256,
        "output": outcome.output and str(outcome.output),
        "direction": direction,
        "strength": [face.share for face in outcome.edited],
        "distance": [face.distance for face in outcome.edited],
        "verdict": [face.verdict for face in outcome.edited],
        "unedited": outcome.unedited,
        "error": outcome.error and str(outcome.error),
        "options": options,
    }


def to_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Records as a manifest has them; what is no UTF-8 in a file's name is escaped."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def read_lines(content: Iterable[bytes], name: object) -> Iterator[Record]:
    """The records of a manifest's lines; one that was cut off at the end is passed over.

    Raises FlowgradError for a line that is no record.
    """
    for number, line in enumerate(content, 1):
        if not line.endswith(b"\n") and line[: len(_START)] == _START[: len(line)]:
            return
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not _is_record(record):
            raise FlowgradError(f"{name} is no manifest: line {number} is no record of a photo. Name another file.")
        yield record


def _is_record(value: object) -> bool:
    """Whether a line's JSON has all keys, and what the next run reads of it is text, or null where it may be."""
    if not isinstance(value, dict) or not value.keys() >= _KEYS:
        return False
    required, others = (value[key] for key in _TEXTS), (value[key] for key in ("output", "error"))
    return all(isinstance(text, str) for text in required) and all(isinstance(text, str | None) for text in others)


def to_known(record: Mapping[str, Any]) -> Known:
    """What the next run needs of a record."""
    return Known(record["sha256"], record["output"] or "", record["error"] or "")


class Manifest(AbstractContextManager["Manifest"]):
    """A manifest that one run adds to; `known` is what earlier runs with the same options left in it.

    Entering it reads the file, and writes it anew where lines are to go: those of photos that have a later line, and
    (`retry`) of those that failed. Raises FlowgradError if another run adds to it, if it is none, or cannot be written.
    """

    def __init__(self, path: Path, direction: str, options: str, retry: bool = False) -> None:
        self.path, self._direction, self._options, self._retry = path, direction, options, retry
        self.known: dict[str, Known] = {}
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))

    def __enter__(self) -> "Manifest":
        if self.path.is_dir():
            raise UsageError(f"{self.path} is a folder, of a run with --engine ray; name a file with --manifest.")
        check_folder(self.path.parent)
        check_file(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise FlowgradError(f"another run adds to {self.path}: wait for its end, or name another file.") from None
        try:
            remove_leftovers(self.path)
            self._settle()
            self._file = self.path.open("ab")
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._lock.release()

    def record(self, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
        """Yield outcomes as they come, each of them written down before; those that were settled are so already."""
        for outcome in outcomes:
            if not outcome.skipped:
                self._add(outcome)
            yield outcome

    def _add(self, outcome: Outcome) -> None:
        try:
            self._file.write(to_lines([to_record(outcome, self._direction, self._options)]))
            self._file.flush()
        except OSError as error:
            remedy = "Free some space; the same command then goes on."
            raise FlowgradError(f"cannot write {self.path}: {error.strerror}. {remedy}") from error

    def _settle(self) -> None:
        """Read what is known, and drop the lines that no longer count."""
        if not self.path.exists():
            return
        last: dict[tuple[str, str], int] = {}
        count = 0
        for count, record in enumerate(self._lines(), 1):
            last[record["input"], record["options"]] = count
            if record["options"] == self._options:
                self.known[record["input"]] = to_known(record)
        for name in [name for name, known in self.known.items() if self._retry and known.error]:
            del self.known[name], last[name, self._options]
        if len(last) < count or not self._ends_whole():
            kept = set(last.values())
            with atomic_path(self.path) as temporary, temporary.open("wb") as file:
                file.writelines(to_lines([r]) for number, r in enumerate(self._lines(), 1) if number in kept)

    def _lines(self) -> Iterator[Record]:
        with self.path.open("rb") as file:
            yield from read_lines(file, self.path)

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as file:
            return file.seek(0, 2) == 0 or (file.seek(-1, 2) >= 0 and file.read() == b"\n")
