"""The parameters of a model by what they are to an optimizer."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from fivefold.errors import ModelError


class ParameterKinds(NamedTuple):
    """The parameters of a model that train, by what they are to a matrix optimizer."""

    hidden: list[nn.Parameter]
    """Matrices between hidden states."""
    tables: list[nn.Parameter]
    """Embeddings and the output layer, whose rows are tokens, and tensors of more than two dimensions."""
    plain: list[nn.Parameter]
    """Norms, biases and relative-position tables, which do not decay."""


def parameter_kinds(model: nn.Module) -> ParameterKinds:
    """Sort the parameters of a model that train; a shared tensor counts once.

    Raises:
        ModelError: no parameter of the model trains.
    """
    # The owner of a tensor tells what it is, not its name: the output layer is lm_head here and embed_out elsewhere.
    rows_are_tokens = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if head := getattr(model, "get_output_embeddings", lambda: None)():
        rows_are_tokens.append(head)
    tables = {id(parameter) for module in rows_are_tokens for parameter in module.parameters()}
    kinds = ParameterKinds([], [], [])
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or "relative_attention_bias" in name:
            kinds.plain.append(parameter)
        elif parameter.ndim > 2 or id(parameter) in tables:
            kinds.tables.append(parameter)
        else:
            kinds.hidden.append(parameter)
    if not any(kinds):
        raise ModelError("No parameter of the model trains: every one of them is frozen.")
    return kinds


def build_groups(kinds: Iterable[tuple[Sequence[Tensor], float, float, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Parameter groups for a `torch.optim.Optimizer`, those without parameters left out.

    Args:
        kinds: parameters, their learning rate, their weight decay, and what else belongs in their group.

    Returns:
        Groups with `lr`, `base_lr` (what a schedule multiplies) and `weight_decay`.
    """
    return [
        {"params": list(params), "lr": lr, "base_lr": lr, "weight_decay": weight_decay, **more}
        for params, lr, weight_decay, more in kinds
        if params
    ]
