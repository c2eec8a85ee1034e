"""The parameters of a model by what they are to an optimizer."""

from collections.abc import Iterable, Mapping, Sequence
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


def query_lr_factors(model: nn.Module) -> dict[int, float]:
    """By what to multiply the learning rate of a T5's query projections, for steps of a fixed size: head_dim^-1/2.

    T5 does not divide scores by sqrt(head_dim) but starts q as much smaller. What moves every matrix by the same
    length, as Muon does, would move these as much too far, and attention would be all or nothing within some steps.

    Returns:
        The factor by the id of each parameter; nothing for any other model, and for a T5 that normalises queries.
    """
    config = getattr(model, "config", None)
    head_dim = getattr(config, "d_kv", None)
    if head_dim is None or getattr(config, "qk_norm", False):
        return {}
    queries = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "q"]
    return {id(parameter): head_dim**-0.5 for module in queries for parameter in module.parameters()}


def build_groups(
    kinds: Iterable[tuple[Sequence[Tensor], float, float, dict[str, Any]]],
    lr_factors: Mapping[int, float] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for a `torch.optim.Optimizer`, those without parameters left out.

    Args:
        kinds: parameters, their learning rate, their weight decay, and what else belongs in their group.
        lr_factors: by the ids of parameters that get a group of their own, what multiplies its learning rate.

    Returns:
        Groups with `lr`, `base_lr` (what a schedule multiplies) and `weight_decay`.
    """
    groups = []
    for params, lr, weight_decay, more in kinds:
        by_factor: dict[float, list[Tensor]] = {}
        for param in params:
            by_factor.setdefault((lr_factors or {}).get(id(param), 1.0), []).append(param)
        for factor, alike in by_factor.items():
            rate = lr * factor
            groups.append({"params": alike, "lr": rate, "base_lr": rate, "weight_decay": weight_decay, **more})
    return groups
