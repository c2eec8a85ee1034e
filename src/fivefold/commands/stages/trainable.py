"""Which parameters of a trained model learn, and how fast."""

from dataclasses import replace

from transformers import PreTrainedModel

from fivefold.adapters.attach import attach_adapter
from fivefold.adapters.config import read_adapter_config
from fivefold.errors import ConfigError
from fivefold.lowrank.settings import LowRankSettings
from fivefold.models.freeze import freeze
from fivefold.models.settings import ModelSettings, TrainableSettings
from fivefold.training.optimizers import FACTOR_OPTIMIZERS
from fivefold.training.settings import OptimizerSettings

FINE_TUNING_SHARE = 0.1
"""Of the rate that an optimizer pretrains with: what has been learned shall mostly stay. For adamw that is 1e-4, for
adafactor the 1e-3 with which T5 was fine-tuned."""
ADAPTER_SHARE = 0.2
"""An adapter starts at nothing and has far to go: 2e-4 for adamw, as in peft's examples."""

PREFERENCE_SHARE = 0.05
"""Of the rate of fine-tuning: few bits tell pairs apart, and larger steps win them at the cost of the language."""


def for_fine_tuning(
    optimizer: OptimizerSettings, model: ModelSettings, trainable: TrainableSettings
) -> OptimizerSettings:
    """The same settings with learning rates filled in that suit weights which are trained already.

    Raises:
        ConfigError: an optimizer of factors for an adapter, or an adapter that cannot be.
    """
    if trainable.adapter_source is not None:
        # Before a large model is opened for nothing.
        read_adapter_config(trainable.adapter_source, is_t5=model.model_type == "t5", say=False)
    if trainable.adapter_source is not None and optimizer.optimizer in FACTOR_OPTIMIZERS:
        raise ConfigError(
            f"--optimizer {optimizer.optimizer} trains low-rank layers, which an adapter leaves alone; give adamw."
        )
    if model.model is None:
        return optimizer
    share = ADAPTER_SHARE if trainable.adapter_source is not None else FINE_TUNING_SHARE
    dense_lr = optimizer.dense_lr
    if dense_lr is None and optimizer.lr is None and optimizer.optimizer != "loraplus":  # which has rates for these
        dense_lr = share * optimizer.peak_dense_lr(is_t5=model.model_type == "t5")
    return replace(optimizer, lr=optimizer.lr or share * optimizer.peak_lr, dense_lr=dense_lr)


def for_preferences(
    optimizer: OptimizerSettings, model: ModelSettings, trainable: TrainableSettings
) -> OptimizerSettings:
    """As `for_fine_tuning`, for preferences: 5e-6 for adamw, 1e-5 in an adapter.

    Raises:
        ConfigError: an optimizer of factors for an adapter.
    """
    tuned = for_fine_tuning(optimizer, model, trainable)
    if optimizer.lr is not None:
        return tuned
    own_dense_lr = tuned.dense_lr is not None and optimizer.dense_lr is None
    dense_lr = PREFERENCE_SHARE * tuned.dense_lr if own_dense_lr and tuned.dense_lr else tuned.dense_lr
    return replace(tuned, lr=PREFERENCE_SHARE * tuned.peak_lr, dense_lr=dense_lr)


def choose_trainable(
    network: PreTrainedModel,
    trainable: TrainableSettings,
    model: ModelSettings,
    low_rank: LowRankSettings,
    seed: int,
) -> PreTrainedModel:
    """The model with some of its parameters frozen, or inside an adapter.

    Raises:
        ConfigError: names that match nothing, or an adapter that does not fit.
    """
    if trainable.freeze:
        freeze(network, trainable.freeze)
    if trainable.adapter_source is None:
        return network
    if model.model is None or low_rank.loro_scope is not None:
        raise ConfigError(
            "An adapter needs a --model that stays as it is in its folder: a fresh model has none, and --loro_scope "
            "makes another one; save that first."
        )
    return attach_adapter(network, trainable.adapter_source, model.model, seed=seed)
