"""What commands print: long answers as they grow, and texts above a bar."""

import json
import os
import subprocess
import sys
from math import nan
from pathlib import Path

import pytest

from directions.commands.terminal import Listing, answer, wrote
from tests.helpers.paths import ROOT


def test_a_listing_is_printed_entry_by_entry_and_is_json_in_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    printed = ""
    with Listing(True, "files") as listing:
        for i in range(3):
            listing.add({"photo": Path(f"{i}.png"), "distance": nan}, "not shown")
            printed += capsys.readouterr().out
            assert f"{i}.png" in printed
        listing.end({"sheets": [Path("a.png")], "none": None}, "not shown")
    answered = json.loads(printed + capsys.readouterr().out)
    assert answered["files"] == [{"photo": f"{i}.png", "distance": None} for i in range(3)]
    assert answered["sheets"] == ["a.png"] and answered["none"] is None


def test_a_listing_of_nothing_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    with Listing(True, "files") as listing:
        listing.end({"sheets": []})
    assert json.loads(capsys.readouterr().out) == {"files": [], "sheets": []}


@pytest.mark.parametrize("error", [ValueError("the disk is full"), KeyboardInterrupt()])
def test_a_listing_that_breaks_off_is_closed_with_the_error(
    capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    with pytest.raises(type(error)), Listing(True, "files") as listing:
        listing.add({"photo": "a.png"})
        raise error
    said = str(error) or "KeyboardInterrupt"
    assert json.loads(capsys.readouterr().out) == {"files": [{"photo": "a.png"}], "error": said}


def test_people_are_shown_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Listing(False, "files") as listing:
        listing.add({}, "", wrote(Path("a\nb.png")))
        listing.end({}, "2 lines")
    assert capsys.readouterr().out == "wrote a\\x0ab.png\n2 lines\n"


def test_names_in_json_are_found_again(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["caf\udce9", "\x1b[31m", "\x9b31m", "日本"]
    answer(True, names)
    printed = capsys.readouterr().out
    assert json.loads(printed.encode()) == names and not set(printed) & set("\x1b\x9b\udce9")


BAR = """
import time
from directions.commands.terminal import Terminal, answer
terminal = Terminal(False)
for name in terminal.track(["x" * 200, "y"], "editing", 2):
    time.sleep(0.3)
    answer(False, None, f"wrote {name}")
    terminal.warn(f"odd {name}")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX's")
def test_lines_are_printed_above_a_bar_in_one_piece() -> None:
    import pty

    process, terminal = pty.fork()
    if process == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, "-c", BAR], {**os.environ, "TERM": "xterm", "COLUMNS": "80"})
    printed = b""
    try:
        while part := os.read(terminal, 4096):
            printed += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.waitpid(process, 0)
    assert printed.count(b"editing") > 2
    for line in (b"wrote " + b"x" * 200, b"wrote y"):
        assert printed[: printed.index(line)].endswith(b"\x1b[2K"), "the bar's line is cleared first"
    assert b"odd " + b"x" * 200 in printed


def test_a_name_that_is_no_text_is_printed(tmp_path: Path) -> None:
    bank = os.fsencode(tmp_path) + b"/bank-\xe9"
    command = [sys.executable, "-m", "cli", "bank", "gallery", "--bank", bank, "--output", bank + b".html"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert run.returncode == 0 and b"bank-\\xe9.html" in run.stdout, run.stderr
