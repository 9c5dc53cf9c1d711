"""What commands print: answers on stdout, for people or as JSON; progress and warnings on stderr."""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from flowgrad.files import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, ProgressColumn

    from flowgrad.training.loop.trainer import TrainStep

T = TypeVar("T")
UNBOUND = 200  # columns: enough for every table


def answer(as_json: bool, data: object, *shown: "RenderableType") -> None:
    """End a command: print `data` as JSON for programs, or what is `shown` to people; texts are not wrapped.

    In JSON a dataclass is an object, a number that is not finite is null, and a path its text, in which bytes that are
    no UTF-8 are written as Python does, "\\udce9" for E9.
    """
    if as_json:
        put(_to_json(data, indent=2))
        return
    for item in shown:
        if not isinstance(item, str):
            console().print(item)
        elif item:
            put(escaped(item))


def put(text: str, err: bool = False, nl: bool = True) -> None:
    """Print a text, above the bar if there is one: to the stream that the bar put in place, which Click goes round."""
    typer.echo(text, file=sys.stderr if err else sys.stdout, nl=nl)


def escaped(text: str) -> str:
    """A text of some lines, without what a file's name may have in it to steer the terminal."""
    return "\n".join(map(printable, text.split("\n")))


def _to_json(data: object, indent: int | None = None) -> str:
    """JSON that is UTF-8 whatever files are called: a byte of a name that is not becomes an escape of JSON's own."""
    plain = json.loads(json.dumps(data, default=_plain), parse_constant=lambda _: None)
    text = json.dumps(plain, indent=indent, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _plain(value: Any) -> object:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


class Listing(AbstractContextManager["Listing"]):
    """An answer with a long list, `key` in JSON: every entry is printed when it is known, and none is kept.

    The JSON is complete however the command ends: an exception closes it with its message as "error". It has not begun,
    and stays empty, if the exception comes before the first entry.
    """

    def __init__(self, as_json: bool, key: str) -> None:
        self._as_json, self._key = as_json, key
        self._begun = self._ended = False

    def add(self, entry: object, *shown: str) -> None:
        """Print an entry: `entry` in JSON, or the texts `shown` to people."""
        if self._as_json:
            put((",\n    " if self._begun else self._head()) + _to_json(entry), nl=False)
            self._begun = True
        else:
            answer(False, None, *shown)

    def end(self, rest: Mapping[str, object], *shown: str) -> None:
        """Print what there is to say after the list."""
        if self._as_json:
            more = "".join(f",\n  {_to_json(key)}: {_to_json(value)}" for key, value in rest.items())
            put(("" if self._begun else self._head()) + f"\n  ]{more}\n}}")
        else:
            answer(False, None, *shown)
        self._ended = True

    def _head(self) -> str:
        return f"{{\n  {_to_json(self._key)}: [\n    "

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._as_json and error and self._begun and not self._ended:
            self.end({"error": str(error) or type(error).__name__})


def wrote(*paths: Path | str) -> str:
    """A line for each file that was written."""
    return "\n".join(f"wrote {printable(str(path))}" for path in paths)


def console(stderr: bool = False) -> "Console":
    """A console that prints texts as they are; what goes to a file or a program is not made to fit 80 columns."""
    from rich.console import Console

    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=stderr)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = UNBOUND
    return made


class Terminal:
    """A Reporter with progress bars and warnings on stderr; bars only for people, and never with --json."""

    def __init__(self, quiet: bool) -> None:
        self.console, self.quiet = console(stderr=True), quiet

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield the items under a progress bar, or a clock where their number is not known."""
        if self.quiet or not self.console.is_terminal:
            yield from items
            return
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

        counted = (BarColumn(), MofNCompleteColumn()) if total else ()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), *counted, TimeElapsedColumn())
        with self._bar(columns) as progress:
            yield from progress.track(items, total=total, description=label)

    def follow(self, steps: "Iterator[TrainStep]") -> "Iterator[TrainStep]":
        """Yield steps of a flow's training under a bar with the losses, images per second and time left."""
        if self.quiet or not self.console.is_terminal:
            yield from steps
            return
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn

        columns = (TextColumn("training"), BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
        with self._bar(columns) as progress:
            task, held_out = progress.add_task("", total=1.0), None
            for step in steps:
                held_out = held_out if step.held_out is None else step.held_out
                progress.update(task, completed=step.progress, description=_pace(step, held_out))
                yield step

    def _bar(self, columns: "Iterable[ProgressColumn]") -> "Progress":
        """A bar that stays below what is printed meanwhile; answers that go elsewhere than to the terminal do so."""
        from rich.progress import Progress

        on_screen = sys.stdout.isatty()
        return Progress(*columns, console=self.console, transient=True, redirect_stdout=on_screen)

    def warn(self, text: str) -> None:
        """Print a warning, in one piece."""
        put(f"{typer.style('warning:', fg='yellow')} {escaped(text)}", err=True)


def _pace(step: "TrainStep", held_out: float | None) -> str:
    """Where a training is, in one line."""
    parts = (
        f"step {step.step}",
        "" if step.loss is None else f"loss {step.loss:.4f}",
        "" if held_out is None else f"held out {held_out:.4f}",
        "" if step.images_per_second is None else f"{step.images_per_second:.0f} images/s",
        "" if step.seconds_left is None else f"{step.seconds_left / 60:.0f} min left",
    )
    return "  ".join(part for part in parts if part)
