"""Preference of chosen over rejected answers: DPO and its relatives."""

import torch
from torch import Tensor, nn

from fivefold.nn.losses import IGNORE_INDEX
from fivefold.objectives.answer_logps import answer_logps
from fivefold.objectives.objective import Batch, LossTerms, TokenCounts
from fivefold.objectives.preference_losses import preference_loss, rewards
from fivefold.objectives.settings import PreferenceLossSettings


class PreferenceObjective:
    """Sum over pairs of a preference loss.

    Batches are those of `answer_logps`, with `num_tokens` [P, 2] of each answer and, if the loss compares with a
    reference, `reference_logps` [P, 2], unless the reference itself is given.

    Args:
        settings: which loss.
        reference: the model to compare with, to be asked at every step; None where the batches say what it said, or
            where the loss needs none.
    """

    unit = "pairs"
    others = (
        "rewards_chosen",
        "rewards_rejected",
        "reward_margin",
        "reward_accuracy",
        "logp_chosen",
        "logp_rejected",
        "tokens_chosen",
        "tokens_rejected",
    )

    def __init__(self, settings: PreferenceLossSettings, reference: nn.Module | None = None) -> None:
        self._settings = settings
        self._reference = reference

    def count(self, batch: Batch) -> int:
        """Pairs."""
        return len(batch["num_tokens"])

    def count_tokens(self, batch: Batch) -> TokenCounts:
        """Prompts and answers, each prompt once."""
        inputs, input_positions = int((batch["segments"] != 0).sum()), batch["segments"].numel()
        if "position_ids" in batch:
            return TokenCounts(inputs, input_positions)
        labels = batch["labels"]
        return TokenCounts(inputs, input_positions, int((labels != IGNORE_INDEX).sum()), labels.numel())

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Run the model (bare or wrapped for several processes) on one micro-batch."""
        num_tokens, reference_logps = batch["num_tokens"], batch.get("reference_logps")
        if self._reference is not None:
            with torch.no_grad():
                reference_logps = answer_logps(self._reference, batch)
        logps = answer_logps(model, batch)
        arguments = (reference_logps, num_tokens, self._settings)
        loss = preference_loss(logps, *arguments).sum()
        logps = logps.detach()
        return LossTerms(loss, loss.detach(), _measured(logps, rewards(logps, *arguments), num_tokens))


def _measured(logps_P2: Tensor, rewards_P2: Tensor, num_tokens_P2: Tensor) -> Tensor:
    """Sums of `PreferenceObjective.others` over the pairs."""
    margins = rewards_P2[:, 0] - rewards_P2[:, 1]
    # At the start of DPO all margins are 0, up to rounding: half of the pairs count as right then.
    is_right = 0.5 + 0.5 * margins.sign()
    columns = [rewards_P2, margins[:, None], is_right[:, None], logps_P2, num_tokens_P2]
    return torch.cat([column.to(logps_P2.dtype) for column in columns], 1).sum(0)
