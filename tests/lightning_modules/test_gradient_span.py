"""The share of a gradient in a span: exact compared with plain linear algebra, sketched within the stated error."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retain.lightning_modules.gradient_span import Sketch, batch_gradient, share_in_span, share_inside, span_basis
from retain.lightning_modules.models import add_dropout
from tests.lightning_modules.tiny_models import random_sequences, small_model

EXACT = Sketch(None)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 8), st.integers(9, 60), st.integers(0, 10**6))
def test_the_share_equals_that_of_a_least_squares_fit(count: int, width: int, seed: int) -> None:
    gradients, gradient = gaussian(count, width, seed=seed), gaussian(width, seed=seed + 1)
    matrix, vector = gradients.double().numpy(), gradient.double().numpy()
    weights = np.linalg.lstsq(matrix.T, vector, rcond=None)[0]
    fitted = matrix.T @ weights
    share = share_inside(span_basis(gradients), gradient)
    assert share == pytest.approx(fitted @ fitted / (vector @ vector), rel=1e-3, abs=1e-5)


def test_a_gradient_in_the_span_has_share_one_and_an_orthogonal_gradient_zero() -> None:
    gradients = torch.cat([gaussian(5, 40), torch.zeros(5, 60)], dim=1)
    inside = gaussian(5, seed=2) @ gradients
    outside = torch.cat([torch.zeros(40), gaussian(60, seed=3)])
    basis = span_basis(gradients)
    assert share_inside(basis, inside) == pytest.approx(1, abs=1e-5)
    assert share_inside(basis, outside) == 0
    assert share_inside(basis, 3 * inside / inside.norm() + 4 * outside / outside.norm()) == pytest.approx(9 / 25)


def test_repeated_rescaled_and_zero_gradients_add_no_direction() -> None:
    gradients = gaussian(3, 50)
    basis = span_basis(torch.stack([*gradients, 2 * gradients[0], gradients[1] - gradients[1], 1e-6 * gradients[2]]))
    assert len(basis) == 3
    assert torch.allclose(basis @ basis.T, torch.eye(3), atol=1e-5)
    assert len(span_basis(torch.zeros(2, 50))) == 0
    assert share_inside(span_basis(torch.zeros(2, 50)), gradients[0]) == 0


def test_a_sketch_keeps_shares_within_its_stated_error_and_is_deterministic() -> None:
    width, size, count = 40_000, 4_096, 8
    gradients = gaussian(count, width)
    basis, sketch = span_basis(gradients), Sketch(size)
    sketched = span_basis(torch.stack([sketch(gradient.split(7_000)) for gradient in gradients]))
    for number, share in enumerate((0.0, 0.1, 0.5, 1.0)):
        inside = basis.T @ gaussian(count, seed=number)
        outside = gaussian(width, seed=10 + number)
        outside -= basis.T @ (basis @ outside)
        gradient = share**0.5 * inside / inside.norm() + (1 - share) ** 0.5 * outside / outside.norm()
        assert share_inside(basis, gradient) == pytest.approx(share, abs=1e-4)
        # Four standard deviations, and the apparent share of an orthogonal gradient.
        error = 4 * (2 / size) ** 0.5 + count / size
        assert share_inside(sketched, sketch(gradient.split(7_000))) == pytest.approx(share, abs=error)
    assert torch.equal(sketch(gradients[0].split(7_000)), sketch(gradients[0].split(7_000)))
    assert not torch.equal(sketch([gradients[0]]), Sketch(size, seed=1)([gradients[0]]))


def test_a_batch_gradient_is_that_of_the_mean_loss_without_dropout_for_any_micro_batch() -> None:
    model, batch = small_model(), random_sequences(6)
    model.train()
    add_dropout(model, 0.5)
    whole = batch_gradient(model, batch, EXACT, micro_batch=6)
    parts = batch_gradient(model, batch, EXACT, micro_batch=4)
    assert torch.allclose(whole, parts, atol=1e-6)
    model.eval()
    model(input_ids=batch, labels=batch).loss.backward()
    plain = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
    assert torch.allclose(whole, plain, atol=1e-6)
    assert len(whole) == sum(parameter.numel() for parameter in model.parameters())


def test_gradients_of_the_same_data_lie_in_the_span_and_those_of_other_data_partly() -> None:
    model = small_model()
    batches = list(random_sequences(16).split(4))
    others = list(random_sequences(8, seed=9).remainder(10).split(4))
    own = share_in_span(model, batches, batches[:2], EXACT, micro_batch=4)
    other = share_in_span(model, batches, others, EXACT, micro_batch=4)
    assert own.shares == pytest.approx((1, 1), abs=1e-4)
    assert own.rank == other.rank == 4
    assert 0 < other.mean < 0.9
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
