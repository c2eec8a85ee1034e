"""What `fivefold dpo` trains on, and against what."""

import logging
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fivefold.commands.stages.stage import Task
from fivefold.corpus.settings import CorpusSettings
from fivefold.data.build import EVALUATION_SEED
from fivefold.data.dialogues import padding_id
from fivefold.data.preference_data import build_preferences, row_capacity
from fivefold.data.preference_pairs import PreferenceSource, TokenPairs
from fivefold.data.settings import BatchSettings, DialogueSettings
from fivefold.errors import ConfigError
from fivefold.models.family import stored_family
from fivefold.models.load import load_model
from fivefold.models.settings import Family, ModelSettings
from fivefold.objectives.answer_logps import check_answers_apart
from fivefold.objectives.preference import PreferenceObjective
from fivefold.objectives.settings import PreferenceLossSettings
from fivefold.tokenizer.chat_format import ChatFormat
from fivefold.tokenizer.load import load_tokenizer, tokenizer_fingerprint
from fivefold.training.distributed import this_process
from fivefold.training.divergence import Sampling, kl_per_token
from fivefold.training.reference import ReferencePass, reference_cache, reference_logps
from fivefold.training.settings import LoopSettings, ReferenceSettings

log = logging.getLogger("fivefold")


def build_preference_task(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    model: ModelSettings,
    corpus: CorpusSettings,
    data: DialogueSettings,
    loss: PreferenceLossSettings,
    reference: ReferenceSettings,
    batch: BatchSettings,
    loop: LoopSettings,
) -> Task:
    """Read the pairs, ask the reference about them, and lay them out.

    Args:
        network: the model that learns.
        model: where it came from, which is what it is compared with unless `reference` names another model.

    Raises:
        ConfigError, DataError, ModelError: data or models that do not work, or do not go together.
    """
    family: Family = model.model_type or "t5"
    chat, processes = ChatFormat(tokenizer, family), this_process()
    if family == "llama":
        check_answers_apart(network)
    pairs = build_preferences(corpus, data, chat)
    log.info("%s pairs to train on, %s", f"{len(pairs.training):,}", pairs.note)
    sets = [pairs.training] if pairs.validation is None else [pairs.training, pairs.validation]
    name = reference.reference_model or str(model.model)
    _check_reference(name, family, tokenizer)

    def open_reference() -> PreTrainedModel:
        opened = load_model(name).eval().requires_grad_(False)
        return opened.to(dtype=torch.bfloat16) if loop.pure_bf16 else opened  # type: ignore[call-arg]

    logps: list[np.ndarray | None] = [None] * len(sets)
    live = open_reference().to(processes.device) if reference.reference == "live" else None  # type: ignore[arg-type]
    pad_id = padding_id(chat)
    capacity = row_capacity(data, family) if data.packing else _longest(sets, family)
    if loss.needs_reference and live is None:
        how = ReferencePass(family, pad_id, capacity, batch.batch_size, getattr(torch, loop.dtype))
        logps = [*reference_logps(open_reference(), sets, how, reference_cache(reference.reference_cache), processes)]
    layout = {"family": family, "pad_id": pad_id}
    training = PreferenceSource(
        pairs.training,
        **layout,
        seed=loop.seed,
        capacity=capacity if data.packing else None,
        reference_logps=logps[0],
    )
    objective = PreferenceObjective(loss, live)
    if pairs.validation is None:
        return Task(objective, training, None)
    # One pair a row: runs with and without packing are measured on the same ones.
    validation = PreferenceSource(
        pairs.validation, **layout, seed=EVALUATION_SEED, shuffle=False, reference_logps=logps[1]
    )
    prompts = pairs.validation.prompts[: reference.kl_prompts]
    if not prompts:
        return Task(objective, training, validation)
    sampling = Sampling(prompts, reference.kl_tokens, chat.end_ids, pad_id, loop.seed)
    measure = partial(kl_per_token, network, lambda: live or open_reference(), family, sampling, processes=processes)
    return Task(objective, training, validation, lambda step: {"kl": measure(step)})


def _longest(sets: list[TokenPairs], family: Family) -> tuple[int, ...]:
    """Room for the longest pair, so that the reference's rows are no larger than those of training."""
    longest = np.max([pairs.row_lengths(family).max(0) for pairs in sets], axis=0)
    return tuple(map(int, longest))


def _check_reference(name: str, family: Family, tokenizer: PreTrainedTokenizerBase) -> None:
    if stored_family(name) != family:
        raise ConfigError(f"--reference_model {name} is no {family} as --model is, so it cannot read the same pairs.")
    if tokenizer_fingerprint(load_tokenizer(name)) != tokenizer_fingerprint(tokenizer):
        raise ConfigError(
            f"{name}, which the model is compared with, has another tokenizer and cannot read the same tokens; leave "
            "--tokenizer out, or give a --reference_model with the same one."
        )
