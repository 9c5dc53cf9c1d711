"""Augmentations and objectives on clean images."""

import pytest
import torch

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.guidance.augment import augment
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.preserve import l1, load_distance
from flowgrad.guidance.text import TextObjective, contrast_vectors, log_odds
from flowgrad.workers import Share, Workers


class PatchGuide:
    """A guide in closed form: images embed by the mean of their channels, texts by their first letter."""

    logit_scale = 10.0

    def encode_images(self, images):
        return torch.nn.functional.normalize(images.mean((2, 3)) + 1e-3, dim=1)

    encode_photos = encode_images

    def encode_texts(self, texts):
        return torch.eye(3)[["rgb".index(text[0]) for text in texts]]


RED, GREEN = Contrast("red", "blue"), Contrast("green", "blue")


def images(n=2):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def objective(originals, **changes):
    settings = {"target": RED, "originals": originals, "distance": l1}
    return TextObjective(PatchGuide(), **{**settings, **changes})


def test_augmentation_is_seeded_differs_per_view_and_keeps_the_shape():
    x = images()
    views = augment(x, 3, rng())
    assert views.shape == (6, 3, 16, 16)
    assert torch.equal(views, augment(x, 3, rng()))
    assert not torch.equal(views, augment(x, 3, rng(1)))
    assert len({view.sum().item() for view in views}) == 6


def test_an_image_is_seen_alike_whatever_others_are_seen_with_it():
    x = images(5).double()
    together = augment(x, 3, rng()).view(3, 5, -1)
    for rows in (slice(0, 2), slice(2, 3), slice(3, 5)):
        alone = augment(x[rows], 3, rng(), 5, rows).view(3, rows.stop - rows.start, -1)
        torch.testing.assert_close(alone, together[:, rows])


@pytest.mark.parametrize(("rank", "size", "group"), [(0, 1, 2), (0, 2, 2), (1, 2, 2), (2, 3, 1)])
def test_the_terms_of_an_image_do_not_depend_on_its_group_or_process(rank, size, group):
    x, originals, share = images(5), images(5).flip(0), Share(5, Workers(rank, size), group)
    whole = objective(originals, keep=(GREEN,))(x, rng(), slice(0, 5))
    own, target = x[share.rows], objective(originals[share.rows], keep=(GREEN,), share=share)
    for rows in (slice(i, i + 1) for i in range(len(own))):
        part = target(own[rows], rng(), rows)
        assert whole.keys() == part.keys()
        for name, values in part.items():
            torch.testing.assert_close(values, whole[name][share.rows][rows])


def test_augmentation_passes_gradients_to_every_image():
    x = images().requires_grad_()
    (gradient,) = torch.autograd.grad(augment(x, 2, rng()).square().sum(), x)
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


def test_the_cut_out_square_is_grey_and_of_its_size():
    white = torch.ones(200, 3, 32, 32)
    views = augment(white, 1, rng())
    grey = (views == 0).all(1).flatten(1).float().mean(1)
    assert (grey > 0).float().mean() > 0.9
    assert grey.max() <= (0.25 + 1 / 32) ** 2


def test_objective_terms_are_those_of_the_formula():
    x, originals = images(), images().flip(3) * 0.5
    terms = objective(originals, eta=0.6, keep=(GREEN,), keep_weight=2.0, copies=4)(x, rng(), slice(0, 2))
    g = PatchGuide()
    vectors = contrast_vectors(g, [RED, GREEN])
    after, before = ((g.encode_images(augment(i, 4, rng())) @ vectors.T).view(4, 2, 2).mean(0) for i in (x, originals))
    torch.testing.assert_close(terms["text"], -0.6 * (after - before)[:, 0])
    torch.testing.assert_close(terms["preserve"], 0.4 * (x - originals).abs().flatten(1).mean(1))
    torch.testing.assert_close(terms["keep"], 2.0 * (after - before)[:, 1].square())


def test_an_unchanged_image_costs_nothing_whatever_views_are_drawn():
    x = images()
    for seed in range(3):
        terms = objective(x, keep=(GREEN,))(x, rng(seed), slice(0, 2))
        assert {name: term.abs().max().item() for name, term in terms.items()} == {"text": 0, "preserve": 0, "keep": 0}


def test_originals_are_seen_once_under_the_same_views_of_the_same_images():
    seen = []

    class Counted(PatchGuide):
        def encode_images(self, images):
            seen.append(len(images))
            return super().encode_images(images)

    x = images()
    counted = TextObjective(Counted(), RED, x, l1, (GREEN,), copies=3)
    for seed, rows, encoded in ((0, 2, 12), (0, 2, 6), (1, 2, 12), (0, 1, 6), (0, 1, 3), (0, 2, 6)):
        seen.clear()
        found = counted(x[:rows] / 2, rng(seed), slice(0, rows))
        expected = objective(x, keep=(GREEN,), copies=3)(x[:rows] / 2, rng(seed), slice(0, rows))
        assert sum(seen) == encoded
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_its_gradient_agrees_with_finite_differences():
    x, probe = images().double(), images().flip(2).double()

    class Double(PatchGuide):
        def encode_texts(self, texts):
            return super().encode_texts(texts).double()

    target = TextObjective(Double(), RED, images().double() * 0.5, l1, (GREEN,))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(sum(t.sum() for t in target(leaf, rng(), slice(0, 2)).values()), leaf)
    plus, minus = (
        sum(t.sum() for t in target(x + s * probe, rng(), slice(0, 2)).values()).item() for s in (1e-6, -1e-6)
    )
    assert (gradient * probe).sum().item() == pytest.approx((plus - minus) / 2e-6, rel=1e-4)


def test_log_odds_scale_the_difference_of_cosines():
    # "blue" and its kin embed by their first letter: r, g, b are the three axes
    r, g, b = PatchGuide().encode_images(images()).T
    expected = torch.stack([10 * (r - b), 10 * (g - b)], dim=1)
    torch.testing.assert_close(log_odds(PatchGuide(), images(), [RED, GREEN]), expected)


@pytest.mark.parametrize(
    ("written", "text", "source"),
    [
        ("a smile", "a smile", "a face"),
        ("a smile - a frown", "a smile", "a frown"),
        ("a close-up", "a close-up", "a face"),
    ],
)
def test_contrasts_are_read_from_text(written, text, source):
    assert Contrast.parse(written, "a face") == Contrast(text, source)


def test_wrong_values_are_refused():
    with pytest.raises(UsageError, match="must not be empty"):
        Contrast.parse("  ", "a face")
    with pytest.raises(UsageError, match="preserve must be one of l1, lpips"):
        load_distance("l3", "cpu")


def test_lpips_without_its_weights_says_where_to_get_them(monkeypatch):
    import urllib.error

    import lpips

    def offline(**_):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(lpips, "LPIPS", offline)
    with pytest.raises(FlowgradError, match=r"AlexNet's weights.*preserve = l1"):
        load_distance("lpips", "cpu")
