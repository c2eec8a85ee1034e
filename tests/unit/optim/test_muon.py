import copy
import io

import pytest
import torch
from torch import nn

from fivefold import T5Config, T5Model
from fivefold.errors import ModelError
from fivefold.nn.low_rank import LowRankLinear
from fivefold.optim.muon import MuonAdamW, muon_groups
from fivefold.optim.parameters import parameter_kinds

SHAPE = {"vocab_size": 32, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 2}
RATES = {"lr": 2e-2, "dense_lr": 3e-3, "weight_decay": 0.1}


class Net(nn.Module):
    """Embedding, a tall, a wide and a low-rank matrix, norm, bias and an output layer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.wide, self.tall = nn.Linear(9, 6, bias=True), nn.Linear(6, 9, bias=False)
        self.low_rank = LowRankLinear(6, 6, 2)
        self.norm = nn.LayerNorm(6, bias=False)
        self.head = nn.Linear(6, 11, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def give_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_matrices_move_as_torchs_muon_and_the_rest_as_torchs_adamw_bit_for_bit():
    ours, theirs = Net(), Net()
    optimizer = MuonAdamW(muon_groups(ours, **RATES), betas=(0.8, 0.95), eps=1e-5)
    hidden, tables, plain = parameter_kinds(theirs)
    muon = torch.optim.Muon(hidden, lr=2e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = [
        torch.optim.AdamW(params, 3e-3, (0.8, 0.95), 1e-5, decay, fused=True)
        for params, decay in ((tables, 0.1), (plain, 0.0))
    ]
    for step in range(5):
        for model in (ours, theirs):
            give_gradients(model, step)
        for each in (optimizer, muon, *adamw):
            each.step()
    for (name, parameter), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(parameter, expected), name


def test_which_parameters_go_where():
    model = Net()
    hidden, tables, plain = muon_groups(model, **RATES)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [group["muon"] for group in (hidden, tables, plain)] == [True, False, False]
    assert [group["lr"] for group in (hidden, tables, plain)] == [2e-2, 3e-3, 3e-3]
    assert all(group["base_lr"] == group["lr"] for group in (hidden, tables, plain))
    assert [group["weight_decay"] for group in (hidden, tables, plain)] == [0.1, 0.1, 0.0]
    assert [names[id(parameter)] for parameter in hidden["params"]] == [
        "wide.weight", "tall.weight", "low_rank.right.weight", "low_rank.left.weight",
    ]  # fmt: skip
    assert [names[id(parameter)] for parameter in tables["params"]] == ["embedding.weight", "head.weight"]
    assert [names[id(parameter)] for parameter in plain["params"]] == ["wide.bias", "norm.weight"]


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_kinds_of_a_t5(is_tied):
    model = T5Model(T5Config(**SHAPE, tie_word_embeddings=is_tied))
    model.encoder.block[0].requires_grad_(False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    hidden, tables, plain = ([names[id(parameter)] for parameter in kind] for kind in parameter_kinds(model))
    assert tables == (["shared.weight"] if is_tied else ["shared.weight", "lm_head.weight"])
    assert len(hidden) == 10  # the decoder's two attentions with four matrices each, and wi and wo
    assert all(name.startswith("decoder.block.0.layer") for name in hidden)
    assert sum("relative_attention_bias" in name for name in plain) == 1
    assert all("norm" in name or "relative_attention_bias" in name for name in plain)


def test_a_step_after_saving_and_loading_is_the_uninterrupted_one_bit_for_bit():
    whole = Net()
    optimizer = MuonAdamW(muon_groups(whole, **RATES))
    for step in range(3):
        give_gradients(whole, step)
        optimizer.step()
    resumed = copy.deepcopy(whole)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = MuonAdamW(muon_groups(resumed, **RATES))
    second.load_state_dict(torch.load(file, weights_only=True))
    for step in range(3, 6):
        for model, each in ((whole, optimizer), (resumed, second)):
            give_gradients(model, step)
            each.step()
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))


def test_the_step_count_stays_float32_where_weights_are_bfloat16():
    # From 256 on bfloat16 cannot count by one.
    model = Net().bfloat16()
    optimizer = MuonAdamW(muon_groups(model, **RATES))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps = [state["step"] for state in optimizer.state.values() if "step" in state]
    assert steps
    assert all(step.dtype == torch.float32 and step == 1 for step in steps)
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_parameters_without_a_gradient_stay_and_get_no_state():
    model = Net()
    optimizer = MuonAdamW(muon_groups(model, **RATES))
    give_gradients(model, 0)
    left_out = [model.wide.weight, model.embedding.weight, model.norm.weight]
    for parameter in left_out:
        parameter.grad = None
    before = copy.deepcopy(left_out)
    optimizer.step()
    assert all(map(torch.equal, left_out, before))
    assert not any(parameter in optimizer.state for parameter in left_out)
    assert len(optimizer.state) == len(list(model.parameters())) - 3
    optimizer.zero_grad()
    optimizer.step()  # nothing at all to move


def test_a_step_of_muon_has_the_rms_of_a_step_of_adam():
    # Every singular value of the step is about 1 (torch's five iterations leave .7 to 1.2), so its RMS is about .2 lr.
    parameter = nn.Parameter(torch.zeros(64, 256))
    parameter.grad = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    MuonAdamW([{"params": [parameter], "muon": True}], lr=0.1).step()
    assert 0.7 < float(parameter.detach().square().mean().sqrt()) / (0.2 * 0.1) < 1.2


def test_a_closure_is_called_and_its_loss_returned():
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = MuonAdamW([{"params": [parameter], "muon": True}])

    def closure() -> float:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert optimizer.step(closure) < 4.0


def test_what_cannot_be_is_one_sentence():
    with pytest.raises(ModelError, match="Muon moves matrices only, but was given a tensor of shape \\(3,\\)"):
        MuonAdamW([{"params": [nn.Parameter(torch.ones(3))], "muon": True}])
    with pytest.raises(ModelError, match="No parameter of the model trains"):
        muon_groups(Net().requires_grad_(False), **RATES)
