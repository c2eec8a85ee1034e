import copy
import io

import pytest
import torch
from torch import Tensor, nn

from fivefold.errors import CheckpointError, ConfigError
from fivefold.optim.galore import GaLoreAdamW, galore_groups, strongest_directions

GALORE = {"rank": 3, "update_proj_gap": 2, "scale": 0.25}


def random_gradients(shape: tuple[int, ...], steps: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Gradients whose singular values lie well apart, so that their directions are well defined."""
    generator = torch.Generator().manual_seed(shape[0])
    decay = torch.diag(0.5 ** torch.arange(shape[1], dtype=torch.float64))
    return [(torch.randn(shape, generator=generator, dtype=torch.float64) @ decay).to(dtype) for _ in range(steps)]


def galore_in_float64(weight, gradients, *, lr, beta1, beta2, eps, weight_decay, rank, gap, scale):
    """Algorithm 2 of the paper with the SVD and full-size products written out."""
    for t, gradient in enumerate(gradients):
        if t % gap == 0:
            left, _, right = torch.linalg.svd(gradient, full_matrices=False)
            basis = right.T[:, :rank] if len(weight) >= weight.shape[1] else left[:, :rank]
            # The sign of a singular vector is free; the moments outlive a renewal, so both sides must choose the same.
            for column in basis.T:
                column *= 1 if column[column.abs().argmax()] > 0 else -1
            if t == 0:
                m = v = torch.zeros(())
        low = gradient @ basis if len(weight) >= weight.shape[1] else basis.T @ gradient
        m, v = beta1 * m + (1 - beta1) * low, beta2 * v + (1 - beta2) * low * low
        step = (m / (1 - beta1 ** (t + 1))) / ((v / (1 - beta2 ** (t + 1))).sqrt() + eps)
        step = step @ basis.T if len(weight) >= weight.shape[1] else basis @ step
        weight = weight - lr * weight_decay * weight - lr * scale * step
    return weight


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6), (2, 7)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_projected_matrices_move_as_the_paper_says(shape, weight_decay):
    gradients = random_gradients(shape, 7)
    parameter = nn.Parameter(torch.ones(shape, dtype=torch.float64))
    group = {"params": [parameter], "rank": 3, "update_proj_gap": 3, "scale": 0.25}
    optimizer = GaLoreAdamW([group], 0.1, (0.8, 0.95), 1e-6, weight_decay)
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    expected = galore_in_float64(
        torch.ones(shape, dtype=torch.float64), gradients, lr=0.1, beta1=0.8, beta2=0.95, eps=1e-6,
        weight_decay=weight_decay, rank=3, gap=3, scale=0.25,
    )  # fmt: skip
    # float64 on both sides; the Gram matrix squares the singular values, of which the weakest used is 2^-5 or so.
    torch.testing.assert_close(parameter.data, expected, rtol=1e-9, atol=1e-9)


def test_other_groups_move_as_torchs_adamw_bit_for_bit():
    ours, theirs = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4, 3))
    optimizers = (
        GaLoreAdamW([ours], 0.1, weight_decay=0.1),
        torch.optim.AdamW([theirs], 0.1, eps=1e-6, weight_decay=0.1, fused=True),
    )
    for gradient in random_gradients((4, 3), 4, torch.float32):
        ours.grad, theirs.grad = gradient, gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (12, 12)])
def test_the_strongest_directions_keep_as_much_of_a_gradient_as_the_svd(shape):
    (gradient,) = random_gradients(shape, 1, torch.float32)
    basis = strongest_directions(gradient, 4)
    assert basis.shape == (12, 4)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4))
    kept = gradient @ basis if shape[0] >= shape[1] else basis.T @ gradient
    strengths = torch.linalg.svdvals(gradient.double())[:4]
    torch.testing.assert_close(kept.norm(dim=0 if shape[0] >= shape[1] else 1).double(), strengths, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "gradient",
    [
        torch.zeros(6, 4),
        torch.full((6, 4), 1e-30),
        torch.full((6, 4), 1e30),
        torch.outer(torch.arange(6.0), torch.ones(4)),
        torch.diag(10.0 ** -torch.arange(0.0, 40.0, 10.0)),
    ],
    ids=["zero", "tiny", "huge", "rank one", "ill-conditioned"],
)
def test_gradients_without_a_full_set_of_directions_are_harmless(gradient):
    basis = strongest_directions(gradient, 3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3))
    parameter = nn.Parameter(torch.ones(gradient.shape))
    optimizer = GaLoreAdamW([{"params": [parameter], **GALORE}], lr=0.1)
    for _ in range(3):
        parameter.grad = gradient
        optimizer.step()
    assert parameter.isfinite().all()


def test_a_rank_above_the_smaller_side_keeps_all_of_it():
    parameter = nn.Parameter(torch.ones(6, 4))
    optimizer = GaLoreAdamW([{"params": [parameter], **GALORE, "rank": 99}])
    (parameter.grad,) = random_gradients((6, 4), 1, torch.float32)
    optimizer.step()
    assert optimizer.state[parameter]["projection"].shape == (4, 4)
    optimizer.load_state_dict(optimizer.state_dict())


class Net(nn.Module):
    """An embedding, two matrices, a bias and a frozen matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.wide, self.tall = nn.Linear(9, 6), nn.Linear(6, 9, bias=False)
        self.frozen = nn.Linear(3, 3, bias=False).requires_grad_(False)
        for parameter in self.parameters():
            parameter.data = torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape)

    def give_gradients(self, step: int) -> None:
        for parameter in (self.embedding.weight, self.wide.weight, self.tall.weight):
            parameter.grad = random_gradients(parameter.shape, step + 1, torch.float32)[-1]


def test_hidden_matrices_are_projected_and_nothing_else():
    model = Net()
    hidden, tables, plain = galore_groups(model, lr=0.1, weight_decay=0.5, rank=3)
    assert [id(parameter) for parameter in hidden["params"]] == [id(model.wide.weight), id(model.tall.weight)]
    assert [id(parameter) for parameter in tables["params"]] == [id(model.embedding.weight)]
    assert [id(parameter) for parameter in plain["params"]] == [id(model.wide.bias)]
    assert [group["weight_decay"] for group in (hidden, tables, plain)] == [0.5, 0.5, 0.0]
    assert [group.get("rank") for group in (hidden, tables, plain)] == [3, None, None]
    optimizer = GaLoreAdamW([hidden, tables, plain])
    model.give_gradients(0)
    optimizer.step()
    state = optimizer.state[model.wide.weight]
    assert {name: tuple(state[name].shape) for name in ("projection", "exp_avg", "exp_avg_sq")} == {
        "projection": (6, 3), "exp_avg": (3, 9), "exp_avg_sq": (3, 9),
    }  # fmt: skip
    assert model.wide.bias not in optimizer.state  # it had no gradient


@pytest.mark.parametrize("steps_before", [2, 3])
def test_a_step_after_saving_and_loading_is_the_uninterrupted_one_bit_for_bit(steps_before):
    whole = Net()
    optimizer = GaLoreAdamW(galore_groups(whole, lr=0.1, weight_decay=0.1, **GALORE))
    for step in range(steps_before):  # at a renewal, and between two
        whole.give_gradients(step)
        optimizer.step()
    resumed, file = copy.deepcopy(whole), io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = GaLoreAdamW(galore_groups(resumed, lr=0.1, weight_decay=0.1, **GALORE))
    second.load_state_dict(torch.load(file, weights_only=True))
    for step in range(steps_before, 8):
        for model, each in ((whole, optimizer), (resumed, second)):
            model.give_gradients(step)
            each.step()
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))


def test_a_state_of_another_rank_is_one_sentence():
    first, second = (
        GaLoreAdamW(galore_groups(Net(), lr=0.1, weight_decay=0.0, rank=rank, update_proj_gap=2)) for rank in (3, 2)
    )
    model = first.param_groups[0]["params"]
    for parameter in model:
        parameter.grad = torch.ones_like(parameter)
    first.step()
    state = {"state": first.state_dict()["state"], "param_groups": second.state_dict()["param_groups"]}
    with pytest.raises(CheckpointError, match="projects a matrix to 3 directions, but this run's GaLore to 2"):
        second.load_state_dict(state)


@pytest.mark.parametrize("name", ["rank", "update_proj_gap"])
def test_a_rank_or_gap_below_one_is_one_sentence(name):
    with pytest.raises(ConfigError, match=f"GaLore's {name} is 0"):
        GaLoreAdamW([{"params": [nn.Parameter(torch.ones(2, 2))], **GALORE, name: 0}])


def test_a_closure_is_called_and_its_loss_returned():
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = GaLoreAdamW([{"params": [parameter], **GALORE}])

    def closure() -> float:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert optimizer.step(closure) < 4.0
