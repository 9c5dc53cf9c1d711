"""Words for parts of an image: masks, and the objective of a region against its formula."""

import torch

from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide_files import load_guide
from flowgrad.ode import Grid
from flowgrad.optimize import Settings, evaluate, optimize
from flowgrad.painting.objective import PaintingObjective, Words
from flowgrad.painting.regions import Region, RegionObjective, composite, on_states, union


def half(side=32):
    mask = torch.zeros(1, 1, side, side)
    mask[..., : side // 2] = 1
    return mask


def words(tiny):
    return Words(load_guide(str(tiny.guide)), Contrast("a smiling face", "a serious face"), copies=2)


def test_a_composite_is_the_image_inside_and_the_original_outside():
    images, originals = torch.ones(2, 3, 32, 32), torch.zeros(2, 3, 32, 32)
    mixed = composite(images, originals, half())
    assert torch.equal(mixed[..., :16], images[..., :16]) and torch.equal(mixed[..., 16:], originals[..., 16:])


def test_the_union_of_regions_is_what_is_in_any(tiny):
    left, right = half(), 1 - half()
    both = union([Region(left, words(tiny)), Region(right, words(tiny))])
    assert torch.equal(both, torch.ones_like(both))


def test_a_soft_mask_fades_and_keeps_its_area():
    soft = Region.soft(half(), None).mask
    assert 0 < float(soft[0, 0, 16, 16]) < 1 and abs(float(soft.mean()) - 0.5) < 0.02
    factors = on_states(half(), (16, 4, 4))
    assert factors.shape == (1, 1, 1, 4, 4) and factors.flatten(0, 3).mean(0).tolist() == [1, 1, 0, 0]


def test_what_a_region_does_not_cover_has_no_words(tiny):
    """The gradient outside is that of preservation alone."""
    originals = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    objective = RegionObjective((Region(half(), words(tiny)),), originals, eta=1.0)
    x1 = (originals * 0.9).requires_grad_()
    terms = objective(x1, torch.Generator().manual_seed(1), slice(0, 1))
    (gradient,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), x1)
    assert not gradient[..., 16:].any() and gradient[..., :16].any()


def test_no_change_has_no_loss(tiny):
    originals = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    objective = RegionObjective((Region(half(), words(tiny)),), originals)
    terms = objective(originals.clone(), torch.Generator().manual_seed(1), slice(0, 2))
    assert all(float(term.abs().max()) < 1e-5 for term in terms.values())


def test_a_mask_keeps_a_control_at_zero_where_it_is_zero(field, x0):
    """Of every optimiser, also those that scale each number by itself."""
    mask = torch.ones(1, 1, 1, 4, 4, dtype=torch.float64)
    mask[..., 2:] = 0

    def squares(x, rng, rows):
        return {"norm": x.square().sum((1, 2, 3))}

    for optimizer in ("sgd", "normalized", "adam"):
        settings = Settings(iterations=2, optimizer=optimizer, step_size=0.1)
        *_, step = optimize(field, x0, Grid.full(4), squares, settings, mask=mask)
        values = step.control.values
        assert values[..., :2].any() and not values[..., 2:].any()


def test_the_objective_of_a_painting_has_the_gradient_of_differences(tiny):
    """Of the colours' term, through a decoder, in float64."""
    draw = torch.Generator().manual_seed(0)
    strokes, x1, way = (torch.randn(1, 3, 24, 24, generator=draw, dtype=torch.float64) for _ in range(3))
    objective = PaintingObjective(strokes)
    gradient = evaluate(objective, x1, draw, decode=torch.tanh).gradient
    ahead, behind = (evaluate(objective, x1 + step * way, draw, decode=torch.tanh).loss for step in (1e-5, -1e-5))
    assert abs((ahead - behind) / 2e-5 - float((gradient * way).sum())) < 1e-8
