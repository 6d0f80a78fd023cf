"""The output layer alone: autograd, dense algebra and scikit-learn as the oracles, all in float64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import fairtrim.unlearning.output_layer_problem
from fairtrim import InputError
from fairtrim.unlearning.conjugate_gradients import conjugate_gradients
from fairtrim.unlearning.output_layer_problem import OutputLayerProblem, damped_cholesky

DOUBLE = {"dtype": torch.float64}
CLOSE = {"rtol": 1e-9, "atol": 1e-12}

# outputs K, samples N, features D, weighted, ridge
CASES = {
    "two scores": (2, 23, 5, False, 0.0),
    "two scores, weights, ridge": (2, 29, 4, True, 0.3),
    "three scores": (3, 31, 4, False, 0.0),
    "three scores, weights": (3, 47, 5, True, 0.0),
    "three scores, ridge": (3, 37, 2, False, 0.07),
    "five scores, weights, ridge": (5, 41, 3, True, 0.02),
    "single logit": (1, 17, 6, False, 0.0),
    "single logit, weights, ridge": (1, 43, 3, True, 0.11),
    "one sample": (3, 1, 2, False, 0.0),
}


def _problem(name: str, *, seed: int = 0) -> tuple[OutputLayerProblem, Tensor]:
    """A layer and a point to take derivatives at."""
    n_outputs, n_samples, width, weighted, ridge = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n_samples, width, generator=generator, **DOUBLE)
    noise = torch.randn(n_samples, max(2, n_outputs), generator=generator, **DOUBLE)
    target = (features @ torch.randn(width, max(2, n_outputs), generator=generator, **DOUBLE) + 2 * noise).argmax(1)
    weight = torch.rand(n_samples, generator=generator, **DOUBLE) * 3 + 0.1 if weighted else None
    layer = OutputLayerProblem.of(features, target, single_logit=n_outputs == 1, weight=weight, ridge=ridge)
    return layer, torch.randn(n_outputs, width + 1, generator=generator, **DOUBLE)


def plain_loss(layer: OutputLayerProblem, theta: Tensor) -> Tensor:
    """The mean loss, as torch has it."""
    scores = layer.features[:, :-1] @ theta[:, :-1].T + theta[:, -1]
    if layer.single_logit:
        losses = F.binary_cross_entropy_with_logits(scores[:, 0], layer.target.double(), reduction="none")
    else:
        losses = F.cross_entropy(scores, layer.target, reduction="none")
    weight = torch.ones_like(losses) if layer.weight is None else layer.weight
    return (losses * weight).sum() / weight.sum() + layer.ridge / 2 * theta.square().sum()


# Derivatives.


@pytest.mark.parametrize("name", CASES)
def test_derivatives_equal_autograd(name: str) -> None:
    layer, theta = _problem(name)
    n_outputs, n_samples, width, _, _ = CASES[name]
    assert layer.features.shape == (n_samples, width + 1) and bool((layer.features[:, -1] == 1).all())
    assert layer.scores(theta).shape == (n_samples, n_outputs)
    moving = theta.clone().requires_grad_(True)
    value = plain_loss(layer, moving)
    (gradient,) = torch.autograd.grad(value, moving)
    torch.testing.assert_close(layer.loss(theta), value.detach(), **CLOSE)
    torch.testing.assert_close(layer.gradient(theta), gradient, **CLOSE)
    hessian = torch.autograd.functional.hessian(
        lambda flat: plain_loss(layer, flat.reshape(theta.shape)), theta.reshape(-1)
    )
    torch.testing.assert_close(layer.hessian(theta), hessian, **CLOSE)
    torch.testing.assert_close(layer.hessian(theta), layer.hessian(theta).T, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", ["three scores, weights", "two scores", "single logit, weights, ridge"])
def test_gradients_of_samples(name: str) -> None:
    """A sample's gradient is its residuals times its features, weights and ridge apart."""
    layer, theta = _problem(name, seed=1)
    residuals, losses = layer.residuals(theta), layer.sample_losses(theta)
    assert residuals.shape == (len(layer.target), len(theta)) and losses.shape == (len(layer.target),)
    for n in range(len(layer.target)):
        one = replace(layer, features=layer.features[n : n + 1], target=layer.target[n : n + 1], weight=None, ridge=0.0)
        moving = theta.clone().requires_grad_(True)
        value = plain_loss(one, moving)
        (gradient,) = torch.autograd.grad(value, moving)
        torch.testing.assert_close(residuals[n][:, None] * layer.features[n], gradient, **CLOSE)
        torch.testing.assert_close(losses[n], value.detach(), **CLOSE)


def test_large_scores_stay_finite() -> None:
    for name in ("three scores", "single logit"):
        layer, theta = _problem(name)
        for part in (layer.loss(1e4 * theta), layer.gradient(1e4 * theta), layer.hessian(1e4 * theta)):
            assert bool(torch.isfinite(part).all())


def test_single_precision_inputs_are_computed_in_double() -> None:
    layer, theta = _problem("three scores")
    features = layer.features[:, :-1].float()
    rough = OutputLayerProblem.of(features, layer.target)
    exact = OutputLayerProblem.of(features.double(), layer.target)
    assert rough.features.dtype == torch.float64
    torch.testing.assert_close(rough.hessian(theta), exact.hessian(theta), rtol=0, atol=0)


def test_weights_count_as_copies_of_people() -> None:
    layer, theta = _problem("three scores, ridge")
    copies = torch.arange(len(layer.target)) % 4  # nobody, once, twice, three times
    weighted = replace(layer, weight=copies.double())
    rows = torch.arange(len(layer.target)).repeat_interleave(copies)
    repeated = replace(layer, features=layer.features[rows], target=layer.target[rows])
    for name in ("loss", "gradient", "hessian", "refitted"):
        torch.testing.assert_close(getattr(weighted, name)(theta), getattr(repeated, name)(theta), rtol=1e-8, atol=1e-9)
    tenfold = replace(layer, weight=10 * copies.double())
    torch.testing.assert_close(tenfold.gradient(theta), weighted.gradient(theta), **CLOSE)


# One logit and two scores.


@pytest.mark.parametrize("weighted", [False, True])
def test_single_logit_and_two_scores_agree(weighted: bool) -> None:
    """Scores (a, b) are the logit b − a; their ridge r on (−θ/2, θ/2) is one of r/2 on θ."""
    one, theta = _problem("single logit, weights, ridge")
    one = one if weighted else replace(one, weight=None)
    free = replace(one, ridge=0.0)
    shift = torch.randn(1, theta.shape[1], generator=torch.Generator().manual_seed(5), **DOUBLE)
    pair = torch.cat([shift - theta / 2, shift + theta / 2])
    two = replace(one, single_logit=False, ridge=0.0)
    torch.testing.assert_close(two.sample_losses(pair), free.sample_losses(theta), **CLOSE)
    torch.testing.assert_close(two.loss(pair), free.loss(theta), **CLOSE)
    residuals = free.residuals(theta)
    torch.testing.assert_close(two.residuals(pair), torch.cat([-residuals, residuals], 1), **CLOSE)
    torch.testing.assert_close(two.gradient(pair), torch.cat([-free.gradient(theta), free.gradient(theta)]), **CLOSE)
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], **DOUBLE)
    torch.testing.assert_close(two.hessian(pair), torch.kron(signs, free.hessian(theta)), **CLOSE)
    two = replace(two, ridge=2 * one.ridge)
    fitted, of_pair = one.refitted(theta), two.refitted(pair)
    torch.testing.assert_close(of_pair[1] - of_pair[0], fitted[0], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(of_pair[1] + of_pair[0], torch.zeros_like(fitted[0]), rtol=0, atol=1e-8)


# Damping.


def _of_rank(rank: int, size: int) -> Tensor:
    root = torch.randn(size, rank, generator=torch.Generator().manual_seed(rank), **DOUBLE)
    return root @ root.T


@pytest.mark.parametrize(
    "matrix",
    [
        torch.zeros(4, 4, **DOUBLE),
        _of_rank(1, 7),
        _of_rank(3, 5) * 1e9,
        _of_rank(2, 6) * 1e-9,
        torch.diag(torch.tensor([3.0, 0.0, 1.0], **DOUBLE)),
        torch.eye(3, **DOUBLE),
    ],
    ids=["zero", "rank 1 of 7", "rank 3 of 5, large", "rank 2 of 6, small", "a zero on the diagonal", "regular"],
)
def test_damped_cholesky(matrix: Tensor) -> None:
    factor, added = damped_cholesky(matrix)
    mean = float(matrix.diagonal().mean())
    assert 0 < added <= 1e-6 * max(mean, 1e-12)
    assert torch.equal(factor, factor.tril()) and bool((factor.diagonal() > 0).all())
    damped = matrix + added * torch.eye(len(matrix), **DOUBLE)
    torch.testing.assert_close(factor @ factor.T, damped, rtol=1e-10, atol=1e-12 * max(mean, 1e-12))


def test_damping_is_in_units_of_the_mean_of_the_diagonal_and_grows_until_it_is_enough() -> None:
    matrix = _of_rank(2, 5)
    assert damped_cholesky(matrix, damping=0.25)[1] == pytest.approx(0.25 * float(matrix.diagonal().mean()))
    indefinite = torch.diag(torch.tensor([4.0, 3.0, -1.0], **DOUBLE))  # the diagonal's mean is 2
    factor, added = damped_cholesky(indefinite, damping=1e-3)
    assert added == pytest.approx(2.0)  # 0.002, 0.02 and 0.2 are too little
    torch.testing.assert_close(factor @ factor.T, torch.diag(torch.tensor([6.0, 5.0, 1.0], **DOUBLE)))
    negative = -torch.eye(3, **DOUBLE)
    assert damped_cholesky(negative)[1] > 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    matrix = torch.eye(3, **DOUBLE)
    matrix[1, 2] = bad
    with pytest.raises(InputError, match="the Hessian is not finite; expected finite features and scores"):
        damped_cholesky(matrix)
    layer, theta = _problem("three scores")
    layer.features[3, 1] = bad
    with pytest.raises(InputError, match="the Hessian is not finite"):
        layer.refitted(theta)
    with pytest.raises(InputError, match="the Hessian is not finite"):
        layer.solver(theta)


@pytest.mark.parametrize("name", ["two scores", "three scores", "one sample"])
def test_solve_with_a_singular_hessian(name: str) -> None:
    """The Hessian of softmax is singular: its scores may be shifted. Gradients have no part of that."""
    layer, theta = _problem(name)
    hessian, gradient = layer.hessian(theta), layer.gradient(theta)
    rank = int(torch.linalg.matrix_rank(hessian, hermitian=True, rtol=1e-10))
    assert rank == (len(theta) - 1) * min(theta.shape[1], len(layer.target)) < theta.numel()
    solved = layer.solve(theta, gradient)
    least = torch.linalg.pinv(hessian, rtol=1e-10, hermitian=True) @ gradient.reshape(-1)
    torch.testing.assert_close(solved.reshape(-1), least, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["two scores, weights, ridge", "single logit, weights, ridge"])
def test_solve_with_a_regular_hessian(name: str) -> None:
    layer, theta = _problem(name)
    right = torch.randn(theta.shape, generator=torch.Generator().manual_seed(2), **DOUBLE)
    expected = torch.linalg.solve(layer.hessian(theta), right.reshape(-1)).reshape(theta.shape)
    torch.testing.assert_close(layer.solve(theta, right), expected, rtol=1e-5, atol=1e-8)


# Newton's method.


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_refit_equals_scikit_learn(n_outputs: int, weighted: bool) -> None:
    layer, theta = _problem("single logit, weights, ridge" if n_outputs == 1 else "five scores, weights, ridge")
    layer = replace(layer, target=layer.target % max(2, n_outputs), weight=layer.weight if weighted else None)
    theta = theta[:n_outputs]
    share = np.ones(len(layer.target)) if layer.weight is None else layer.weight.numpy()
    model = LogisticRegression(C=1 / layer.ridge, fit_intercept=False, solver="newton-cholesky", tol=1e-12)
    model.fit(layer.features.numpy(), layer.target.numpy(), sample_weight=share / share.sum())
    torch.testing.assert_close(layer.refitted(theta), torch.from_numpy(model.coef_), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["two scores", "three scores", "three scores, weights", "five scores, weights, ridge"])
def test_refit_equals_a_general_optimiser(name: str) -> None:
    layer, theta = _problem(name)

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        moving = torch.from_numpy(flat).reshape(theta.shape).requires_grad_(True)
        loss = plain_loss(layer, moving)
        (gradient,) = torch.autograd.grad(loss, moving)
        return float(loss.detach()), gradient.reshape(-1).numpy()

    found = minimize(value, theta.reshape(-1).numpy(), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2000})
    refitted = layer.refitted(theta)
    assert float(layer.gradient(refitted).abs().max()) < 1e-8
    assert float(layer.loss(refitted)) <= found.fun + 1e-12
    there = torch.from_numpy(found.x).reshape(theta.shape)
    scores = [layer.scores(point) for point in (refitted, there)]
    torch.testing.assert_close(*(s - s.mean(1, keepdim=True) for s in scores), rtol=1e-4, atol=1e-4)
    if layer.ridge == 0:  # the mean over the scores, which changes no probability, stays where it was
        torch.testing.assert_close(refitted.mean(0), theta.mean(0), rtol=1e-5, atol=1e-6)


def test_steps_are_halved_where_a_whole_one_goes_too_far() -> None:
    layer, theta = _problem("single logit, weights, ridge")
    layer = replace(layer, ridge=1e-3)
    far = theta * 8
    whole = far - layer.solve(far, layer.gradient(far))
    assert float(layer.loss(whole)) > float(layer.loss(far))
    torch.testing.assert_close(layer.refitted(far), layer.refitted(torch.zeros_like(theta)), rtol=1e-6, atol=1e-8)
    losses = [float(layer.loss(layer.refitted(far, max_steps=steps))) for steps in range(7)]
    assert all(after < before for before, after in pairwise(losses))


def test_number_of_steps_and_tolerance() -> None:
    layer, theta = _problem("three scores, ridge")
    assert torch.equal(layer.refitted(theta, max_steps=0), theta)
    near = layer.refitted(theta) + 0.01
    step = torch.linalg.solve(layer.hessian(near), layer.gradient(near).reshape(-1)).reshape(theta.shape)
    torch.testing.assert_close(layer.refitted(near, max_steps=1), near - step, rtol=1e-6, atol=1e-9)
    assert torch.equal(layer.refitted(near, tolerance=1.0), near)  # small enough from the start
    assert torch.equal(layer.refitted(layer.refitted(theta)), layer.refitted(theta))


@pytest.mark.parametrize("single_logit", [False, True])
def test_separable_samples_come_to_an_end(single_logit: bool) -> None:
    """Without a ridge there is no optimum: the loss goes to 0, and nothing overflows."""
    features = torch.tensor([[-2.0], [-1.0], [1.0], [3.0], [4.0]])
    layer = OutputLayerProblem.of(features, torch.tensor([0, 0, 1, 1, 1]), single_logit=single_logit)
    theta = layer.refitted(torch.zeros(1 if single_logit else 2, 2, **DOUBLE))
    assert bool(torch.isfinite(theta).all()) and float(layer.loss(theta)) < 1e-6


# Size.


@pytest.fixture
def every_layer_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairtrim.unlearning.output_layer_problem, "_MAX_PARAMETERS", 0)


@pytest.mark.parametrize("name", CASES)
def test_products_with_the_hessian(name: str) -> None:
    layer, theta = _problem(name)
    hessian, product = layer.hessian(theta), layer.product(theta)
    for seed in range(3):
        direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)
        torch.testing.assert_close(product(direction).reshape(-1), hessian @ direction.reshape(-1), **CLOSE)
    assert layer.mean_of_diagonal(theta) == pytest.approx(float(hessian.diagonal().mean()))


@pytest.mark.parametrize("name", CASES)
def test_the_preconditioner_is_the_inverse_of_a_kronecker_product(name: str) -> None:
    layer, theta = _problem(name)
    weight = torch.ones(len(layer.target), **DOUBLE) if layer.weight is None else layer.weight
    p = layer.scores(theta).sigmoid() if layer.single_logit else layer.scores(theta).softmax(1)
    spread, moment = (
        torch.zeros(len(theta), len(theta), **DOUBLE),
        torch.zeros(theta.shape[1], theta.shape[1], **DOUBLE),
    )
    for w, q, h in zip(weight / weight.sum(), p, layer.features, strict=True):
        spread += w * (q * (1 - q) if layer.single_logit else torch.diag(q) - torch.outer(q, q))
        moment += w * torch.outer(h, h)
    matrix = torch.kron(spread, moment) + (layer.ridge + 0.05) * torch.eye(theta.numel(), **DOUBLE)
    right = torch.randn(theta.shape, generator=torch.Generator().manual_seed(3), **DOUBLE)
    expected = torch.linalg.solve(matrix, right.reshape(-1)).reshape(theta.shape)
    torch.testing.assert_close(layer.nearly_inverse(theta, 0.05)(right, 0.0), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("damping", [1e-8, 0.1])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("every_layer_is_large")
def test_large_layers_are_solved_like_small_ones(name: str, damping: float) -> None:
    """Gradients have no part in the null space of the Hessian, in which rounding alone decides."""
    layer, theta = _problem(name)
    right, hessian = layer.gradient(theta), layer.hessian(theta)
    found = layer.solved(theta, right, damping=damping)
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), **DOUBLE)
    assert found.residual <= 1e-8 and 0 < found.iterations <= 4 * theta.numel()
    residual = right.reshape(-1) - damped @ found.value.reshape(-1)
    assert float(residual.norm() / right.norm()) <= 2e-8
    factor, _ = damped_cholesky(hessian, damping=damping)
    expected = torch.cholesky_solve(right.reshape(-1, 1), factor).reshape(theta.shape)
    torch.testing.assert_close(found.value, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["single logit, weights, ridge", "five scores, weights, ridge"])
@pytest.mark.usefixtures("every_layer_is_large")
def test_a_penalty_is_added_to_the_hessian(name: str) -> None:
    layer, theta = _problem(name)
    root = torch.randn(theta.shape[1], 2, generator=torch.Generator().manual_seed(4), **DOUBLE)
    centring = torch.eye(len(theta), **DOUBLE) - (1 / len(theta) if len(theta) > 1 else 0)
    right = torch.randn(theta.shape, generator=torch.Generator().manual_seed(2), **DOUBLE)
    solved = layer.solver(theta, apart=root @ root.T)
    for strength in (0.0, 0.1, 50.0):
        found, matrix = solved(right, strength), strength * torch.kron(centring, root @ root.T)
        expected = torch.linalg.solve(layer.hessian(theta) + matrix, right.reshape(-1)).reshape(theta.shape)
        assert found.residual <= 1e-8
        torch.testing.assert_close(found.value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["single logit, weights, ridge", "five scores, weights, ridge"])
@pytest.mark.usefixtures("every_layer_is_large")
def test_large_layers_are_refitted_like_small_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, theta = _problem(name)
    large = layer.refitted(theta)
    monkeypatch.setattr(fairtrim.unlearning.output_layer_problem, "_MAX_PARAMETERS", 100)
    torch.testing.assert_close(large, layer.refitted(theta), rtol=1e-7, atol=1e-8)


def test_a_layer_of_51_300_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Hessian would take 21 GB."""
    monkeypatch.setattr(OutputLayerProblem, "hessian", None)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(150, 512, generator=generator).relu()
    target = torch.randint(0, 100, (150,), generator=generator)
    layer = OutputLayerProblem.of(features, target, ridge=1e-2)
    theta = 0.02 * torch.randn(100, 513, generator=generator, **DOUBLE)
    right = torch.randn(theta.shape, generator=generator, **DOUBLE)
    found = layer.solved(theta, right)
    residual = right - layer.product(theta)(found.value)
    assert float(residual.norm() / right.norm()) < 1e-6
    assert found.residual <= 1e-8


@pytest.mark.usefixtures("every_layer_is_large")
def test_a_rough_solution_says_what_was_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, theta = _problem("five scores, weights, ridge")
    right = torch.randn(theta.shape, generator=torch.Generator().manual_seed(2), **DOUBLE)
    few = partial(conjugate_gradients, max_iterations=2)
    monkeypatch.setattr(fairtrim.unlearning.output_layer_problem, "conjugate_gradients", few)
    found = layer.solved(theta, right)
    left = right - layer.product(theta)(found.value)
    assert found.iterations == 2 and found.residual == pytest.approx(float(left.norm() / right.norm()), rel=1e-4)
    with pytest.warns(RuntimeWarning, match=rf"is rough: after 2 iter.*residual is {found.residual:.2g}; 1e-08 was"):
        layer.solve(theta, right)
