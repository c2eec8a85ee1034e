"""Branches written together, from every cache, against each one written alone by the model itself."""

import pytest
import torch
from families import FAMILIES, tiny_model
from peft import LoraConfig, get_peft_model

from fivefold.branches.decode import choose_cache, decode_branches, greedy
from fivefold.branches.model import branch_arguments, prepare_for_branches
from fivefold.branches.settings import BranchScheme
from fivefold.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

PLAIN = BranchScheme(rope_2d_ratio=0.0)
TURNED = BranchScheme(0.5)
MAIN = [5, 6, 7, 8, 9, 33, 12]
OPENINGS = {
    "ragged": [[5, 6], [7], [11, 8, 6, 20]],
    "some_empty": [[], [7, 9], []],
    "none": [[], [], []],
    "one": [[4, 4, 9]],
}
CACHES = ("shared", "flat", "expanded")


def prepared(family, scheme, **changes):
    model = tiny_model(family, **changes).eval()
    prepare_for_branches(model, scheme)
    return model


def together(model, main, openings, scheme, cache, count=6, **more):
    written = [[] for _ in openings]
    arguments = {"scheme": scheme, "max_new_tokens": count, "cache": cache, **more}
    for branch, token in decode_branches(model, main, openings, **arguments):
        written[branch - 1].append(token)
    return written


@torch.no_grad()
def alone(model, main, opening, count=6):
    """By the model as it is, all read anew for each token."""
    ids = [*main, *opening]
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(main) + len(opening) :]


def as_trained(model, main, openings, scheme, count=6):
    """All branches in the layout of training, all read anew for each token."""
    written = [[] for _ in openings]
    for _ in range(count):
        longer = likeliest_of_all(model, main, openings, [[*text, 0] for text in written], scheme)
        written = [[*text, tokens[-1]] for text, tokens in zip(written, longer, strict=True)]
    return written


@torch.no_grad()
def likeliest_of_all(model, main, openings, written, scheme):
    """In place of every written token the likeliest one, by one pass over all in the layout of training."""
    texts = [[*opening, *text] for opening, text in zip(openings, written, strict=True)]
    ids, branches, times = [*main], [0] * len(main), [*range(len(main))]
    for number, text in enumerate(texts, 1):
        ids += text
        branches += [number] * len(text)
        times += range(len(main), len(main) + len(text))
    arguments = branch_arguments(model, torch.tensor([branches]), torch.tensor([times]), scheme)
    likeliest = model(input_ids=torch.tensor([ids]), use_cache=False, **arguments).logits[0].argmax(-1).tolist()
    after, start = [], len(main)
    for opening, text in zip(openings, texts, strict=True):
        predicted = [likeliest[len(main) - 1], *likeliest[start : start + len(text)]]
        after.append(predicted[len(opening) : len(text)])
        start += len(text)
    return after


def caches_of(model):
    return CACHES if choose_cache(model, PLAIN, "auto") == "shared" else CACHES[1:]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_what_it_would_alone(family):
    model, base = prepared(family, PLAIN), tiny_model(family).eval()
    expected = [alone(base, MAIN, opening) for opening in OPENINGS["ragged"]]
    for cache in caches_of(model):
        assert together(model, MAIN, OPENINGS["ragged"], PLAIN, cache) == expected, cache


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "falcon", "gpt_neox", "cohere"])
@pytest.mark.parametrize("openings", OPENINGS)
def test_two_dimensions_are_those_of_training(family, openings):
    model = prepared(family, TURNED)
    expected = as_trained(model, MAIN, OPENINGS[openings], TURNED)
    for cache in caches_of(model):
        assert together(model, MAIN, OPENINGS[openings], TURNED, cache) == expected, cache


@pytest.mark.parametrize("family", ["llama", "falcon", "gpt_oss"])
def test_without_main(family):
    model, base = prepared(family, PLAIN), tiny_model(family).eval()
    expected = [alone(base, [], opening) for opening in OPENINGS["ragged"]]
    for cache in caches_of(model):
        assert together(model, [], OPENINGS["ragged"], PLAIN, cache) == expected, cache


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "olmo3", "gpt_oss", "cohere2"])
def test_windows(family):
    model = prepared(family, PLAIN, sliding_window=4)
    base = tiny_model(family, sliding_window=4).eval()
    expected = [alone(base, MAIN, opening) for opening in OPENINGS["ragged"]]
    wide = tiny_model(family, sliding_window=4096).eval()
    assert expected != [alone(wide, MAIN, opening) for opening in OPENINGS["ragged"]]
    for cache in CACHES:
        assert together(model, MAIN, OPENINGS["ragged"], PLAIN, cache) == expected, cache


@pytest.mark.parametrize("cache", CACHES)
def test_an_adapter_on_top(cache):
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(1)
    model = get_peft_model(prepared("llama", TURNED), lora)
    expected = as_trained(model, MAIN, OPENINGS["ragged"], TURNED)
    assert together(model, MAIN, OPENINGS["ragged"], TURNED, cache) == expected
    assert expected != together(prepared("llama", TURNED), MAIN, OPENINGS["ragged"], TURNED, cache)


@pytest.mark.parametrize("cache", CACHES)
def test_who_has_ended_leaves_and_moves_no_other(cache):
    model = prepared("llama", TURNED)
    whole = together(model, MAIN, OPENINGS["ragged"], TURNED, cache, 8)
    end = whole[1][2]
    rows = []

    def choose(logits, branches, step):
        rows.append((len(logits), list(branches)))
        return greedy(logits, branches, step)

    cut = together(model, MAIN, OPENINGS["ragged"], TURNED, cache, 8, eos_ids=[end], choose=choose)
    for ours, all_of_it in zip(cut, whole, strict=True):
        assert ours == (all_of_it[: all_of_it.index(end) + 1] if end in all_of_it else all_of_it)
    assert len({count for count, _ in rows}) > 1
    assert all(count == len(branches) for count, branches in rows)


@pytest.mark.parametrize("family", ["llama", "falcon"])
@pytest.mark.parametrize("openings", OPENINGS)
def test_columns_are_read_as_they_were_learned(family, openings):
    scheme = BranchScheme(0.5, branch_visibility="columnar")
    model = prepared(family, scheme)
    whole = together(model, MAIN, OPENINGS[openings], scheme, "auto")
    end = whole[0][2]
    for eos_ids in ([], [end]):
        written = together(model, MAIN, OPENINGS[openings], scheme, "auto", eos_ids=eos_ids)
        assert written == likeliest_of_all(model, MAIN, OPENINGS[openings], written, scheme)
    assert [*map(len, written)] != [*map(len, whole)]


def test_columns_are_not_isolated():
    scheme = BranchScheme(0.5, branch_visibility="columnar")
    model = prepared("llama", scheme)
    written = together(model, MAIN, OPENINGS["ragged"], scheme, "auto")
    assert written != together(prepared("llama", TURNED), MAIN, OPENINGS["ragged"], TURNED, "auto")
    with pytest.raises(ConfigError, match="columnar"):
        choose_cache(model, scheme, "shared")


def test_what_cannot_be():
    model = prepared("llama", PLAIN)
    assert together(model, MAIN, [], PLAIN, "auto") == []
    with pytest.raises(ConfigError, match="nothing predicts"):
        together(model, [], [[3], []], PLAIN, "auto")
    with pytest.raises(ConfigError, match="no cache 'paged'"):
        together(model, MAIN, [[3]], PLAIN, "paged")
    for family, why in (("falcon", "takes masks alone"), ("gemma3n_text", "without keys of their own")):
        with pytest.raises(ConfigError, match=why):
            choose_cache(prepared(family, PLAIN), PLAIN, "shared")
