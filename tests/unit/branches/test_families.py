"""In every family of decoders: branches learn and are read as sequences of their own are by the model itself."""

import numpy as np
import pytest
import torch
from families import FAMILIES, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from fivefold.branches.attention import BRANCH_ATTENTION
from fivefold.branches.model import branch_arguments, prepare_for_branches
from fivefold.branches.rotary import auto_pair_indices
from fivefold.branches.settings import BranchScheme
from fivefold.data.branch_layout import Branch, branch_batch, branch_layout
from fivefold.data.loader import tensors
from fivefold.errors import ConfigError, ModelError
from fivefold.models.build import checkpoint_blocks
from fivefold.objectives.branches import BranchObjective
from fivefold.objectives.settings import LossSettings

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

PLAIN = BranchScheme(rope_2d_ratio=0.0)
MAIN, *TEXTS = (np.random.default_rng(0).integers(3, 96, length) for length in (9, 5, 7, 4))
OTHER_MAIN, OTHER_TEXT = (np.random.default_rng(1).integers(3, 96, length) for length in (4, 6))


def batch_of(*samples, **settings):
    layouts = [branch_layout(main, [Branch(text) for text in texts], **settings) for main, texts in samples]
    return tensors(branch_batch(layouts, 0))


def learn(model, batch, scheme):
    loss = BranchObjective(LossSettings(), scheme)(model, batch).loss_sum
    loss.backward()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.detach(), gradients


def learn_alone(model, main, texts):
    """Each text behind main in a row of its own; main is learned once, from the first of them."""
    total = torch.zeros(())
    for number, text in enumerate(texts):
        ids = torch.from_numpy(np.concatenate([main, text]))[None]
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        start = 0 if number == 0 else len(main) - 1
        loss = torch.nn.functional.cross_entropy(logits[start:], ids[0, start + 1 :], reduction="sum")
        loss.backward()
        total += loss.detach()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad(set_to_none=True)
    return total, gradients


def logits_of(model, batch, scheme):
    arguments = branch_arguments(model, batch["branches"], batch["times"], scheme)
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], use_cache=False, **arguments).logits


def assert_near(ours, theirs):
    scale = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_are_sequences_of_their_own(family):
    alone, together = tiny_model(family), tiny_model(family)
    ids = torch.from_numpy(MAIN)[None]
    with torch.no_grad():
        before = together.eval()(input_ids=ids).logits
    together.train()
    prepare_for_branches(together, PLAIN)
    with torch.no_grad():
        assert torch.equal(together.eval()(input_ids=ids).logits, before)  # an ordinary call
    together.train()
    loss, gradients = learn(together, batch_of((MAIN, TEXTS), (OTHER_MAIN, [OTHER_TEXT])), PLAIN)
    first, first_gradients = learn_alone(alone, MAIN, TEXTS)
    second, second_gradients = learn_alone(alone, OTHER_MAIN, [OTHER_TEXT])
    torch.testing.assert_close(loss, first + second, rtol=1e-6, atol=0)
    assert_near(gradients, {name: one + second_gradients.get(name, 0) for name, one in first_gradients.items()})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["replace", "offset"])
def test_two_dimensions_keep_branches_apart(family, mode):
    scheme = BranchScheme(0.5, mode)
    model, base = tiny_model(family).eval(), tiny_model(family).eval()
    prepare_for_branches(model, scheme)
    batch = batch_of((MAIN, TEXTS))
    together = logits_of(model, batch, scheme)
    for number, text in enumerate(TEXTS, 1):
        alone = logits_of(model, batch_of((MAIN, [text]), numbers=[number]), scheme)
        torch.testing.assert_close(
            together[:, batch["branches"][0] == number], alone[:, len(MAIN) :], rtol=0, atol=2e-5
        )
    ids = torch.from_numpy(MAIN)[None]
    with torch.no_grad():
        plain = base(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, plain)  # positions that say nothing of branches
    main_differs = float((together[:, : len(MAIN)] - plain).abs().max())
    assert (main_differs > 1e-5 * float(plain.abs().max())) == (mode == "replace")


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2", "gpt_oss", "falcon"])
def test_one_branch_does_not_move_another_by_a_bit(family):
    model = tiny_model(family).eval()
    scheme = BranchScheme(0.5)
    prepare_for_branches(model, scheme)
    batch = batch_of((MAIN, TEXTS))
    changed = batch_of((MAIN, [TEXTS[0], TEXTS[1][::-1].copy(), TEXTS[2]]))
    others = batch["branches"][0] != 2
    before, after = (logits_of(model, one, scheme) for one in (batch, changed))
    assert torch.equal(before[:, others], after[:, others])
    assert not torch.equal(before, after)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "cohere"])
def test_without_2d_rope_their_order_says_nothing(family):
    model = tiny_model(family).eval()
    prepare_for_branches(model, PLAIN)
    ordered = logits_of(model, batch_of((MAIN, TEXTS)), PLAIN)[:, len(MAIN) :].split([*map(len, TEXTS)], 1)
    turned = logits_of(model, batch_of((MAIN, TEXTS[::-1])), PLAIN)[:, len(MAIN) :].split([*map(len, TEXTS[::-1])], 1)
    for ours, theirs in zip(ordered, turned[::-1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "olmo3", "cohere2", "exaone4", "gpt_oss", "starcoder2"])
def test_windows_look_back_in_time(family):
    alone, together = tiny_model(family, sliding_window=6), tiny_model(family, sliding_window=6)
    prepare_for_branches(together, PLAIN)
    loss, gradients = learn(together, batch_of((MAIN, TEXTS)), PLAIN)
    expected, expected_gradients = learn_alone(alone, MAIN, TEXTS)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert_near(gradients, expected_gradients)
    wide, _ = learn_alone(tiny_model(family, sliding_window=4096), MAIN, TEXTS)
    assert not torch.isclose(wide, expected, rtol=1e-5)


def test_recomputed_blocks_give_the_same_gradients():
    model = tiny_model("llama").train()
    prepare_for_branches(model, PLAIN)
    batch = batch_of((MAIN, TEXTS))
    kept = learn(model, batch, PLAIN)[1]
    checkpoint_blocks(model)
    again = learn(model, batch, PLAIN)[1]
    assert all(torch.equal(again[name], one) for name, one in kept.items())


def test_arguments_of_another_batch_are_refused():
    model = tiny_model("llama").eval()
    prepare_for_branches(model, PLAIN)
    batch = batch_of((MAIN, TEXTS))
    arguments = branch_arguments(model, batch["branches"], batch["times"], PLAIN)
    for ids in (batch["input_ids"][:, :-1], batch["input_ids"].repeat(2, 1)):
        stale = arguments | {"position_ids": arguments["position_ids"][:, : ids.shape[1]]}
        with pytest.raises(ConfigError, match="ask branch_arguments anew"):
            model(input_ids=ids, **stale)


def test_columns_see_each_other():
    scheme = BranchScheme(0.0, branch_visibility="columnar")
    model = tiny_model("llama").eval()
    prepare_for_branches(model, scheme)
    batch = batch_of((MAIN, TEXTS))
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    first_of_second = int((batch["branches"][0] == 2).nonzero()[0])
    changed["input_ids"][0, first_of_second] += 1
    moved = (logits_of(model, batch, scheme) - logits_of(model, changed, scheme)).abs().amax(-1)[0] > 0
    later = batch["times"][0] > len(MAIN)
    expected = later.clone()
    expected[first_of_second] = True
    assert torch.equal(moved, expected)


def test_who_cannot_keep_branches_apart_is_refused():
    config = AutoConfig.for_model(
        "lfm2",
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with pytest.raises(ModelError, match=r"Lfm2ForCausalLM lets branches see each other"):
        prepare_for_branches(model, PLAIN)
    assert model.config._attn_implementation != BRANCH_ATTENTION


def test_without_rotary_positions_there_are_no_two_dimensions():
    config = AutoConfig.for_model("gpt2", vocab_size=96, n_embd=32, n_layer=2, n_head=4)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with pytest.raises(ModelError, match="no rotary position"):
        auto_pair_indices(model, 0.5)
    prepare_for_branches(model, PLAIN)
