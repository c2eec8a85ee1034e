"""Cross-entropy sums against torch's, in float64."""

import pytest
import torch
import torch.nn.functional as F

from fivefold.nn import losses
from fivefold.nn.losses import cross_entropy_sum


@pytest.fixture
def logits_and_labels():
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(4, 9, 50, generator=generator, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(0, 50, (4, 9), generator=generator)
    labels[2, 3:] = -100
    return logits, labels


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("chunk", [1, 300, 10**6])
def test_value_and_gradient_equal_torch(logits_and_labels, label_smoothing, z_loss, chunk, monkeypatch):
    monkeypatch.setattr(losses, "_CHUNK_LOGITS", chunk)
    logits, labels = logits_and_labels
    flat, wanted = logits.flatten(0, 1), labels.flatten()
    expected = F.cross_entropy(flat, wanted, reduction="sum", label_smoothing=label_smoothing)
    expected = expected + z_loss * (flat.logsumexp(-1).square() * (wanted != -100)).sum()

    loss, nll = cross_entropy_sum(logits, labels, z_loss=z_loss, label_smoothing=label_smoothing)

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, F.cross_entropy(flat, wanted, reduction="sum"))
    assert not nll.requires_grad
    (3 * loss).backward()
    (gradient,) = torch.autograd.grad(3 * expected, logits)
    torch.testing.assert_close(logits.grad, gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_not_changed(logits_and_labels, dtype):
    logits, labels = logits_and_labels
    logits = logits.detach().to(dtype).requires_grad_()
    before = logits.detach().clone()
    cross_entropy_sum(logits, labels)[0].backward()
    assert torch.equal(logits.detach(), before)


def test_no_label_at_all_gives_zero():
    logits = torch.randn(2, 3, 7, requires_grad=True)
    loss, nll = cross_entropy_sum(logits, torch.full((2, 3), -100), z_loss=0.1)
    loss.backward()
    assert loss == nll == 0
    assert logits.grad.abs().max() == 0
