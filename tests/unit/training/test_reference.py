"""The reference's log-probabilities: computed once, found again, and never taken for what they are not."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from fivefold import T5Config, T5Model
from fivefold.data.loader import tensors
from fivefold.data.preference_pairs import PreferenceSource, TokenPairs
from fivefold.errors import DataError, ModelError
from fivefold.objectives.answer_logps import answer_logps
from fivefold.training import reference
from fivefold.training.distributed import Processes
from fivefold.training.reference import ReferencePass, reference_cache, reference_logps

ALONE = Processes(0, 1, torch.device("cpu"))
HOW = {
    "t5": ReferencePass("t5", 0, (24, 40), 2, torch.float32),
    "llama": ReferencePass("llama", 0, (48,), 3, torch.float32),
}


def pairs(num_pairs: int = 11, seed: int = 0) -> TokenPairs:
    generator = np.random.default_rng(seed)

    def texts(longest: int) -> list[np.ndarray]:
        return [
            generator.integers(2, 64, length).astype(np.int32) for length in generator.integers(1, longest, num_pairs)
        ]

    return TokenPairs(texts(12), texts(15), texts(15))


def t5(seed: int = 0, **changes) -> T5Model:
    torch.manual_seed(seed)
    shape = {"d_model": 24, "d_kv": 6, "d_ff": 32, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.1}
    return T5Model(T5Config(vocab_size=64, **(shape | changes)))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape))


def computed(model, folder: Path, some: TokenPairs | None = None, **changes) -> np.ndarray:
    family = "t5" if isinstance(model, T5Model) else "llama"
    (logps,) = reference_logps(model, [some or pairs()], HOW[family]._replace(**changes), folder, ALONE)
    return logps


@pytest.mark.parametrize("build", [t5, llama])
def test_equal_to_the_padded_pass_and_the_second_time_from_disk(build, tmp_path, monkeypatch):
    model, some = build(), pairs()
    family = "t5" if build is t5 else "llama"
    model.train()
    logps = computed(model, tmp_path, some)
    assert model.training
    model.eval()
    source = PreferenceSource(some, family, pad_id=0, seed=0, shuffle=False)
    with torch.no_grad():
        expected = answer_logps(model, tensors(source.batch(np.arange(len(some)))))
    torch.testing.assert_close(torch.from_numpy(logps), expected)

    monkeypatch.setattr(reference, "_computed", None)
    assert np.array_equal(computed(model, tmp_path, some), logps)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_whatever_they_follow_from_has_a_file_of_its_own(tmp_path):
    some, model = pairs(), t5()
    computed(model, tmp_path, some)
    moved = t5()
    with torch.no_grad():
        moved.shared.weight[0, 0] += 1e-3
    computed(moved, tmp_path, some)
    computed(t5(layer_norm_epsilon=1e-5), tmp_path, some)
    computed(model, tmp_path, some, dtype=torch.bfloat16)
    longer = [np.append(some.prompts[0], 5), *some.prompts[1:]]
    computed(model, tmp_path, dataclasses.replace(some, prompts=longer))
    # The same tokens, divided otherwise.
    shifted = [np.append(some.chosen[0], some.chosen[1][:1]), some.chosen[1][1:], *some.chosen[2:]]
    assert len(shifted[1])
    computed(model, tmp_path, dataclasses.replace(some, chosen=shifted))
    assert len(list(tmp_path.iterdir())) == 6


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def damage_digit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def damage_other(path: Path) -> None:
    save_file(load_file(path), path, {"key": "of another run"})


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_cut, "is damaged"),
        (damage_digit, "do not fit their checksum"),
        (damage_other, "another model or other pairs"),
        (damage_empty, "is damaged"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, damage, message):
    computed(t5(), tmp_path)
    (path,) = tmp_path.iterdir()
    damage(path)
    with pytest.raises(DataError, match=rf"{path.name} .*{message}.*delete it"):
        computed(t5(), tmp_path)


def test_no_room_for_the_cache_is_one_sentence(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match=r"cannot be kept in .*taken.* --reference_cache"):
        computed(t5(), tmp_path / "taken")


def test_a_broken_model_is_named_and_leaves_no_file(tmp_path):
    model = t5()
    with torch.no_grad():
        model.shared.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="pair 1 a log-probability that is not finite"):
        computed(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_processes_compute_half_each(tmp_path):
    """What each of two leaves out is what the other has."""
    model, some = t5(), pairs()
    halves = [reference._computed(model, some, HOW["t5"], Half(rank, 2, torch.device("cpu"))) for rank in range(2)]
    assert all((half == 0).any() for half in halves)
    np.testing.assert_allclose(halves[0] + halves[1], computed(model, tmp_path, some), rtol=1e-6)


class Half(Processes):
    """One of two processes that does not wait for the other."""

    def sum_tensor(self, tensor):
        return tensor


def test_where_it_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert reference_cache(None) == tmp_path / "fivefold" / "reference"
    assert reference_cache("there") == Path("there")
