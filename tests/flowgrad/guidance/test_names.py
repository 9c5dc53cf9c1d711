"""Guides by name and the words they know, without loading them; contrasts as they are written."""

import subprocess
import sys
from pathlib import Path

import clip
import pytest

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide_files import load_guide
from flowgrad.guidance.names import (
    OPENAI_CLIP,
    check_answer,
    is_downloaded,
    knows_any_word,
    vocabulary_of,
    weights_file,
)
from tests.helpers.paths import ROOT
from tests.helpers.tiny import WORDS, Tiny, make_judge


def test_the_names_of_clip_are_the_packages() -> None:
    assert set(OPENAI_CLIP) == set(clip.available_models())
    assert is_downloaded("ViT-B/32") and is_downloaded("open-clip:ViT-B-32:x") and not is_downloaded("faces64-guide")


def test_a_vocabulary_is_that_of_the_loaded_guide(tiny: Tiny, tmp_path: Path) -> None:
    assert vocabulary_of(str(tiny.guide)) == frozenset(WORDS)
    assert vocabulary_of("faces64-guide") == load_guide("faces64-guide").vocabulary
    assert vocabulary_of("ViT-B/32") is None and vocabulary_of("mine.pt") is None
    (tmp_path / "bad.safetensors").write_text("nothing")
    with pytest.raises(FlowgradError, match="damaged or not safetensors"):
        vocabulary_of(str(tmp_path / "bad.safetensors"))


def test_an_unknown_guide_gives_the_nearest_and_a_file_must_be_there() -> None:
    with pytest.raises(UsageError, match=r"no guide is called 'face64-guide' \(shipped: faces64-guide\)"):
        weights_file("face64-guide", "guide")
    with pytest.raises(UsageError, match=r"no judge at none\.safetensors"):
        weights_file("none.safetensors", "judge")


@pytest.mark.parametrize(
    ("text", "known"),
    [("an old face", True), ("a zebra FACE", True), ("xyzzy plugh", False), ("a zebra", False), ("The?", False)],
)
def test_articles_are_no_words_that_a_guide_can_tell_images_by(text: str, known: bool) -> None:
    assert knows_any_word(frozenset({"a", "the", "old", "face"}), text) is known
    assert knows_any_word(None, text)


def test_a_text_that_is_its_own_source_is_refused() -> None:
    for written, source in (("a face", "a face"), ("A  Face ", "a face"), ("old - Old", "a face")):
        with pytest.raises(UsageError, match="is its own source"):
            Contrast.parse(written, source)
    assert Contrast.parse("a face", "") == Contrast("a face", "")


def test_nothing_of_this_needs_torch() -> None:
    modules = "flowgrad.guidance.names, flowgrad.guidance.contrast, flowgrad.model_config, directions.file.texts"
    modules += ", directions.train.recipe, directions.train.folder, directions.bank.mixture"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_judge_must_know_the_answer(tiny: Tiny, tmp_path: Path) -> None:
    judge = str(make_judge(tmp_path / "judge.safetensors"))
    check_answer("sad", judge)
    with pytest.raises(UsageError, match="no answer 'merry'; there is happy, sad"):
        check_answer("merry", judge)
    with pytest.raises(FlowgradError, match="is not a judge's weights"):
        check_answer("sad", str(tiny.guide))
