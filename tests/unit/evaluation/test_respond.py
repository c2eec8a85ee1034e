"""Asking a model: cut to fit, in any batch, written as transformers writes, and resumable."""

import pytest
import torch
from chat_models import small_tokenizer, write_model

from fivefold.errors import ConfigError, DataError
from fivefold.evaluation.prompts import CUE, Prompts
from fivefold.evaluation.respond import Question, Respondent
from fivefold.evaluation.superglue.example import Source
from fivefold.models.answer_journal import AnswerJournal
from fivefold.serving.open_model import open_model
from fivefold.t5.fill_blanks import untrained_ids

WORDS = ["abc", "de fghij", "jihg ab", "hgfe"]
CHOICES = ("abc de", "fg", "jihg", "ee ff", "bcd")
QUESTIONS = [
    Question(Source("ask ", " ".join(WORDS[: number % 4 + 1] * (number % 3 + 1)), " now"), CHOICES[number % 3 :])
    for number in range(10)
]


@pytest.fixture(scope="module", params=["t5", "llama"])
def model(request, tmp_path_factory):
    return open_model(str(write_model(request.param, tmp_path_factory.mktemp("model"), small_tokenizer())))


def ask(model, path, questions=QUESTIONS, *, scoring="generate", batch_size=4, **more):
    with AnswerJournal(path, {}) as journal:
        return Respondent(*model, scoring, max_new_tokens=8).ask("some", questions, batch_size, journal, **more)


@pytest.mark.parametrize("scoring", ["generate", "likelihood"])
def test_the_same_in_every_batch(model, tmp_path, scoring):
    answers = ask(model, tmp_path / "a", scoring=scoring)
    assert len(answers) == 10
    assert len(set(answers)) > 1
    for batch_size in (1, 3, 10):
        assert ask(model, tmp_path / f"{batch_size}", scoring=scoring, batch_size=batch_size) == answers


def test_written_as_transformers_writes(model, tmp_path):
    network, tokenizer = model
    is_t5 = network.config.is_encoder_decoder
    open_ended = [Question(question.source) for question in QUESTIONS]
    expected = []
    for question in QUESTIONS:
        text = question.source.text if is_t5 else question.source.text + CUE
        ids = tokenizer(text)["input_ids"]
        ids = ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
        ids = [*ids, tokenizer.eos_token_id] if is_t5 else ids
        tokens = network.generate(
            torch.tensor([ids]), max_new_tokens=8, do_sample=False, suppress_tokens=untrained_ids(network, tokenizer)
        )
        text = tokenizer.decode(tokens[0, 1 if is_t5 else len(ids) :], skip_special_tokens=True).strip()
        expected.append(text if is_t5 else text.partition("\n")[0].rstrip())
    assert ask(model, tmp_path / "a", open_ended) == expected


def test_the_likeliest_choice(model, tmp_path):
    network, tokenizer = model
    answers = ask(model, tmp_path / "a", scoring="likelihood")
    for question, answer in zip(QUESTIONS, answers, strict=True):
        respondent = Respondent(network, tokenizer, "likelihood", max_new_tokens=8)
        text, row = respondent.prompts.prompt(question.source)
        is_t5 = network.config.is_encoder_decoder
        logps = []
        for choice in question.choices:
            ids = torch.from_numpy(respondent.prompts.answer(text, choice, ends=is_t5))[None]
            with torch.no_grad():
                if is_t5:
                    logits = network(input_ids=torch.from_numpy(row)[None], labels=ids).logits
                else:
                    logits = network(torch.cat([torch.from_numpy(row)[None], ids], 1)).logits[:, len(row) - 1 : -1]
            logps.append(float(logits.log_softmax(-1).gather(-1, ids[..., None]).sum()))
        assert answer == question.choices[logps.index(max(logps))]


def test_goes_on_where_it_stopped(model, tmp_path):
    whole = ask(model, tmp_path / "whole")
    calls = 0

    def stop(done, to_do):
        nonlocal calls
        calls += done > 0
        if calls == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(model, tmp_path / "part", show_progress=stop)
    before = (tmp_path / "part").read_bytes()
    assert ask(model, tmp_path / "part") == whole
    assert (tmp_path / "part").read_bytes().startswith(before)
    assert (tmp_path / "part").read_bytes() == (tmp_path / "whole").read_bytes()


def test_likelihood_needs_choices(model, tmp_path):
    with pytest.raises(ConfigError, match="some questions have none"):
        ask(model, tmp_path / "a", [Question(Source("ask", "abc"))], scoring="likelihood")


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_too_long_a_question_loses_the_end_of_its_passage(family):
    tokenizer = small_tokenizer()
    source = Source("ask ", " ".join(WORDS * 20), " now")
    whole = Prompts(tokenizer, family, None)
    text, ids = whole.prompt(source)
    assert whole.num_cut == 0
    for most in (len(ids), len(ids) - 1, 30):
        prompts = Prompts(tokenizer, family, most)
        cut_text, cut_ids = prompts.prompt(source)
        assert most - 3 <= len(cut_ids) <= most
        ending = " now" if family == "t5" else f" now{CUE}"
        assert cut_text.endswith(ending)
        assert text.startswith(cut_text.removesuffix(ending))
        assert prompts.num_cut == (most < len(ids))
    with pytest.raises(DataError, match="tokens even without its passage, but the model reads 3"):
        Prompts(tokenizer, family, 3).prompt(source)


def test_shots_stand_before_the_question_and_a_decoders_answer_behind_its_cue():
    prompts = Prompts(small_tokenizer(), "llama", None)
    shots = prompts.shots([(Source("ask ", "abc"), "de"), (Source("ask ", "fg"), "hi")])
    text, ids = prompts.prompt(Source("ask ", "jihg"), shots)
    assert text == "ask abc\nanswer: de\n\nask fg\nanswer: hi\n\nask jihg\nanswer:"
    answer = prompts.answer(text, "abc", ends=False)
    assert prompts.tokenizer.decode([*ids, *answer]).endswith("jihg\nanswer: abc")
    assert prompts.answer(text, "abc", ends=True).tolist() == [*answer, prompts.tokenizer.eos_token_id]
