"""Losses, rewards and gradients of a tiny LLaMA against TRL's DPOTrainer (extra [parity]); T5's has no home there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fivefold.data.loader import tensors
from fivefold.data.preference_pairs import PreferenceSource, TokenPairs
from fivefold.objectives.answer_logps import answer_logps
from fivefold.objectives.preference import PreferenceObjective
from fivefold.objectives.settings import PreferenceLossSettings

WORDS = ("is", "the", "tea", "hot", "cold", "good", "bad", "very", "today", "here", "yes", "no")
NUM_PAIRS = 6


def tokenizer_of_words() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: number for number, word in enumerate(("<pad>", "</s>", *WORDS))}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")


def texts() -> dict[str, list[str]]:
    generator = np.random.default_rng(0)

    def some(longest: int, space: str) -> list[str]:
        lengths = generator.integers(1, longest, NUM_PAIRS)
        return [space + " ".join(generator.choice(WORDS, length)) for length in lengths]

    # TRL puts the end mark right behind an answer, and these tokens end where a blank is.
    answers = {name: [f"{text} " for text in some(9, " ")] for name in ("chosen", "rejected")}
    return {"prompt": some(6, ""), **answers}


def llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=2 + len(WORDS), **ids, **shape))
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.5)  # or all answers would be equally likely
    return model


def trainer_of(loss_type: str, folder: Path) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    settings = PreferenceLossSettings(loss_type)  # type: ignore[arg-type]
    arguments = DPOConfig(
        output_dir=str(folder),
        loss_type=[loss_type],
        beta=settings.strength,
        label_smoothing=settings.label_smoothing if loss_type == "robust" else 0.0,
        per_device_train_batch_size=NUM_PAIRS,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        max_steps=1,
        report_to=[],
    )
    data = Dataset.from_dict(texts())
    return DPOTrainer(llama(0), llama(1), args=arguments, train_dataset=data, processing_class=tokenizer_of_words())


def pairs_in(batch: dict[str, torch.Tensor]) -> TokenPairs:
    """What TRL's batch holds: the rows with chosen answers, then those with rejected ones."""
    prompts, answers = [], []
    for ids, mask, is_answer in zip(batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True):
        prompts.append(ids[(mask == 1) & (is_answer == 0)].numpy().astype(np.int32))
        answers.append(ids[is_answer == 1].numpy().astype(np.int32))
    assert all(answer[-1] == 1 for answer in answers)
    return TokenPairs(prompts[:NUM_PAIRS], answers[:NUM_PAIRS], answers[NUM_PAIRS:])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loss_type", ["sigmoid", "sigmoid_norm", "ipo", "hinge", "robust"])
def test_a_step_of_dpo(loss_type, tmp_path):
    trainer = trainer_of(loss_type, tmp_path)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.train()
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()
    logged = {name: values[0] for name, values in trainer._metrics["train"].items()}

    policy, reference = llama(0), llama(1)
    objective = PreferenceObjective(PreferenceLossSettings(loss_type))  # type: ignore[arg-type]
    pairs = pairs_in(batch)
    with torch.no_grad():
        plain = PreferenceSource(pairs, "llama", pad_id=0, seed=0, shuffle=False)
        reference_logps = answer_logps(reference, tensors(plain.batch(np.arange(NUM_PAIRS)))).numpy()
    capacity = (int(pairs.row_lengths("llama").max()) * 2,)
    source = PreferenceSource(pairs, "llama", pad_id=0, seed=0, capacity=capacity, reference_logps=reference_logps)
    terms = objective(policy, tensors(source.batch(np.arange(source.samples_per_epoch or 0))))
    (terms.loss_sum / NUM_PAIRS).backward()

    assert float(terms.loss_sum / NUM_PAIRS) == pytest.approx(float(expected), rel=1e-5)
    means = dict(zip(objective.others, (terms.other_sums / NUM_PAIRS).tolist(), strict=True))
    assert means["logp_chosen"] == pytest.approx(logged["logps/chosen"], rel=1e-5)
    assert means["logp_rejected"] == pytest.approx(logged["logps/rejected"], rel=1e-5)
    if loss_type not in ("sigmoid_norm", "ipo"):  # whose rewards TRL logs undivided, unlike those in its loss
        assert means["rewards_chosen"] == pytest.approx(logged["rewards/chosen"], rel=1e-5)
        assert means["rewards_rejected"] == pytest.approx(logged["rewards/rejected"], rel=1e-5)
        assert means["reward_margin"] == pytest.approx(logged["rewards/margins"], rel=1e-5)
        assert means["reward_accuracy"] == pytest.approx(logged["rewards/accuracies"])
    theirs = dict(trainer.model.named_parameters())
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None
        scale = float(theirs[name].grad.abs().max())
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-5, atol=1e-5 * scale)
