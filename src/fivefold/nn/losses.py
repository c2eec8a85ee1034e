"""Cross-entropy as a sum over tokens, with z-loss and label smoothing, without a float32 copy of all logits."""

from typing import Any

import torch
from torch import Tensor

# Logits handled at once, in elements: 16 MB in float32.
_CHUNK_LOGITS = 1 << 22

IGNORE_INDEX = -100


def cross_entropy_sum(
    logits: Tensor, labels: Tensor, *, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Sum over tokens of -log p(label) + z_loss * log(Z)^2, and the part of it that is plain cross-entropy.

    With label smoothing s the target is (1 - s) * one-hot + s / V, as in `torch.nn.functional.cross_entropy`.
    Source: z-loss from Mesh TensorFlow / T5X (`z_loss`, 1e-4 in T5's recipes).

    Args:
        logits: [..., V], any floating type; computed in float32 or wider.
        labels: [...] int64, `IGNORE_INDEX` (-100) for positions that do not count.

    Returns:
        (loss, nll): scalars in float32 or wider. `loss` carries the gradient; `nll` is detached and free of z-loss and
        smoothing, the number whose mean is a held-out loss.
    """
    vocab_size = logits.shape[-1]
    return _CrossEntropySum.apply(logits.reshape(-1, vocab_size), labels.reshape(-1), z_loss, label_smoothing)


class _CrossEntropySum(torch.autograd.Function):
    """Works through the tokens in chunks; the gradient reuses the log-sum-exp and is written in the logits' type."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, z_loss: float, label_smoothing: float
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        log_z = logits.new_zeros(labels.shape, dtype=wide)
        loss = logits.new_zeros((), dtype=wide)
        nll = logits.new_zeros((), dtype=wide)
        for rows in _chunks(logits):
            counted = labels[rows] != IGNORE_INDEX
            chunk = logits[rows].to(wide)
            log_z[rows] = chunk_log_z = torch.logsumexp(chunk, -1)
            picked = chunk.gather(-1, labels[rows].clamp(min=0).unsqueeze(-1)).squeeze(-1)
            token_nll = (chunk_log_z - picked) * counted
            nll += token_nll.sum()
            if label_smoothing:
                even = (chunk_log_z - chunk.mean(-1)) * counted
                token_nll = (1 - label_smoothing) * token_nll + label_smoothing * even
            loss += token_nll.sum() + z_loss * (chunk_log_z.square() * counted).sum()
        ctx.save_for_backward(logits, labels, log_z)
        ctx.weights = (z_loss, label_smoothing)
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logits, labels, log_z = ctx.saved_tensors
        z_loss, label_smoothing = ctx.weights
        vocab_size = logits.shape[-1]
        grad_logits = torch.empty_like(logits)
        for rows in _chunks(logits):
            counted = (labels[rows] != IGNORE_INDEX).unsqueeze(-1)
            chunk_log_z = log_z[rows].unsqueeze(-1)
            grad = (logits[rows] - chunk_log_z).exp_()  # float32: the other operand is
            if z_loss:
                grad.mul_(1 + 2 * z_loss * chunk_log_z)
            if label_smoothing:
                grad.sub_(label_smoothing / vocab_size)
            target = labels[rows].clamp(min=0).unsqueeze(-1)
            grad.scatter_add_(-1, target, torch.full_like(chunk_log_z, label_smoothing - 1))
            grad_logits[rows] = grad.mul_(counted * grad_loss)
        return grad_logits, None, None, None


def _chunks(logits: Tensor) -> list[slice]:
    num_tokens, vocab_size = logits.shape
    step = max(1, _CHUNK_LOGITS // vocab_size)
    return [slice(start, start + step) for start in range(0, num_tokens, step)]
