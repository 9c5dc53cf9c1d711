"""How long work tells what it is doing: callers decide whether that becomes a bar, a log or nothing."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Reporter(Protocol):
    """What the jobs of `directions` call on their way."""

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
        """Return the items unchanged while showing progress under `label`; `total` of them if it is known."""
        ...

    def warn(self, text: str) -> None:
        """Say something that the user may want to know at once, in one line."""
        ...


class Silent:
    """A Reporter that shows nothing and keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
        """Return the items unchanged."""
        return items

    def warn(self, text: str) -> None:
        """Keep the warning."""
        self.warnings.append(text)


def timed(reporter: Reporter, label: str, work: Callable[[], T]) -> T:
    """Do one piece of work while the reporter shows under `label` that it goes on; its result."""
    (result,) = reporter.track((work() for _ in range(1)), label)
    return result
