"""Writing files: what a full disk says, and what it leaves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import atomic_path, check_folder, printable, refuse_existing, remove_leftovers
from tests.helpers.paths import ROOT

WRITERS = {
    "torch": "torch.save({'a': torch.randn(100_000)}, path)",
    "safetensors": "save_file({'a': torch.randn(100_000)}, path)",
    "numpy": "np.save(path, np.zeros(100_000))",
}
SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from safetensors.torch import save_file
from flowgrad.errors import FlowgradError
from flowgrad.files import atomic_path

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # writes fail as on a full disk
try:
    with atomic_path(Path(sys.argv[1])) as path:
        {write}
except FlowgradError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits on the size of files are POSIX's")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_reported_as_one(tmp_path: Path, writer: str) -> None:
    script = SCRIPT.format(write=WRITERS[writer])
    path = tmp_path / {"torch": "a.pt", "safetensors": "a.safetensors", "numpy": "a.npy"}[writer]
    path.write_bytes(b"before")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", script, str(path)], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"cannot write {path}: ") and "Free some space" in run.stdout
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (RuntimeError("sizes differ"), FlowgradError("no")):
        with pytest.raises(type(error), match=str(error)), atomic_path(tmp_path / "a") as _:
            raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 251 + ".png", "ü" * 127, "[a]*?.safetensors"])
def test_any_name_that_the_disk_takes_is_written_and_cleared_of_leftovers(tmp_path: Path, name: str) -> None:
    path, other = tmp_path / name, tmp_path / ".other.png"
    other.write_bytes(b"")
    with atomic_path(path) as temporary:
        assert temporary.suffix == path.suffix
        temporary.write_bytes(b"whole")
        left = temporary
    left.write_bytes(b"left by a process that was killed")
    remove_leftovers(path)
    assert {file.name for file in tmp_path.iterdir()} == {name, ".other.png"} and path.read_bytes() == b"whole"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Zoë 日本 👩‍👩‍👧.jpg", "Zoë 日本 👩‍👩‍👧.jpg"),
        ("\x1b]0;title\x07\n\x7f\x9b", r"\x1b]0;title\x07\x0a\x7f\x9b"),
        ("caf\udce9", r"caf\xe9"),
        ("\u202egpj.exe\u2028", r"\u202egpj.exe\u2028"),
    ],
)
def test_names_are_shown_without_what_would_steer_a_terminal(name: str, shown: str) -> None:
    assert printable(name) == shown


def test_folders_that_cannot_be_written_to_are_noticed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_folder(tmp_path / "new" / "folder")
    refuse_existing(tmp_path / "new" / "folder" / "file", overwrite=False)
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "file"
    file.write_bytes(b"")
    for folder in (file, file / "below"):
        with pytest.raises(UsageError, match=f"{file} is a file"):
            check_folder(folder)
        with pytest.raises(UsageError, match=f"{file} is a file"):
            refuse_existing(folder / "result", overwrite=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(FlowgradError, match="read-only"):
        check_folder(tmp_path / "new")
