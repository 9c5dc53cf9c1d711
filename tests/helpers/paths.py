"""Places that tests read from."""

from pathlib import Path

from flowgrad.files import atomic_path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"  # reference vectors and data; tests that need them are skipped where they are not there


def killed_write(path: Path) -> Path:
    """Leave beside `path` what a process that was killed while it wrote leaves there, and return its path."""
    with atomic_path(path) as temporary:
        temporary.touch()
    path.replace(temporary)
    return temporary
