"""2D RoPE against angles worked out from the model's own frequencies."""

import pytest
import torch
from families import tiny_model

from fivefold.branches.rotary import (
    Interleaved2DRoPE,
    auto_pair_indices,
    patch_model_with_interleaved_2d_rope,
    positions_2d,
)
from fivefold.errors import ConfigError, ModelError

STRIDE = 128
BRANCHES, TIMES = torch.tensor([[0, 0, 1, 3]]), torch.tensor([[0, 5, 6, 6]])


def turned(frequencies, pairs, mode):
    """Angles [1, N, pairs], pair by pair."""
    angles = torch.zeros(1, TIMES.shape[1], len(frequencies))
    for place in range(TIMES.shape[1]):
        for pair, frequency in enumerate(frequencies):
            time, branch = float(TIMES[0, place]), float(BRANCHES[0, place]) * STRIDE
            position = time if pair + 1 not in pairs else branch + (time if mode == "offset" else 0)
            angles[0, place, pair] = position * frequency
    return angles


@pytest.mark.parametrize("mode", ["replace", "offset"])
@pytest.mark.parametrize("family", ["llama", "yarn", "llama3"])
def test_angles(family, mode):
    model = tiny_model(family)
    rotary = model.model.rotary_emb
    pairs = auto_pair_indices(model, 0.5)
    assert pairs == [3, 4]
    wrapped = Interleaved2DRoPE(rotary, pairs, STRIDE, mode)
    cos, sin = wrapped(torch.zeros(1), positions_2d(BRANCHES, TIMES))
    angles = turned(rotary.inv_freq.tolist(), pairs, mode)
    scale = rotary.attention_scaling
    torch.testing.assert_close(cos, torch.cat([angles, angles], -1).cos() * scale, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sin, torch.cat([angles, angles], -1).sin() * scale, rtol=1e-5, atol=1e-5)


def test_neighbouring_channels_may_be_a_pair():
    """Cohere's layout."""
    rotary = tiny_model("cohere").model.rotary_emb
    cos, _ = Interleaved2DRoPE(rotary, [4], STRIDE)(torch.zeros(1), positions_2d(BRANCHES, TIMES))
    own, _ = rotary(torch.zeros(1), TIMES)
    differs = (cos != own).any(1)[0]
    assert differs.tolist() == [False] * 6 + [True] * 2


def test_far_branches_do_not_stretch_dynamic_frequencies():
    model = tiny_model("dynamic", max_position_embeddings=32)
    rotary = model.model.rotary_emb
    before = rotary.inv_freq.clone()
    Interleaved2DRoPE(rotary, [4], STRIDE)(torch.zeros(1), positions_2d(BRANCHES, TIMES))
    assert torch.equal(rotary.inv_freq, before)


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.25, 1), (0.5, 2), (0.75, 3)])
def test_the_slowest_pairs_are_the_branches(ratio, count):
    assert auto_pair_indices(tiny_model("llama"), ratio) == list(range(5 - count, 5))


@pytest.mark.parametrize("ratio", [-0.1, 1.1, 1.0, 0.95, 0.05])
def test_both_must_have_a_pair(ratio):
    with pytest.raises(ConfigError, match=f"rope_2d_ratio (is )?{ratio}"):
        auto_pair_indices(tiny_model("llama"), ratio)


def test_a_model_is_patched_once():
    model = tiny_model("llama")
    patch_model_with_interleaved_2d_rope(model, [4])
    with pytest.raises(ModelError, match="has 2D RoPE already"):
        patch_model_with_interleaved_2d_rope(model, [4])
