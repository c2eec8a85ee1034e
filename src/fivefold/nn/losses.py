"""Cross-entropy, as a sum or token by token, with z-loss and label smoothing, without a float32 copy of all logits."""

from typing import Any

import torch
from torch import Tensor

# Logits handled at once, in elements: 4 MB in float32. Four times as many take twice as long: they leave the cache.
_CHUNK_LOGITS = 1 << 20

IGNORE_INDEX = -100


def cross_entropy_sum(
    logits: Tensor,
    labels: Tensor,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    overwrite_logits: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sum over tokens of -log p(label) + z_loss * log(Z)^2, and the part of it that is plain cross-entropy.

    With label smoothing s the target is (1 - s) * one-hot + s / V, as in `torch.nn.functional.cross_entropy`.
    Source: z-loss from Mesh TensorFlow / T5X (`z_loss`, 1e-4 in T5's recipes).

    Args:
        logits: [..., V], any floating type; computed in float32 or wider.
        labels: [...] int64, `IGNORE_INDEX` (-100) for positions that do not count.
        overwrite_logits: let the backward pass write the gradient over the logits, for callers that do not read them
            again; it saves a tensor of their size, and a second backward pass is an error.

    Returns:
        (loss, nll): scalars in float32 or wider. `loss` carries the gradient; `nll` is detached and free of z-loss and
        smoothing, the number whose mean is a held-out loss.
    """
    losses, nlls = _cross_entropy(logits, labels, z_loss, label_smoothing, overwrite_logits)
    return losses.sum(), nlls.sum()


def token_logps(logits: Tensor, labels: Tensor, *, overwrite_logits: bool = False) -> Tensor:
    """log p(label) of each token, 0 where there is none.

    Args: as `cross_entropy_sum`.

    Returns:
        [...] in float32 or wider; carries the gradient.
    """
    return -_cross_entropy(logits, labels, 0.0, 0.0, overwrite_logits)[0]


def _cross_entropy(
    logits: Tensor, labels: Tensor, z_loss: float, label_smoothing: float, overwrite_logits: bool
) -> tuple[Tensor, Tensor]:
    """Loss and plain loss of each token, both [...]."""
    flat = logits.reshape(-1, logits.shape[-1])
    losses, nlls = _CrossEntropy.apply(flat, labels.reshape(-1), z_loss, label_smoothing, overwrite_logits)
    return losses.view(labels.shape), nlls.view(labels.shape)


class _CrossEntropy(torch.autograd.Function):
    """Works through the tokens in chunks; the gradient is written in the logits' type."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, z_loss: float, label_smoothing: float, overwrite_logits: bool
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        loss, nll, log_z = (logits.new_zeros(labels.shape, dtype=wide) for _ in range(3))
        for rows in _chunks(logits):
            counted = labels[rows] != IGNORE_INDEX
            target = labels[rows].clamp(min=0).unsqueeze(-1)
            log_p = logits[rows].log_softmax(-1, dtype=wide)
            chunk_nll = -log_p.gather(-1, target).squeeze(-1)
            log_z[rows] = chunk_log_z = logits[rows].gather(-1, target).squeeze(-1) + chunk_nll
            nll[rows] = chunk_nll * counted
            if label_smoothing:
                chunk_nll = (1 - label_smoothing) * chunk_nll - label_smoothing * log_p.mean(-1)
            loss[rows] = (chunk_nll + z_loss * chunk_log_z.square()) * counted
        ctx.save_for_backward(logits, labels, log_z)
        ctx.weights, ctx.overwrite_logits = (z_loss, label_smoothing), overwrite_logits
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logits, labels, log_z = ctx.saved_tensors
        z_loss, label_smoothing = ctx.weights
        vocab_size = logits.shape[-1]
        grad_logits = logits if ctx.overwrite_logits else torch.empty_like(logits)
        for rows in _chunks(logits):
            chunk_log_z = log_z[rows].unsqueeze(-1)
            grad = logits[rows].softmax(-1, dtype=log_z.dtype)
            if z_loss:
                grad.mul_(1 + 2 * z_loss * chunk_log_z)
            if label_smoothing:
                grad.sub_(label_smoothing / vocab_size)
            target = labels[rows].clamp(min=0).unsqueeze(-1)
            grad.scatter_add_(-1, target, torch.full_like(chunk_log_z, label_smoothing - 1))
            grad_logits[rows] = grad.mul_(((labels[rows] != IGNORE_INDEX) * grad_loss[rows]).unsqueeze(-1))
        return grad_logits, None, None, None, None


def _chunks(logits: Tensor) -> list[slice]:
    num_tokens, vocab_size = logits.shape
    step = max(1, _CHUNK_LOGITS // vocab_size)
    return [slice(start, start + step) for start in range(0, num_tokens, step)]
