"""Newton's beta against closed forms, and targets that cannot be reached."""

import pytest
import torch

from flowgrad.errors import UsageError
from flowgrad.sampling.moments import effective_number, solve_moments

MANY = 200_000


def test_of_a_normal_pool_beta_is_the_shift_in_units_of_the_covariance():
    """exp(beta . x) tilts N(0, S) to N(S beta, S)."""
    root = torch.tensor([[1.0, 0.3], [0.0, 0.5]], dtype=torch.float64)
    pool = torch.randn(MANY, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ root
    target = torch.tensor([0.4, 0.1], dtype=torch.float64)
    found = solve_moments(pool, target)
    expected = torch.linalg.solve(root.T @ root, target)
    assert (found.beta - expected).abs().max() < 0.03
    effective = MANY * torch.exp(-target @ expected).item()  # 1 / E w^2 of two normals with one covariance
    assert found.effective == pytest.approx(effective, rel=0.05)


def test_of_two_classes_beta_is_the_change_of_log_odds():
    """Of one-hot answers: nothing but a change of their log-odds by beta's difference is possible."""
    phi = torch.eye(2, dtype=torch.float64).repeat_interleave(torch.tensor([900, 100]), 0)
    found = solve_moments(phi, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert float(found.beta[1] - found.beta[0]) == pytest.approx(torch.tensor(9.0).log().item(), abs=1e-6)
    assert float(found.beta.sum()) == pytest.approx(0, abs=1e-8), "along what does not vary, beta stays 0"
    assert found.effective == pytest.approx(1 / (900 * (0.5 / 900) ** 2 + 100 * (0.5 / 100) ** 2))


@pytest.mark.parametrize("sharpness", [1.0, 5.0, 20.0])
def test_soft_classes_reach_uniform_in_a_few_steps(sharpness):
    logits = torch.randn(2000, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    phi = (sharpness * logits + torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])).softmax(1)
    found = solve_moments(phi, torch.full((5,), 0.2, dtype=torch.float64))
    assert found.iterations < 20
    assert (found.weights @ phi - 0.2).abs().max() < 1e-9
    assert found.residual < 1e-9
    assert 1 <= found.effective <= 2000


def test_rounding_errors_of_probabilities_do_not_move_beta():
    """In float32 they sum to 1 but for 1e-7: along their sum nothing varies, and beta stays 0."""
    logits = 3 * torch.randn(1000, 5, generator=torch.Generator().manual_seed(3))
    found = solve_moments(logits.softmax(1), torch.tensor([0.1, 0.15, 0.2, 0.25, 0.3], dtype=torch.float64))
    assert abs(float(found.beta.sum())) < 1e-3
    assert found.residual < 1e-6 and found.iterations < 20


def test_the_dual_has_no_lower_value_nearby():
    from flowgrad.sampling.moments import dual

    phi = torch.rand(500, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    target = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)
    beta = solve_moments(phi, target).beta
    for axis in torch.eye(3, dtype=torch.float64):
        for sign in (0.01, -0.01):
            assert dual(phi - target, beta + sign * axis) > dual(phi - target, beta)


def test_a_target_beyond_every_sample_is_refused_with_the_bounds():
    phi = torch.tensor([[0.1], [0.4]])
    with pytest.raises(UsageError, match=r"0\.5.*0\.1 to 0\.4"):
        solve_moments(phi, torch.tensor([0.5]))


def test_a_target_outside_the_hull_is_refused_though_each_number_is_within():
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(UsageError, match="cannot be reached together"):
        solve_moments(corners, torch.tensor([0.9, 0.9]))


def test_a_wrong_shape_is_refused():
    with pytest.raises(UsageError, match=r"\(4, 3\)"):
        solve_moments(torch.rand(4, 3), torch.rand(2))


def test_the_effective_number_is_that_of_equal_weights():
    assert effective_number(torch.full((8,), 1 / 8)) == pytest.approx(8)
    assert effective_number(torch.tensor([1.0, 0.0])) == 1
