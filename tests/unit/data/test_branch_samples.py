"""Records to samples: what is read, what goes together, what is cut, and what is refused."""

import json
from itertools import chain

import numpy as np
import pytest
from chat_models import small_tokenizer

from fivefold.corpus.settings import CorpusSettings
from fivefold.data.branch_records import BRANCHED, BranchText, open_branches
from fivefold.data.branch_samples import BranchEncoder, encoded, grouped
from fivefold.data.branches import build_branches
from fivefold.data.settings import BranchDataSettings
from fivefold.errors import DataError

WORDS = ["abc", "de", "fgh", "ij", "cab"]


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture
def corpus(tmp_path):
    def write(*records):
        (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
        return CorpusSettings([str(tmp_path / "data.jsonl")])

    return write


def rows(count):
    return [
        {"main": f"{WORDS[n % 5]} {n}", "branches": [f"{WORDS[k]} {n}" for k in range(1 + n % 5)]} for n in range(count)
    ]


def singles(count):
    return [{"text": f"{WORDS[n % 5]} " * (1 + n % 7)} for n in range(count)]


def settings(**changes):
    return BranchDataSettings(**({"validation_frac": 0.0} | changes))


def build(corpus, data, tokenizer, seed=0, needs_end=False):
    return build_branches(corpus, data, tokenizer, max_positions=None, needs_end=needs_end, seed=seed)


def branch_ids(batch):
    """The branches of each row, in order, as tuples of ids."""
    found = []
    for ids, owners in zip(batch["input_ids"], batch["branches"], strict=True):
        numbers = [number for place, number in enumerate(owners) if number > 0 and owners[place - 1] != number]
        found.append([tuple(ids[owners == number]) for number in numbers])
    return found


def test_shapes(corpus):
    record = {"main": "abc", "branches": ["de", {"text": "fgh ij", "answer_offset": 3}, {"content": "cab", "meta": 1}]}
    (read,) = open_branches(corpus(record))
    assert read[BRANCHED].main == "abc"
    assert read[BRANCHED].branches == [BranchText("de"), BranchText("fgh ij", 3), BranchText("cab")]
    (read,) = open_branches(corpus({"text": "de"}))
    assert read[BRANCHED].main is None


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"main": "abc", "branches": []}, "there is no branch"),
        ({"main": "abc", "branches": "de"}, "branches is no list of texts"),
        ({"main": "abc", "branches": ["de", " "]}, "branch 2 is empty"),
        ({"main": "abc", "branches": [3]}, "branch 1 is neither text nor"),
        ({"main": 3, "branches": ["de"]}, "main holds a int"),
        ({"main": "abc", "branches": [{"text": "de", "answer_offset": 7}]}, "answer_offset 7 of branch 1"),
        ({"main": "abc", "branches": [{"text": "de", "answer_offset": True}]}, "answer_offset True"),
        ({"text": " "}, "holds no text"),
        ({"prompt": "abc"}, "are no main text with branches"),
    ],
)
def test_broken_records_are_told(corpus, record, said):
    with pytest.raises(DataError, match=said):
        list(open_branches(corpus(record)))


def test_tokens_end_marks_and_offsets(corpus, tokenizer):
    text = next(iter(open_branches(corpus({"main": "abc ", "branches": [{"text": "fgh ij cab", "answer_offset": 4}]}))))
    sample = BranchEncoder(tokenizer, settings(), None)(text[BRANCHED])
    assert tokenizer.decode(sample.main) == "abc "
    (branch,) = sample.branches
    assert branch.ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(branch.ids[: branch.answer_offset]).strip() == "fgh"
    short = BranchEncoder(tokenizer, settings(input_length=2), None)
    assert len(short(text[BRANCHED]).branches[0].ids) == 2
    assert short.num_cut == 1


@pytest.mark.parametrize("records", [rows(40), singles(83)])
@pytest.mark.parametrize(
    "changes", [{}, {"branches_per_sample": 3}, {"max_branches_per_sample": 4}, {"max_total_tokens": 40}]
)
def test_every_branch_is_there_once_and_no_sample_is_too_large(corpus, tokenizer, records, changes):
    data = settings(**changes)
    texts = [record[BRANCHED] for record in open_branches(corpus(*records))]
    encode = BranchEncoder(tokenizer, data, None)
    samples = list(grouped(encoded(texts, encode), data, seed=0))
    given = [(tuple(sample.main), tuple(branch.ids)) for sample in samples for branch in sample.branches]
    expected = [(tuple(one.main), tuple(branch.ids)) for one in map(encode, texts) for branch in one.branches]
    assert given == expected
    sizes = [len(sample.branches) for sample in samples]
    assert max(sizes) <= data.most_branches
    if changes.get("max_branches_per_sample") and "text" in records[0]:
        assert len(set(sizes)) > 2
    if limit := data.max_total_tokens:
        assert max(sample.num_tokens for sample in samples) <= limit


def test_a_branch_that_fits_nowhere_is_told(corpus, tokenizer):
    with pytest.raises(DataError, match="--max_total_tokens 3"):
        build(corpus(*rows(9)), settings(max_total_tokens=3), tokenizer)
    with pytest.raises(DataError, match="positions"):
        build_branches(corpus(*rows(9)), settings(), tokenizer, max_positions=3, needs_end=False, seed=0)


@pytest.mark.parametrize("records", [rows(60), singles(90)])
def test_streams_give_all_and_go_on_exactly(corpus, tokenizer, records, monkeypatch):
    monkeypatch.setattr("fivefold.data.branch_source._RECORDS_PER_BLOCK", 16)
    data = settings(use_streaming=True, branches_per_sample=4)
    whole = build(corpus(*records), data, tokenizer, needs_end=True).training
    held = build(corpus(*records), settings(branches_per_sample=4), tokenizer).training
    in_memory = branch_ids(held.batch(np.arange(held.samples_per_epoch)))
    total = whole.samples_per_epoch
    streamed = branch_ids(whole.batch(np.arange(total)))
    assert sorted(chain(*streamed)) == sorted(chain(*in_memory))
    again = branch_ids(whole.batch(np.arange(total, total + 5)))  # the second pass
    for place in (0, 3, total - 1, total + 2):
        first, second = (build(corpus(*records), data, tokenizer).training for _ in range(2))
        if place:
            first.batch(np.arange(place))
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        rest = branch_ids(second.batch(np.arange(place, total + 5)))
        assert rest == (streamed + again)[place:]


def test_numbers_are_drawn_and_follow_from_the_seed(corpus, tokenizer):
    data = settings(branches_per_sample=5)
    batches = [build(corpus(*rows(30)), data, tokenizer, seed).training.batch(np.arange(30)) for seed in (0, 0, 1)]
    assert all(np.array_equal(batches[0][name], batches[1][name]) for name in batches[0])
    assert set(np.unique(batches[0]["branches"])) == {-1, 0, 1, 2, 3, 4, 5}
    single = [row for row in batches[0]["branches"] if len(set(row[row > 0])) == 1]
    assert len({row.max() for row in single}) > 1


def test_what_is_held_out_is_not_trained_on(corpus, tokenizer):
    records = rows(200)
    read = build(corpus(*records), settings(validation_frac=0.2), tokenizer)
    held_out, training = (
        {tuple(ids[owners == 0]) for ids, owners in zip(batch["input_ids"], batch["branches"], strict=True)}
        for batch in (
            read.validation.batch(np.arange(read.validation.samples_per_epoch)),
            read.training.batch(np.arange(read.training.samples_per_epoch)),
        )
    )
    assert held_out
    assert training
    assert not held_out & training
