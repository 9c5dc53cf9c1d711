"""The grammar of captions, what is true of an image, and the configuration that says so."""

from pathlib import Path

import pytest
import torch
import yaml

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.training.guide.captions import Caption, Grammar, pair_targets, tidy, truth
from flowgrad.training.guide.config import GuideConfig, NumberConfig, load_guide_config
from flowgrad.training.guide.labels import (
    attribute_probabilities,
    range_probabilities,
    read_labels,
    read_table,
    sampling_weights,
    split_rows,
)

RAW = {
    "table": {"split": "split"},
    "attributes": {
        "age": {"kind": "number", "column": "age", "ranges": {"young": [0, 29], "middle": [30, 54], "old": [55, 120]}},
        "mood": {"kind": "probabilities", "columns": {"calm": "p_calm", "happy": "p_happy"}, "threshold": 0.8},
        "sex": {"kind": "category", "column": "sex", "values": ["female", "male"]},
    },
    "slots": {
        "noun": [{"words": ["face"]}, {"words": ["woman", "lady"], "means": {"sex": ["female"]}}],
        "old": [{"words": ["old", "aged"], "means": {"age": ["old"]}, "unsure": {"age": ["middle"]}}],
        "look": [{"words": ["smiling"], "means": {"mood": ["happy"]}}],
    },
    "templates": ["a {old?} {look?} {noun}"],
}


@pytest.fixture
def config() -> GuideConfig:
    """Three attributes, one of each kind, and a small grammar."""
    return GuideConfig.model_validate(RAW)


def _rows(**columns: str) -> list[dict[str, str]]:
    row = {"file": "a.png", "split": "train", "age": "70", "p_calm": "0.1", "p_happy": "0.9", "sex": "female"}
    return [{**row, **columns}]


def _bounds(config: GuideConfig, text: str, **columns: str) -> tuple[float, float]:
    """Truth of a caption the grammar makes, for one row of the table."""
    grammar = Grammar(config)
    captions = grammar.sample(400, torch.Generator().manual_seed(0))
    caption = next(found for found in captions if found.text == text)
    lower, upper = truth(read_labels(_rows(**columns), config).probabilities, [caption], grammar.spans)
    return lower.item(), upper.item()


def test_a_caption_is_true_contradicted_or_unknown(config: GuideConfig) -> None:
    assert _bounds(config, "a smiling woman") == (1, 1)
    assert _bounds(config, "a smiling woman", sex="male") == (0, 0)
    assert _bounds(config, "a smiling woman", p_happy="0.5") == (0, 1)
    assert _bounds(config, "a smiling woman", sex="?") == (0, 1)


def test_one_contradiction_outweighs_everything_unknown(config: GuideConfig) -> None:
    assert _bounds(config, "a smiling woman", p_happy="0.5", sex="male") == (0, 0)


def test_values_a_phrase_is_unsure_of_are_unknown(config: GuideConfig) -> None:
    assert _bounds(config, "an old face") == (1, 1)
    assert _bounds(config, "an old face", age="40") == (0, 1)
    assert _bounds(config, "an old face", age="20") == (0, 0)


def test_a_caption_without_attributes_is_true_of_everything(config: GuideConfig) -> None:
    assert _bounds(config, "a face", age="", sex="", p_calm="", p_happy="") == (1, 1)


def test_probabilities_without_threshold_are_soft() -> None:
    raw = {**RAW, "attributes": {**RAW["attributes"], "mood": {"kind": "probabilities"}}}  # type: ignore[dict-item]
    raw["attributes"]["mood"]["columns"] = {"calm": "p_calm", "happy": "p_happy"}
    lower, upper = _bounds(GuideConfig.model_validate(raw), "a smiling face", p_happy="0.6", p_calm="0.3")
    assert lower == pytest.approx(0.6) and upper == pytest.approx(0.7)


def test_pair_targets_and_their_weights() -> None:
    lower, upper = torch.tensor([[1.0, 0.0, 0.0, 0.6]]), torch.tensor([[1.0, 0.0, 1.0, 0.7]])
    target, weight = pair_targets(lower, upper)
    assert torch.allclose(weight, torch.tensor([[1.0, 0.0 + 1.0, 0.0, 0.9]]))
    assert torch.allclose(target[0, [0, 1, 3]], torch.tensor([1.0, 0.0, 0.6 / 0.9]))
    smoothed, _ = pair_targets(lower, upper, smoothing=0.1)
    assert smoothed[0, :2].tolist() == pytest.approx([0.9, 0.1])


def test_captions_never_contradict_themselves() -> None:
    raw = {**RAW, "slots": {**RAW["slots"], "noun": [  # type: ignore[dict-item]
        {"words": ["man"], "means": {"sex": ["male"]}}, {"words": ["face"]}]}}  # fmt: skip
    raw["slots"]["sex"] = [{"words": ["female"], "means": {"sex": ["female"]}}]
    raw["templates"] = ["a {sex} {noun}"]
    found = Grammar(GuideConfig.model_validate(raw)).sample(40, torch.Generator().manual_seed(0))
    assert {caption.text for caption in found} == {"a female face"}
    raw["slots"]["noun"] = raw["slots"]["noun"][:1]
    with pytest.raises(FlowgradError, match="contradicted themselves"):
        Grammar(GuideConfig.model_validate(raw)).sample(1, torch.Generator().manual_seed(0))


def test_sampling_is_seeded_and_weighted(config: GuideConfig) -> None:
    def texts(seed: int) -> list[str]:
        return [caption.text for caption in Grammar(config).sample(30, torch.Generator().manual_seed(seed))]

    assert texts(1) == texts(1) != texts(2)
    raw = {**RAW, "slots": {**RAW["slots"], "noun": [  # type: ignore[dict-item]
        {"words": ["face"], "weight": 99}, {"words": ["woman"]}]}}  # fmt: skip
    heavy = Grammar(GuideConfig.model_validate(raw)).sample(100, torch.Generator().manual_seed(0))
    assert sum("face" in caption.text for caption in heavy) > 90


def test_articles_and_gaps_are_tidied() -> None:
    assert tidy("a  old   face of a  elderly man") == "an old face of an elderly man"


def test_vocabulary_holds_every_sampled_word(config: GuideConfig) -> None:
    grammar = Grammar(config)
    assert grammar.vocabulary == ["a", "aged", "an", "face", "lady", "old", "smiling", "woman"]


def test_ranges_include_both_ends_and_cover_beyond_when_soft() -> None:
    sharp = NumberConfig(kind="number", column="age", ranges={"young": (0, 29), "old": (30, 120)})
    found = range_probabilities(torch.tensor([0.0, 29.0, 30.0, 120.0, torch.nan]), sharp)
    assert found.tolist() == [[1, 0], [1, 0], [0, 1], [0, 1], [0, 0]]
    soft = sharp.model_copy(update={"softness": 0.1})
    found = range_probabilities(torch.tensor([5.0, 29.0, 30.0, 60.0, torch.nan]), soft)
    assert torch.allclose(found[:4].sum(1), torch.ones(4), atol=1e-5)
    assert 0.5 < found[1, 0] < 0.7 and found[0, 0] > 0.99 and found[3, 1] > 0.99
    assert found[4].sum() == 0


def test_rare_combinations_are_drawn_more_often_up_to_the_limit(config: GuideConfig) -> None:
    table = [*_rows() * 90, *_rows(p_calm="0.9", p_happy="0.1") * 9, *_rows(sex="male")]
    raw = {**RAW, "balance": {"attributes": ["mood", "sex"], "power": 1.0, "limit": 20.0}}
    config = GuideConfig.model_validate(raw)
    labels = read_labels(table, config)
    spans = dict(zip(config.attributes, Grammar(config).spans, strict=True))
    weights = sampling_weights(labels, config, spans)
    assert weights.mean() == pytest.approx(1)
    assert weights[90] / weights[0] == pytest.approx(10)
    assert weights[99] / weights[0] < 90


def test_split_and_its_halves(config: GuideConfig) -> None:
    table = [*_rows(), *_rows(split="test"), *_rows(), *_rows(), *_rows()]
    assert split_rows(table, config.table, "train") == [0, 2, 3, 4]
    assert split_rows(table, config.table, "train", "even") == [0, 3]
    assert split_rows(table, config.table, "train", "odd") == [2, 4]
    with pytest.raises(UsageError, match="no row of the table has split = 'dev'"):
        split_rows(table, config.table, "dev")


def test_table_errors_name_the_column(config: GuideConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no column 'age'"):
        read_labels([{"file": "a", "p_calm": "1", "p_happy": "0", "sex": ""}], config)
    with pytest.raises(UsageError, match="'age' of the table must hold numbers"):
        attribute_probabilities(_rows(age="old"), config.attributes["age"])
    with pytest.raises(FlowgradError, match="cannot read the table"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("file,age\n")
    with pytest.raises(FlowgradError, match="has no rows"):
        read_table(tmp_path / "empty.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"templats": []}, "unknown key 'templats'; did you mean 'templates'"),
        ({"training": {"learning_rat": 1}}, "unknown key 'training.learning_rat'; did you mean 'learning_rate'"),
        ({"templates": ["a {nuon}"]}, "unknown slot .*'nuon'; did you mean 'noun'"),
        ({"fill": 2}, "fill: .*less than or equal to 1; got 2"),
        ({"slots": {"noun": [{"words": ["x"], "means": {"sax": ["male"]}}]}}, "unknown attribute in slots.noun: 'sax'"),
        ({"slots": {"noun": [{"words": ["x"], "means": {"sex": ["mal"]}}]}}, "unknown value of sex.*mean 'male'"),
        ({"slots": {"noun": [{"words": ["x"], "unsure": {"sex": ["male"]}}]}}, "unsure of sex but means nothing"),
        ({"balance": {"attributes": ["moood"]}}, "unknown attribute in balance: 'moood'; did you mean 'mood'"),
    ],
)
def test_a_wrong_config_is_refused_by_name(change: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "guide.yaml"
    path.write_text(yaml.safe_dump({**RAW, **change}))
    with pytest.raises(UsageError, match=message):
        load_guide_config(path)


def test_an_unreadable_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [")
    for name, told in (("none", "does not exist"), ("bad", "is not a readable YAML file")):
        path = tmp_path / f"{name}.yaml"
        with pytest.raises(UsageError, match=told):
            load_guide_config(path)


def test_the_shipped_config_speaks_of_faces() -> None:
    config = load_guide_config("faces64")
    grammar = Grammar(config)
    found: list[Caption] = grammar.sample(300, torch.Generator().manual_seed(0))
    assert len({caption.text for caption in found}) > 150
    words = (
        "smiling happy laughing grinning serious neutral sad angry surprised scared disgusted unsmiling not man woman"
    )
    words += " male female masculine feminine boy girl baby infant toddler child kid teenager young middle aged old"
    words += " elderly face person photo portrait of a with looking"
    assert set(words.split()) <= set(grammar.vocabulary)
