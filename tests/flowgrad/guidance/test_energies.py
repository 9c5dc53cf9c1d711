"""Energies of images: what they are, what bounds them, and which calls are refused."""

import math

import pytest
import torch

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.guidance.classes import Classes
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.energies import (
    ClassEnergy,
    EnergySum,
    IdentityEnergy,
    MomentEnergy,
    PoseEnergy,
    TextEnergy,
)
from flowgrad.guidance.guide_files import load_guide
from flowgrad.guidance.judge import load_judge
from flowgrad.guidance.questions import check_yaw, target_shares
from flowgrad.guidance.text import log_odds
from tests.helpers.tiny import make_judge

QUESTIONS = {
    "mood": {"smiling": "a smiling face", "serious": "a serious face"},
    "age": {"young": "a young face", "adult": "an adult face", "old": "an old face"},
}


@pytest.fixture(scope="module")
def guide(tiny):
    return load_guide(str(tiny.guide))


@pytest.fixture(scope="module")
def classes(guide):
    return Classes(guide, QUESTIONS)


@pytest.fixture
def images():
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_probabilities_are_the_softmax_of_the_guides_logits(classes, guide, images):
    probabilities = {name: log_p.exp() for name, log_p in classes.log_probabilities(images).items()}
    assert {name: tuple(p.shape) for name, p in probabilities.items()} == {"mood": (4, 2), "age": (4, 3)}
    torch.testing.assert_close(probabilities["age"].sum(1), torch.ones(4))
    odds = log_odds(guide, images, [Contrast("a smiling face", "a serious face")])[:, 0]
    torch.testing.assert_close(probabilities["mood"][:, 0], odds.sigmoid())
    torch.testing.assert_close(classes.moments(images), torch.cat(list(probabilities.values()), 1))


def test_beside_a_classifier_probabilities_are_the_geometric_mean_of_both(tmp_path, guide, images):
    questions = {"expression": {"happy": "a smiling face", "sad": "a serious face"}, **QUESTIONS}
    classifier = load_judge(str(make_judge(tmp_path / "judge.safetensors")))
    alone, both = Classes(guide, questions), Classes(guide, questions, classifier=classifier)
    other = classifier.probabilities(images)
    product = alone.log_probabilities(images)["expression"].exp() * torch.stack([other["happy"], other["sad"]], 1)
    found = {name: log_p.exp() for name, log_p in both.select(questions).log_probabilities(images).items()}
    torch.testing.assert_close(found["expression"], product.sqrt() / product.sqrt().sum(1, keepdim=True))
    torch.testing.assert_close(found["age"], alone.log_probabilities(images)["age"].exp())


def test_a_class_energy_is_minus_the_log_of_the_joint_probability(classes, images):
    energy, log_p = ClassEnergy(classes, ("smiling", "old")), classes.log_probabilities(images)
    torch.testing.assert_close(energy(images), -log_p["mood"][:, 0] - log_p["age"][:, 2])


def test_of_two_answers_text_and_class_are_the_same(classes, guide, images):
    text = TextEnergy(guide, Contrast("a smiling face", "a serious face"))
    torch.testing.assert_close(text(images), ClassEnergy(classes, ("smiling",))(images))


def test_a_moment_energy_is_linear_in_the_probabilities(classes, images):
    beta = (1.0, -1.0, 0.5, 0.0, 2.0)
    energy = MomentEnergy(classes, beta)
    torch.testing.assert_close(energy(images), -classes.moments(images) @ torch.tensor(beta))
    assert energy.lowest == -3.0


def test_an_identity_energy_is_minus_the_log_of_a_probability_that_is_one_half_at_the_limit(images):
    distances = torch.tensor([0.0, 0.1, 0.6, 2.0])
    energy = IdentityEnergy(lambda x: distances[:, None], torch.zeros(1), same=0.6, spread=0.05)
    torch.testing.assert_close(energy(images), -((0.6 - distances) / 0.05).sigmoid().log(), atol=1e-5, rtol=1e-4)
    assert float(energy(images)[2]) == pytest.approx(math.log(2))


def test_an_identity_energy_has_a_gradient_at_the_photo_itself(images):
    energy = IdentityEnergy(lambda x: x.flatten(1), images[1].flatten(), same=0.6)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(leaf).sum(), leaf)
    assert gradient.isfinite().all() and energy(images).argmin() == 1


def test_a_pose_energy_is_0_within_its_range_and_quadratic_outside(images):
    degrees = torch.tensor([-20.0, -10.0, 0.0, 13.0])
    energy = PoseEnergy(lambda x: degrees, -10.0, 10.0, spread=2.0)
    torch.testing.assert_close(energy(images), torch.tensor([12.5, 0.0, 0.0, 1.125]))


@pytest.mark.parametrize("yaws", [(10.0, -10.0), (-90.0, 0.0), (0.0, float("nan"))])
def test_yaws_that_cannot_be_are_refused(yaws):
    with pytest.raises(UsageError, match="between -90 and 90"):
        PoseEnergy(lambda x: x[:, 0, 0, 0], *yaws)


def test_one_yaw_is_a_range_of_its_own():
    assert check_yaw((15.0,)) == (15.0, 15.0) and check_yaw((-5.0, 5.0)) == (-5.0, 5.0)
    with pytest.raises(UsageError, match="1, 2, 3"):
        check_yaw((1.0, 2.0, 3.0))


def test_no_image_is_below_the_bound(classes, guide, images):
    energies = (
        ClassEnergy(classes, ("serious", "young")),
        TextEnergy(guide, Contrast("an old face", "a face")),
        MomentEnergy(classes, (3.0, -2.0, 1.0, 0.0, -1.0)),
        IdentityEnergy(lambda x: x.flatten(1), images[1].flatten(), same=0.6),
        PoseEnergy(lambda x: 90 * x[:, 0, 0, 0], 5.0, 10.0),
    )
    for energy in (*energies, EnergySum(energies, (1.0, 2.0, 0.5, 3.0, 1.5))):
        assert (energy(images) >= energy.lowest - 1e-5).all()


def test_energies_are_functions_of_their_features(classes, guide, images):
    """Log-odds of p are log p - log (1 - p); a text's energy is -log of the sigmoid of its own."""
    p = classes.moments(images).double()
    moments = MomentEnergy(classes, (0.0,) * 5)
    torch.testing.assert_close(moments.features(images).double(), p.logit(), rtol=1e-4, atol=1e-4)
    both, text = ClassEnergy(classes, ("old", "smiling")), TextEnergy(guide, Contrast("a woman", "a man"))
    torch.testing.assert_close(both.features(images), moments.features(images)[:, [4, 0]])
    torch.testing.assert_close(text(images), -text.features(images)[:, 0].sigmoid().log())
    assert EnergySum((both, text, moments), (1.0, 2.0, 3.0)).features(images).shape == (4, 8)


def test_log_odds_do_not_saturate(classes, images):
    """Where p rounds to 1, log (1 - p) would be infinite."""
    certain = Classes(classes.guide, classes.questions, {"smiling": 90.0})
    odds = certain.log_odds(images, ["smiling"])
    assert (certain.moments(images)[:, 0] == 1).all()
    torch.testing.assert_close(odds, classes.log_odds(images, ["smiling"]) + 90)


def test_energies_have_gradients_and_sums_have_theirs(classes, guide, images):
    energies = (ClassEnergy(classes, ("old",)), TextEnergy(guide, Contrast("a woman", "a man")))

    def gradient(energy):
        leaf = images.clone().requires_grad_()
        return torch.autograd.grad(energy(leaf).sum(), leaf)[0]

    parts = [gradient(energy) for energy in energies]
    assert all(part.any() for part in parts)
    torch.testing.assert_close(gradient(EnergySum(energies, (2.0, 0.5))), 2 * parts[0] + 0.5 * parts[1])


def test_an_energy_that_is_not_finite_is_an_error(images):
    broken = IdentityEnergy(lambda x: x.flatten(1) * torch.nan, images[0].flatten(), same=0.6)
    with pytest.raises(FlowgradError, match="4 of 4 images is not finite"):
        EnergySum((broken,), (1.0,))(images)


@pytest.mark.parametrize(
    ("answers", "words"),
    [((), "one class"), (("smiley",), "'smiley'; there is smiling"), (("young", "old"), "young, old share age")],
)
def test_classes_that_cannot_be_are_refused(classes, answers, words):
    with pytest.raises(UsageError, match=words):
        ClassEnergy(classes, answers)


@pytest.mark.parametrize(
    "questions", [{}, {"mood": {"smiling": "a smiling face"}}, {"a": QUESTIONS["age"], "b": QUESTIONS["age"]}]
)
def test_questions_without_a_choice_are_refused(guide, questions):
    with pytest.raises(UsageError):
        Classes(guide, questions)


def test_an_unknown_question_is_refused_with_the_known(classes):
    with pytest.raises(UsageError, match="'colour'; there is mood, age"):
        classes.select(["colour"])
    assert list(classes.select(["age"]).questions) == ["age"]


@pytest.mark.parametrize("weights", [(), (0.0,), (float("inf"),), (1.0, 1.0)])
def test_weights_that_cannot_be_are_refused(guide, weights):
    with pytest.raises(UsageError):
        EnergySum((TextEnergy(guide, Contrast("a woman", "a man")),), weights)


def test_beta_has_a_number_for_each_answer(classes):
    with pytest.raises(UsageError, match="5 answers; got 2"):
        MomentEnergy(classes, (1.0, 2.0))


def test_a_target_is_uniform_unless_it_is_given():
    assert target_shares(("young", "adult", "old"), None, "age") == (1 / 3, 1 / 3, 1 / 3)
    assert target_shares(("smiling", "serious"), (0.9, 0.1), "mood") == (0.9, 0.1)


@pytest.mark.parametrize("shares", [(1.0,), (0.6, 0.6), (1.0, 0.0), (1.5, -0.5)])
def test_a_target_that_is_no_distribution_is_refused(shares):
    with pytest.raises(UsageError, match="mood"):
        target_shares(("smiling", "serious"), shares, "mood")
