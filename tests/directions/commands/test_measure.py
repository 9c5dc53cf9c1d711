"""`benchmark` and `evaluate --methods` on the command line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from directions.file.direction import read_direction, write_direction
from tests.helpers.command_line import call, failed, passed
from tests.helpers.tiny import Tiny, make_model

pytest.importorskip("dlib")
pytestmark = pytest.mark.usefixtures("home")
QUICK = "iterations: 1\nintervals: 2\naugmentations: 1\neta: 1\n"


@pytest.fixture
def aligned(tiny: Tiny, tmp_path: Path) -> Path:
    """A model of aligned faces, with a judge; and a recipe beside it."""
    (tmp_path / "quick.yaml").write_text(QUICK)
    return make_model(tmp_path / "model", tiny.guide, aligned=True)


def test_a_benchmark_is_told_written_and_drawn(aligned: Path) -> None:
    asked = ("benchmark", "--model", aligned, "--recipe", "quick.yaml", "--samples", 2, "--held-out", 2)
    asked = (*asked, "--steps", 6, "--repeats", 1)
    told = json.loads(call(*asked, "--json").stdout)
    assert json.loads(Path("benchmark/benchmark.json").read_text()) == told
    (text,) = told["texts"]
    assert text["target"] == "a smiling face - a serious face"
    assert [course["recipe"] for course in text["courses"]] == ["quick"]
    assert text["gradients"][0]["way"] == "full chain"
    assert Path("benchmark/benchmark.svg").read_text().startswith("<?xml")
    failed(call(*asked), 2, "benchmark.json exists already", "--overwrite")


def test_methods_are_compared_and_gone_on_with(tiny: Tiny, aligned: Path) -> None:
    texts = ("--text", "a smiling face", "--source", "a serious face", "--name", "grin", "--calibration-photos", 2)
    passed("train-direction", "--samples", 2, "--model", aligned, *texts, "--recipe", "quick.yaml", "--step-size", 0.3)
    asked = ("evaluate", "grin", "--photos", *tiny.files[:1], "--photos", tiny.files[1], "--align", "never")
    asked = (*asked, "--model", aligned, "--strengths", "0.5,4", "--recipe", "quick.yaml", "--samples", 2)
    failed(call(*asked, "--answer", "happy"), 2, "--methods")
    first = json.loads(call(*asked, "--methods", "direction", "--answer", "happy", "--json").stdout)
    assert [method["method"] for method in first["methods"]] == ["direction"]
    assert first["methods"][0]["photos"] == 2 and "judged" in first["methods"][0]["means"]
    lines = Path("evaluation/results.jsonl").read_text().splitlines()
    said = passed(*asked, "--methods", "direction", "--methods", "constant", "--answer", "happy")
    assert "constant" in said and "wrote evaluation/results.jsonl" in said
    assert Path("evaluation/results.jsonl").read_text().splitlines()[: len(lines)] == lines
    failed(call(*asked, "--methods", "direction", "--answer", "merry"), 2, "no answer 'merry'")
    failed(call(*asked, "--methods", "direction", "--answer", "sad"), 2, "another comparison (answer differ)")
    file = Path("own-bank/tiny/grin.safetensors")
    other = read_direction(file)
    write_direction(replace(other, info=replace(other.info, inversion="rk45")), file, overwrite=True)
    failed(call(*asked, "--methods", "direction"), 2, "inverted by anchored euler", "rk45")
    Path("evaluation/results.jsonl").unlink()
    failed(call(*asked, "--methods", "direction"), 2, "comparison.json exists already")
