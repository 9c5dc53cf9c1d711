"""What a list tells: the same as entries that were read whole, as far as it is told, and why a file cannot be read."""

import json
import shutil
from pathlib import Path

import pytest

from directions.bank.bank import Bank, _shipped_folder
from directions.bank.entry import read_entry
from directions.bank.line import line_of, read_line
from directions.file.direction import write_direction
from tests.directions.file.test_direction import GONE, damages, make_direction, rewrite
from tests.directions.file.test_sampler_file import INFO, SamplerFile, write_sampler


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "faces64").mkdir()
    return write_direction(make_direction(), tmp_path / "faces64/smiling.safetensors")


def test_lines_tell_of_each_entry(path: Path) -> None:
    bank = Bank(path.parents[1], _shipped_folder())
    write_direction(make_direction(text="", calibration=None).compact(1), path.with_name("plain.safetensors"))
    (path.parents[1] / INFO.model).mkdir(exist_ok=True)
    write_sampler(SamplerFile(INFO), path.parents[1] / INFO.model / "some.safetensors")
    shutil.copy(path, path.with_name("Bad name.safetensors"))
    for kind in ("direction", "sampler", None):
        assert bank.lines(kind=kind) == tuple(line_of(entry) for entry in bank.list(kind=kind))
    lines = {line.name: line for line in bank.lines("faces64", kind=None)}
    assert lines["smiling"].safe == (-1.5, 1.5) and lines["smiling"].text == "a smiling face"
    assert lines["plain"].safe is None and lines["plain"].text == "Smiling"
    assert "cannot name" in lines["Bad name"].text


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ("__metadata__", []),
        ("u shape", [4, 3, 4]),
        ("u", GONE),
        ("__metadata__ flowgrad.format", "9"),
        ("__metadata__ flowgrad.fingerprint", GONE),
        ("__metadata__ flowgrad.steps", "ten"),
        ("__metadata__ flowgrad.model", "other"),
        ("__metadata__ flowgrad.model", "../x"),
        ("__metadata__ flowgrad.text", "x" * 1001),
        ("__metadata__ flowgrad.text", "\x1b]0;owned\x07"),
        ("__metadata__ flowgrad.calibration", "[1"),
        ("__metadata__ flowgrad.calibration", "[]"),
    ],
)
def test_what_is_damaged_is_told_with_the_reason(path: Path, keys: str, value: object) -> None:
    rewrite(path, *keys.split(), to=value)
    line, entry = read_line(path, True), read_entry(path, True)
    assert line and entry and entry.error and line == line_of(entry) and line.text.startswith(str(path))


def test_the_safe_range_is_checked(path: Path) -> None:
    wrong = dict.fromkeys(("level", "unit", "strengths", "effect"), 1) | {"safe": [1]}
    rewrite(path, "__metadata__", "flowgrad.calibration", to=json.dumps(wrong))
    line = read_line(path, False)
    assert line and "calibration.safe must be two finite numbers" in line.text and line.safe is None


@pytest.mark.parametrize("length", [0, 7, 300, -1])
def test_a_file_that_was_cut_is_told(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])
    line = read_line(path, False)
    assert line and line.kind == "direction" and "damaged" in line.text


def test_what_is_not_told_is_checked_where_it_is_read_whole(path: Path) -> None:
    rewrite(path, "__metadata__", "flowgrad.losses", to='["a"]')
    line, entry = read_line(path, False), read_entry(path, False)
    assert line and line.text == "a smiling face"
    assert entry and entry.info is None and "losses" in str(entry.error)


def test_a_file_that_is_gone_has_no_line(path: Path) -> None:
    path.unlink()
    assert read_line(path, False) is None


def test_random_damage_never_escapes(path: Path) -> None:
    for _ in damages(path, 200):
        assert read_line(path, False)
