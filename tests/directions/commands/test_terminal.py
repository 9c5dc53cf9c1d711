"""What commands print."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from directions.commands.terminal import answer
from tests.helpers.paths import ROOT


def test_a_name_that_is_no_text_is_json_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(os.fsdecode(b"/photos/\xe9\xc3\xa9.png"))
    answer(True, {"file": path})
    written = capsys.readouterr().out
    assert "é" in written and os.fsencode(json.loads(written.encode())["file"]) == os.fsencode(path)


def test_a_name_that_is_no_text_is_printed(tmp_path: Path) -> None:
    bank = os.fsencode(tmp_path) + b"/bank-\xe9"
    command = [sys.executable, "-m", "cli", "bank", "gallery", "--bank", bank, "--output", bank + b".html"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert run.returncode == 0 and b"bank-\\udce9.html" in run.stdout, run.stderr
