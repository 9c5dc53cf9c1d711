"""What commands print: answers on stdout, for people or as JSON; progress and warnings on stderr."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from flowgrad.training.loop.trainer import TrainStep

T = TypeVar("T")


def answer(as_json: bool, data: object, *shown: "RenderableType") -> None:
    """End a command: print `data` as JSON for programs, or what is `shown` to people; texts are not wrapped.

    In JSON a dataclass is an object, a number that is not finite is null, and a path its text, in which bytes that are
    no UTF-8 are written as Python does, "\\udce9" for E9.
    """
    if as_json:
        plain = json.loads(json.dumps(data, default=_plain), parse_constant=lambda _: None)
        text = json.dumps(plain, indent=2, ensure_ascii=False)
        typer.echo(text.encode("utf-8", "backslashreplace").decode())
        return
    for item in shown:
        if not isinstance(item, str):
            console().print(item)
        elif item:
            typer.echo(item)


def _plain(value: Any) -> object:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def wrote(*paths: Path | str) -> str:
    """A line for each file that was written."""
    return "\n".join(f"wrote {path}" for path in paths)


def console(stderr: bool = False) -> "Console":
    """A console that prints texts as they are."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


class Terminal:
    """A Reporter with progress bars and warnings on stderr; bars only for people, and never with --json."""

    def __init__(self, quiet: bool) -> None:
        self.console, self.quiet = console(stderr=True), quiet

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield the items under a progress bar, or a clock where their number is not known."""
        if self.quiet or not self.console.is_terminal:
            yield from items
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        counted = (BarColumn(), MofNCompleteColumn()) if total else ()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), *counted, TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield from progress.track(items, total=total, description=label)

    def follow(self, steps: "Iterator[TrainStep]") -> "Iterator[TrainStep]":
        """Yield steps of a flow's training under a bar with the losses, images per second and time left."""
        if self.quiet or not self.console.is_terminal:
            yield from steps
            return
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (TextColumn("training"), BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=self.console, transient=True) as progress:
            task, held_out = progress.add_task("", total=1.0), None
            for step in steps:
                held_out = held_out if step.held_out is None else step.held_out
                progress.update(task, completed=step.progress, description=_pace(step, held_out))
                yield step

    def warn(self, text: str) -> None:
        """Print a warning, in one piece."""
        typer.echo(f"{typer.style('warning:', fg='yellow')} {text}", err=True)


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
