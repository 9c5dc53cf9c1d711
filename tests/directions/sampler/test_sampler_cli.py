"""`flowgrad sampler` and what draws from its files, on a tiny model."""

import json

import pytest
import yaml
from PIL import Image

from directions.apply.identity import descriptors, has_faces
from directions.bank.bank import Bank
from directions.file.sampler import read_sampler, read_sampler_info
from directions.photo.reading import to_tensor
from tests.helpers.command_line import call, failed, passed
from tests.helpers.shares import natural_shares
from tests.helpers.tiny import make_model

pytestmark = pytest.mark.usefixtures("home")


def make(tiny, name, *more, command="train"):
    asked = ("--class", "happy") if command == "train" and not more else ()
    return ("sampler", command, "--model", tiny.model, "--name", name, "--pool", 32, "--intervals", 2, *asked, *more)


@pytest.fixture
def smilers(tiny):
    passed(*make(tiny, "smilers"))
    return Bank.default().get("smilers", "tiny", "sampler")


def test_a_sampler_is_made_listed_shown_drawn_from_exported_and_removed(tiny, home):
    answer = json.loads(passed(*make(tiny, "smilers"), "--json"))
    info = answer["info"]
    assert info["terms"][0]["answers"] == ["happy"] and info["offsets"] == {"happy": 0.5}
    assert 0 < info["acceptance"] <= 1 and 8 <= info["effective"] <= info["pool"] == 32
    assert info["measured"]["happy"].keys() == {"natural", "wanted"}
    assert all((home / file).is_file() for file in answer["files"])
    (listed,) = json.loads(passed("bank", "list", "--json"))
    assert (listed["name"], listed["kind"], listed["error"]) == ("smilers", "sampler", None)
    assert "sampler: happy" in passed("bank", "list")
    assert "of proposals accepted" in passed("bank", "show", "smilers")
    passed("sample", "--sampler", "smilers", "--model", tiny.model, "--count", 2, "--grid")
    assert len(list((home / "samples").glob("sample-*.png"))) == 2
    passed("bank", "export", "smilers", "copy.safetensors")
    passed("bank", "rename", "smilers", "happy-ones")
    assert "sampler happy-ones" in Bank.default().get("happy-ones", kind="sampler").card.read_text()
    passed("bank", "remove", "happy-ones")
    assert json.loads(passed("bank", "list", "--json")) == []
    passed("bank", "import", "copy.safetensors", "--name", "again")
    again = Bank.default().get("again", kind="sampler").load_sampler()
    assert again.hash == read_sampler(home / "copy.safetensors").hash


def test_samples_depend_on_their_seed_and_number_alone(tiny, home, smilers):
    options = ("sample", "--sampler", "smilers", "--model", tiny.model, "--seed", 3)
    passed(*options, "--count", 3, "--output", "three")
    passed(*options, "--count", 1, "--output", "one")
    passed("sample", "--model", tiny.model, "--seed", 3, "--count", 3, "--output", "plain")
    name = "sample-3-00000.png"
    assert (home / "three" / name).read_bytes() == (home / "one" / name).read_bytes()
    drawn, plain = ({file.read_bytes() for file in (home / folder).iterdir()} for folder in ("three", "plain"))
    assert drawn != plain


def test_debiasing_towards_what_is_there_accepts_everything(tiny):
    natural = natural_shares(tiny, "age", 32)
    target = ",".join(map(str, natural))
    options = ("--attribute", "age", "--target", target, "--precision", "fp32", "--json")
    info = json.loads(passed(*make(tiny, "same", *options, command="debias")))["info"]
    (term,) = info["terms"]
    assert term["target"] == pytest.approx(natural, abs=1e-5)
    assert info["measured"]["young"]["wanted"] == pytest.approx(natural[0], abs=1e-5)


def test_a_network_draws_in_one_pass_and_asks_no_guide(tiny, home):
    options = ("--class", "happy", "--method", "network", "--gradients", 8, "--updates", 2)
    passed(*make(tiny, "quick", *options))
    info = Bank.default().get("quick", kind="sampler").sampler
    assert (info.method, info.updates, info.shapes["basis"][0]) == ("network", 2, 2)
    assert 0 <= info.explained <= 1 and "network of 6 layers" in passed("bank", "show", "quick")
    passed("sample", "--sampler", "quick", "--model", tiny.model, "--count", 2)
    passed("bank", "export", "quick", "copy.safetensors")
    passed("bank", "import", "copy.safetensors", "--name", "again")
    refused = call(*make(tiny, "third", "--class", "happy", "--method", "network", "--on", "quick"))
    failed(refused, 2, "own noise", "--method rejection")
    passed(*make(tiny, "second", "--class", "happy", "--on", "quick"))


@pytest.fixture
def aligned(tiny, tmp_path):
    """A tiny model that is said to make aligned faces, so that a person and a pose can be asked for."""
    return make_model(tmp_path / "aligned", tiny.guide, name="aligned", aligned=True)


@pytest.mark.skipif(not has_faces(), reason="needs the extra `faces`")
def test_a_person_in_a_pose_is_asked_for_by_a_photo_and_degrees(tiny, home, aligned):
    small = ("--model", aligned, "--pool", 32, "--intervals", 2)
    passed("sampler", "train", "--identity", tiny.files[0], "--pose=-80,80", "--name", "one", "--weight", 0.2, *small)
    info = Bank.default().get("one", kind="sampler").sampler
    pose, person = info.terms
    assert not info.guide
    assert (pose.kind, pose.target, person.kind) == ("pose", (-80.0, 80.0), "identity")
    photo = to_tensor([Image.open(tiny.files[0]).convert("RGB")])
    assert person.descriptor == pytest.approx(descriptors(photo)[0].tolist(), abs=1e-4)
    assert "yaw -80 to 80" in passed("bank", "show", "one")
    answer = json.loads(passed("sampler", "evaluate", "one", "--count", 3, "--intervals", 2, "--json"))
    assert all(0 <= share <= 1 for share in answer["person"])
    assert all(-90 < degrees < 90 for degrees in answer["turned"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--pose", "100"), ("between -90 and 90", "100")),
        (("--pose=10,-10",), ("10, -10",)),
        (("--pose", "left"), ("--pose", "'left'")),
        (("--identity", "nobody.jpg"), ("nobody.jpg",)),
    ],
)
def test_poses_and_persons_that_are_none_are_refused(aligned, options, words):
    failed(call("sampler", "train", "--model", aligned, "--name", "some", *options), 2, *words)


@pytest.mark.parametrize("options", [("--pose", "5"), ("--identity", "nobody.jpg")])
def test_a_pose_or_a_person_is_refused_of_what_makes_no_faces(tiny, options):
    failed(call("sampler", "train", "--model", tiny.model, "--name", "some", *options), 2, "tiny", "aligned faces")


@pytest.fixture
def calm(tiny):
    """A sampler that accepts nearly all: the tiny guide calls nearly everything neutral."""
    passed(*make(tiny, "calm", "--class", "neutral"))
    return Bank.default().get("calm", "tiny", "sampler")


def test_a_second_stage_draws_on_the_first_and_notices_when_it_changes(tiny, calm):
    passed(*make(tiny, "second", "--class", "neutral", "--on", "calm"))
    info = read_sampler_info(Bank.default().get("second", kind="sampler").path)
    assert (info.parent, info.parent_hash) == ("calm", calm.load_sampler().hash)
    passed("sample", "--sampler", "second", "--model", tiny.model, "--count", 1)
    failed(call("sampler", "evaluate", "second", "--optimize", 1), 2, "--optimize", "draws on calm")
    passed(*make(tiny, "calm", "--class", "neutral", "--weight", 2, "--overwrite", "--output", "other"))
    changed = call("sample", "--sampler", "second", "--model", tiny.model, "--count", 1, "--output", "again")
    failed(changed, 1, "draws on calm", "Train it again")


def test_directions_are_trained_on_a_samplers_draws(tiny, calm):
    quick = ("--iterations", 1, "--intervals", 2, "--augmentations", 1, "--calibration-photos", 2)
    passed("train-direction", "--text", "an old face", "--name", "old", "--model", tiny.model, "--samples", 2,
           "--sampler", "calm", "--eta", 1, *quick)  # fmt: skip
    assert Bank.default().get("old", "tiny").info


def test_evaluation_compares_the_judges_answers(tmp_path, tiny, home):
    model = make_model(tmp_path / "aligned", tiny.guide, name="aligned", aligned=True)
    small = ("--model", model, "--intervals", 2)
    passed("sampler", "train", "--class", "happy", "--name", "smilers", "--pool", 32, *small)
    answer = json.loads(passed("sampler", "evaluate", "smilers", "--count", 3, "--json", *small))
    assert sum(answer["after"][name] for name in ("male", "female")) == pytest.approx(1)
    assert answer["success"] == [answer[when]["happy"] for when in ("before", "after")]
    assert (home / "sampler-evaluation" / "evaluation.json").is_file()
    assert answer["evaluations"]["model"] == 2 and answer["evaluations"]["sampler"] >= 4
    more = ("--count", 2, "--optimize", 1, "--output", "compared")
    assert "optimised" in passed("sampler", "evaluate", "smilers", *more, *small)
    data = json.loads((home / "compared" / "evaluation.json").read_text())
    # at least two evaluations of the energy and the image in the end on two intervals, and one product between them
    assert data["evaluations"]["optimised"] >= 2 * 2 + 1 + 2 and 0 <= data["optimised"]["after"]["female"] <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--class", "smiley"), ("'smiley'", "happy")),
        (("--class", "young,old"), ("young, old share age",)),
        (("--text", "zebra quux"), ("knows no word", "zebra")),
        (("--text", "a smiling face", "--weight", "0"), ("above 0",)),
        ((), ("--text", "--class")),
        (("--class", "happy", "--on", "nobody"), ("no sampler", "'nobody'")),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_work(tiny, options, words):
    result = call("sampler", "train", "--model", tiny.model, "--name", "some", *options)
    failed(result, 2, *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--attribute", "colour"), ("'colour'", "expression, age")),
        (("--attribute", "age", "--target", "0.5,0.5"), ("3 answers", "2 shares")),
        (("--attribute", "age", "--target", "0.5,0.5,0.5"), ("sum to 1", "1.5")),
        (("--attribute", "age", "--target", "a,b"), ("--target",)),
        (("--attribute", "age", "--attribute", "age"), ("named once",)),
        (("--attribute", "age", "--target", "uniform", "--target", "uniform"), ("2 targets", "1 attributes")),
    ],
)
def test_targets_that_are_none_are_refused_before_any_work(tiny, options, words):
    failed(call("sampler", "debias", "--model", tiny.model, "--name", "some", *options), 2, *words)


def test_a_target_out_of_reach_is_an_error_with_the_bounds(tiny):
    result = call(*make(tiny, "some", "--attribute", "age", "--target", "0.98,0.01,0.01", command="debias"))
    failed(result, 2, "young cannot be 0.98", "32 samples")


def test_a_name_that_is_taken_is_refused(tiny, smilers):
    failed(call(*make(tiny, "smilers"), "--output", "elsewhere"), 2, "exists already")


def test_a_model_without_classes_says_so(tiny, tmp_path):
    folder = make_model(tmp_path / "bare", tiny.guide, name="bare")
    config = yaml.safe_load((folder / "flowgrad.yaml").read_text())
    (folder / "flowgrad.yaml").write_text(
        yaml.safe_dump({k: str(v) if k == "guide" else v for k, v in config.items() if not k.startswith("class")})
    )
    failed(call("sampler", "train", "--model", folder, "--name", "some", "--class", "happy"), 2, "has no classes")


def test_a_sampler_for_other_weights_is_refused_unless_forced(tiny, tmp_path, smilers):
    other = make_model(tmp_path / "other", tiny.guide, seed=1)
    options = ("sample", "--sampler", "smilers", "--model", other, "--count", 1)
    failed(call(*options), 1, "another model's weights", smilers.sampler.fingerprint)
    passed(*options, "--force")


def test_a_sampler_is_no_direction_and_a_direction_no_sampler(tiny, smilers):
    failed(call("apply-direction", "smilers", tiny.files[0]), 2, "'smilers' is a sampler", "flowgrad sample --sampler")
    failed(call("apply-direction", smilers.path, tiny.files[0]), 1, "a sampler")
    failed(call("sample", "--sampler", "smiling", "--model", tiny.model), 2, "no sampler")
    failed(call("train-direction", tiny.files[0], "--text", "an old face", "--name", "x", "--sampler", "smilers"), 2,
           "--samples")  # fmt: skip
