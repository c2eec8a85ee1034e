"""An objective with AdaLoRA's penalty, once a step however the batch is divided."""

from torch import nn

from fivefold.adapters.adalora import orthogonality
from fivefold.objectives.objective import Batch, LossTerms, Objective, TokenCounts


class WithOrthogonality:
    """Another objective's terms, the penalty added to each of them: their mean then holds it once."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.unit, self.others = objective.unit, objective.others

    def count(self, batch: Batch) -> int:
        """As the other objective."""
        return self._objective.count(batch)

    def count_tokens(self, batch: Batch) -> TokenCounts:
        """As the other objective."""
        return self._objective.count_tokens(batch)

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        """What is logged and compared stays without the penalty."""
        terms = self._objective(model, batch)
        return terms._replace(loss_sum=terms.loss_sum + self.count(batch) * orthogonality(model))
