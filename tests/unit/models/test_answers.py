"""Answers alone and together, streamed and whole, drawn and greedy, are the same; and they are generate()'s."""

import pytest
import torch
from chat_models import KINDS, small_tokenizer, write_model
from transformers import LogitsProcessorList

from fivefold.errors import ConfigError
from fivefold.models.answers import Answerer, stream_answer
from fivefold.models.decoding import ChatDecoding, DecodingSettings
from fivefold.models.seeded_sampling import SeededSampling
from fivefold.serving.open_model import open_model

QUESTIONS = ["abc", "你好吗", "jihg fed cba abc de fgh", "今天 天气 怎么样? 🙂", "x"]
GREEDY = DecodingSettings(max_new_tokens=12, repetition_penalty=1.3)
DRAWN = ChatDecoding(max_new_tokens=20, seed=3)


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def tokenizer_of():
    return small_tokenizer()


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory, tokenizer_of):
    return write_model(request.param, tmp_path_factory.mktemp(request.param), tokenizer_of)


@pytest.fixture(scope="module")
def answerer(folder):
    return Answerer(*open_model(str(folder)))


@pytest.mark.parametrize("decoding", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_streamed_alone_and_in_batches_answers_are_the_same(answerer, decoding):
    prompts = [user(question) for question in QUESTIONS]
    together = answerer.write(prompts, decoding)
    assert len(set(together)) == len(QUESTIONS)
    alone = [answerer.write([prompt], decoding, [number])[0] for number, prompt in enumerate(prompts)]
    streamed = ["".join(answerer.stream(prompt, decoding, number)) for number, prompt in enumerate(prompts)]
    assert alone == streamed == together


def test_greedy_answers_are_those_of_generate(answerer):
    model, tokenizer = answerer.model, answerer.tokenizer
    messages = [*user("abc"), {"role": "assistant", "content": "de"}, *user("jih")]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt").input_ids  # with an end mark
    is_t5 = model.config.is_encoder_decoder
    ids = ids if is_t5 else ids[:, :-1]
    tokens = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        suppress_tokens=list(range(len(tokenizer), 640)),
        max_new_tokens=12,
        repetition_penalty=1.3,
    )
    expected = tokenizer.decode(tokens[0] if is_t5 else tokens[0, ids.shape[1] :], skip_special_tokens=True)
    pieces = list(stream_answer(model, tokenizer, messages, max_new_tokens=12, repetition_penalty=1.3))
    assert "".join(pieces) == expected.strip()
    assert len(pieces) > 1


def test_draws_follow_from_seed_number_and_draw(answerer):
    state = torch.random.get_rng_state()
    prompts = [user("abc")] * 3
    first = answerer.write(prompts, DRAWN)
    assert len(set(first)) == 3
    assert answerer.write(prompts[:1], DRAWN, [2]) == first[2:]
    assert answerer.write(prompts, DRAWN, draw=1) != first
    assert answerer.write(prompts, ChatDecoding(max_new_tokens=20, seed=4)) != first
    assert torch.equal(torch.random.get_rng_state(), state)


def test_closing_an_answer_stops_the_model(answerer):
    most = 100_000 if answerer.model.config.is_encoder_decoder else 900
    decoding = ChatDecoding(max_new_tokens=most, seed=3)  # greedy, it may loop in bytes, which are never certain
    pieces = answerer.stream(user("abc"), decoding)
    next(pieces)
    pieces.close()  # waits for the thread: would take minutes
    assert "".join(answerer.stream(user("abc"), GREEDY)) == answerer.write([user("abc")], GREEDY)[0]


def test_drawn_tokens_have_the_model_probabilities():
    """4,000 draws from four tokens; 0.03 is four standard deviations."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    decoding = DecodingSettings(do_sample=True, temperature=2.0)
    sampling = SeededSampling(decoding, list(range(4000)))
    drawn = LogitsProcessorList([sampling])(torch.zeros(4000, 1), logits.repeat(4000, 1)).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(shares, (logits / 2).softmax(-1), atol=0.03)
    narrow = SeededSampling(DecodingSettings(do_sample=True, top_k=2), list(range(100)))
    assert narrow(torch.zeros(100, 1), logits.repeat(100, 1)).argmax(-1).unique().tolist() == [0, 1]


def test_room_for_conversations(tmp_path_factory, tokenizer_of):
    folder = write_model("llama", tmp_path_factory.mktemp("llama"), tokenizer_of)
    model, tokenizer = open_model(str(folder))
    assert Answerer(model, tokenizer).room(100) == 512  # the tokenizer's
    positions = model.config.max_position_embeddings
    assert Answerer(model, tokenizer).room(positions - 100) == 100
    assert Answerer(model, tokenizer, 60).room(100) == 60
    with pytest.raises(ConfigError, match="leaves nothing"):
        Answerer(model, tokenizer).room(positions)
    with pytest.raises(ConfigError, match=f"give {positions - 100} at most"):
        Answerer(model, tokenizer, positions).room(100)
