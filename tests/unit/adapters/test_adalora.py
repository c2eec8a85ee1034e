"""AdaLoRA in the loop: peft's own schedule step by step, resumed or not, and the penalty once a step."""

import copy

import pytest
import torch
from tiny import LLAMA_BATCH, MODELS, llama

from fivefold.adapters.adalora import is_adalora, orthogonality, prune_ranks
from fivefold.adapters.attach import attach_adapter
from fivefold.adapters.peft_warnings import quiet_peft
from fivefold.errors import ConfigError
from fivefold.objectives.causal import CausalObjective
from fivefold.objectives.orthogonality import WithOrthogonality
from fivefold.objectives.settings import LossSettings

FIELDS = {"peft_type": "ADALORA", "init_r": 6, "target_r": 2, "tinit": 2, "tfinal": 3, "deltaT": 2, "lora_alpha": 8}
STEPS = 12


def adapted(**changes):
    with quiet_peft():
        return attach_adapter(llama(), FIELDS | changes, "base", seed=0)


def optimizer_of(model):
    return torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2, fused=True)


def step(model, optimizer):
    torch.manual_seed(0)
    with quiet_peft():
        model.train()(**LLAMA_BATCH).loss.backward()
    optimizer.step()


def state_of(model):
    return {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}


def ranks(model):
    return sum(int(one.count_nonzero()) for name, one in model.named_parameters() if "lora_E" in name)


def test_ranks_fall_as_they_do_when_pefts_allocator_is_called_by_hand():
    ours, theirs = adapted(), adapted()
    assert is_adalora(ours)
    assert not is_adalora(llama())
    our_optimizer, their_optimizer = optimizer_of(ours), optimizer_of(theirs)
    prune_ranks(ours, our_optimizer, STEPS)
    theirs.base_model.rankallocator.set_total_step(STEPS)
    for number in range(1, STEPS + 1):
        step(ours, our_optimizer)
        step(theirs, their_optimizer)
        theirs.base_model.update_and_allocate(number)
        expected = state_of(theirs)
        for name, value in state_of(ours).items():
            assert torch.equal(value, expected[name]), (number, name)
        our_optimizer.zero_grad()
        their_optimizer.zero_grad()
    assert ranks(ours) == 2 * 2  # target_r in each of two layers


@pytest.mark.parametrize("stop", [1, 5, 8, 10])
def test_resumed_equals_uninterrupted(stop):
    whole, resumed = adapted(), adapted()
    optimizer = optimizer_of(whole)
    prune_ranks(whole, optimizer, STEPS)
    for number in range(STEPS):
        if number == stop:
            saved = copy.deepcopy((state_of(whole), optimizer.state_dict()))
        step(whole, optimizer)
        optimizer.zero_grad()
    resumed.load_state_dict(saved[0], strict=False)
    optimizer = optimizer_of(resumed)
    prune_ranks(resumed, optimizer, STEPS)
    optimizer.load_state_dict(saved[1])
    for _ in range(stop, STEPS):
        step(resumed, optimizer)
        optimizer.zero_grad()
    expected = state_of(whole)
    assert all(torch.equal(value, expected[name]) for name, value in state_of(resumed).items())


@pytest.mark.parametrize("where", MODELS)
def test_the_penalty_is_what_peft_adds_to_a_loss_of_its_own(where):
    build, batch = MODELS[where]
    with quiet_peft():
        model = attach_adapter(build(), {"peft_type": "ADALORA", "orth_reg_weight": 0.3}, "base", seed=0).eval()
        torch.testing.assert_close(model(**batch).loss - model.get_base_model()(**batch).loss, orthogonality(model))


def test_the_penalty_counts_once_however_the_batch_is_divided():
    model, objective = adapted().eval(), WithOrthogonality(CausalObjective(LossSettings()))
    ids = torch.arange(2, 34).reshape(4, 8)
    batch = {"input_ids": ids, "labels": ids}
    gradients = []
    for parts in ([slice(0, 4)], [slice(0, 1), slice(1, 4)]):
        total, nll = objective.count(batch), torch.zeros(())
        for part in parts:
            terms = objective(model, {name: value[part] for name, value in batch.items()})
            (terms.loss_sum / total).backward()
            nll += terms.nll_sum
        gradients.append([one.grad.clone() for one in model.parameters() if one.grad is not None])
        model.zero_grad()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(nll, CausalObjective(LossSettings())(model, batch).nll_sum)
    assert objective.count_tokens(batch).total == 32


def test_a_schedule_without_room_is_refused():
    model = adapted(tinit=5, tfinal=5)
    with pytest.raises(ConfigError, match="tinit 5 and tfinal 5 leave none of the run's 10 steps"):
        prune_ranks(model, optimizer_of(model), 10)
