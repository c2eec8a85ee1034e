"""Whether an adapter learns: peft's ways of training nothing are silent."""

from torch import nn

from fivefold.adapters.attach import holds_adapter
from fivefold.errors import ModelError


def check_gradients(model: nn.Module) -> None:
    """After the first backward pass, look for tensors of an adapter that train and got no gradient.

    Args:
        model: with or without an adapter, in DDP or not; without one nothing is checked.

    Raises:
        ModelError: there are some.
    """
    if not holds_adapter(getattr(model, "module", model)):
        return
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    idle = [name for name, parameter in trained.items() if parameter.grad is None]
    if idle:
        raise ModelError(
            f"{len(idle)} of the adapter's {len(trained)} tensors, such as {idle[0]}, got no gradient in the first "
            "step, so they would never learn; leave their layers out of target_modules or modules_to_save."
        )
