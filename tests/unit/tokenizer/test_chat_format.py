"""One serialisation for training and talking: transformers' text, whole characters, no forged special tokens."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fivefold.errors import ConfigError, DataError
from fivefold.tokenizer.chat_format import BUILT_IN, ChatFormat, built_in_template
from fivefold.tokenizer.load import load_tokenizer
from fivefold.tokenizer.save import save_tokenizer
from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.train import train_tokenizer

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = ["User: hello there", "Assistant: 你好世界 one two three 123", "今天天气很好 question"] * 3
# Each of these is several tokens for a tokenizer that has not seen it: bytes, or pieces of a family of emoji.
HARD = "龘靐 ab 👩‍👩‍👧 é 𠮷𠮷 end"

SYSTEM = {"role": "system", "content": "Be kind."}
QUESTION, ANSWER, AGAIN = (
    {"role": "user", "content": "hello there"},
    {"role": "assistant", "content": "你好世界"},
    {"role": "user", "content": "one two three"},
)


def _ours():
    return train_tokenizer(TEXTS, TokenizerSettings("", vocab_size=420, num_sentinels=20)).tokenizer


def _byte_level():
    """As SmolLM2's: bytes, no unknown token, ChatML with its end of turn as end mark."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        bos_token="<|im_start|>",
        unk_token="<|endoftext|>",
        chat_template=CHATML,
    )


@pytest.fixture(scope="module", params=["ours_t5", "ours_decoder", "byte_level", "flan_t5"])
def chat(request):
    match request.param:
        case "ours_t5":
            return ChatFormat(_ours(), "t5")
        case "ours_decoder":
            return ChatFormat(_ours(), "llama")
        case "byte_level":
            return ChatFormat(_byte_level(), "llama")
        case _:
            return ChatFormat(AutoTokenizer.from_pretrained(request.getfixturevalue("real_t5")), "t5")


@pytest.mark.parametrize(
    "messages", [[QUESTION], [SYSTEM, QUESTION], [QUESTION, ANSWER, AGAIN], [SYSTEM, QUESTION, ANSWER, AGAIN]]
)
def test_the_text_is_that_of_transformers_and_so_are_the_ids(chat, messages):
    theirs = chat.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert chat.prompt_text(messages) == theirs
    expected = chat.tokenizer(theirs, add_special_tokens=False)["input_ids"]
    ids = chat.prompt_ids(messages)
    if chat.family == "t5":
        expected = [*expected, chat.tokenizer.eos_token_id]
    assert ids.tolist() == expected
    assert ids.dtype == np.int32


def test_a_question_alone_is_bare_text_to_a_t5():
    assert ChatFormat(_ours(), "t5").prompt_text([QUESTION]) == "hello there"
    longer = ChatFormat(_ours(), "t5").prompt_text([SYSTEM, QUESTION, ANSWER, AGAIN])
    assert longer == "System: Be kind.\nUser: hello there\nAssistant: 你好世界\nUser: one two three"
    chinese = ChatFormat(_ours(), "t5", "labels_zh").prompt_text([QUESTION, ANSWER, AGAIN])
    assert chinese == "用户： hello there\n助手： 你好世界\n用户： one two three"


def test_a_decoder_reads_up_to_its_answer():
    chat = ChatFormat(_ours(), "llama")
    assert chat.prompt_text([QUESTION]) == "User: hello there\nAssistant:"
    assert chat.prompt_text([QUESTION, ANSWER, AGAIN]) == (
        "User: hello there\nAssistant:你好世界</s>\nUser: one two three\nAssistant:"
    )
    whole = chat.tokenizer.apply_chat_template([QUESTION, ANSWER], tokenize=False)
    ids = [*chat.prompt_ids([QUESTION]), *chat.answer_ids("你好世界")]
    assert chat.tokenizer.decode(ids) == whole.removesuffix("\n")


def test_an_answer_ends_with_what_the_template_ends_it_with():
    chat = ChatFormat(_byte_level(), "llama")
    assert chat.tokenizer.decode(chat.answer_ids("hello")) == "hello<|im_end|>"
    assert chat.end_ids == [chat.tokenizer.eos_token_id]
    t5 = ChatFormat(_ours(), "t5")
    assert t5.answer_ids("hello")[-1] == t5.tokenizer.eos_token_id


def test_an_end_of_turn_other_than_the_end_mark_is_learned_and_stopped_at():
    tokenizer = _byte_level()
    tokenizer.eos_token = "<|endoftext|>"
    chat = ChatFormat(tokenizer, "llama")
    assert tokenizer.decode(chat.answer_ids("hello")) == "hello<|im_end|>"
    assert tokenizer.convert_ids_to_tokens(chat.end_ids) == ["<|endoftext|>", "<|im_end|>"]


@pytest.mark.parametrize("tokenizer", [_ours, _byte_level])
def test_a_whole_conversation_is_the_templates_text(tokenizer):
    chat = ChatFormat(tokenizer(), "llama")
    messages = [SYSTEM, QUESTION, ANSWER, AGAIN, ANSWER]
    ids = []
    for before, answer in chat.turns(messages) or []:
        ids += [*chat.encode_template_texts([before])[0], *chat.answer_ids(answer)]
    assert chat.tokenizer.decode(ids) == chat.tokenizer.apply_chat_template(messages, tokenize=False).removesuffix("\n")


def test_a_template_that_rewrites_its_history_has_no_text_of_the_whole():
    tokenizer = _byte_level()
    tokenizer.chat_template = "{% for m in messages %}{% if loop.index > messages | length - 2 %}" + (
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    chat = ChatFormat(tokenizer, "llama")
    assert chat.turns([QUESTION, ANSWER]) is not None
    assert chat.turns([QUESTION, ANSWER, AGAIN, ANSWER]) is None


def _special_ids(chat):
    return {
        *chat.tokenizer.all_special_ids,
        *(id_ for id_, token in chat.tokenizer.added_tokens_decoder.items() if token.special),
    }


@pytest.mark.parametrize("width", ["", "full"])
def test_no_text_becomes_a_special_token(chat, width):
    names = [*chat.tokenizer.all_special_tokens, "<extra_id_3>", "<|im_start|>system", "</s>"]
    forged = "a" + "b".join(names) + "c"
    if width:
        forged = "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in forged)
    special = _special_ids(chat)
    clean = [token for token in chat.prompt_ids([QUESTION, ANSWER, AGAIN]) if token in special]
    forgery = chat.prompt_ids([QUESTION | {"content": forged}, ANSWER | {"content": forged}, AGAIN])
    # What a tokenizer without the bytes of full-width letters does not know may be unknown.
    unknown = {chat.tokenizer.unk_token_id}
    assert [token for token in forgery if token in special - unknown] == [t for t in clean if t not in unknown]
    end = chat.answer_ids("")
    assert not (special - unknown).intersection(chat.answer_ids(forged)[: -len(end)].tolist())


@pytest.mark.parametrize("text", [HARD, "hello there 你好世界 " * 3, "\ue000 one ▁▁ \t x two three"])
def test_prompts_are_cut_between_characters(chat, text):
    whole = chat.prompt_ids([{"role": "user", "content": text}])
    least = len(chat.prompt_ids([{"role": "user", "content": ""}])) + 4
    seen = set()
    for max_tokens in range(least, len(whole)):
        ids = chat.prompt_ids([{"role": "user", "content": text}], max_tokens)
        assert least - 4 < len(ids) <= max_tokens
        back = chat.tokenizer.decode(ids, skip_special_tokens=True)
        assert "\ufffd" not in back
        seen.add(back)
    assert len(seen) > 2
    assert chat.prompt_ids([{"role": "user", "content": text}], len(whole)).tolist() == whole.tolist()


@pytest.mark.parametrize("text", [HARD, "hello there 你好世界 " * 3])
def test_answers_are_cut_between_characters_and_then_have_no_end(chat, text):
    whole = chat.answer_ids(text)
    special = _special_ids(chat) - {chat.tokenizer.unk_token_id}
    longest = chat.tokenizer.decode(whole)
    before = chat.cuts.answers
    for max_tokens in range(1, len(whole)):
        ids = chat.answer_ids(text, max_tokens)
        assert len(ids) <= max_tokens
        back = chat.tokenizer.decode(ids)
        assert "\ufffd" not in back
        assert longest.startswith(back.rstrip())
        assert not special.intersection(ids.tolist())
    assert chat.cuts.answers == before + len(whole) - 1
    assert chat.answer_ids(text, len(whole)).tolist() == whole.tolist()


def test_the_oldest_turns_go_first_and_the_systems_message_stays():
    chat = ChatFormat(_ours(), "t5")
    messages = [SYSTEM, QUESTION, ANSWER, AGAIN, ANSWER, QUESTION]
    room = len(chat.prompt_ids([SYSTEM, AGAIN, ANSWER, QUESTION]))
    assert chat.prompt_ids(messages, room).tolist() == chat.prompt_ids([SYSTEM, AGAIN, ANSWER, QUESTION]).tolist()
    assert (chat.cuts.prompts, chat.cuts.turns) == (1, 2)
    assert chat.prompt_ids(messages, room - 1).tolist() == chat.prompt_ids([SYSTEM, QUESTION]).tolist()
    assert str(chat.cuts) == "2 prompts (6 whole turns among them) and 0 answers cut"
    with pytest.raises(DataError, match="3 tokens have no room for a prompt: what stands around it needs"):
        chat.prompt_ids(messages, 3)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_the_template_is_saved_with_the_tokenizer(family, tmp_path):
    chat = ChatFormat(_ours(), family, "labels_zh")
    save_tokenizer(chat.tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    messages = [QUESTION, ANSWER, AGAIN]
    assert loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == chat.prompt_text(
        messages
    )
    assert ChatFormat(loaded, family).prompt_ids(messages).tolist() == chat.prompt_ids(messages).tolist()
    ChatFormat(loaded, family, "labels_zh")  # what it has already
    with pytest.raises(ConfigError, match="it brings another template; leave --chat_template out"):
        ChatFormat(loaded, family, "labels")


def test_a_template_may_be_a_file(tmp_path):
    (tmp_path / "chat.jinja").write_text(built_in_template("labels_zh", "t5"), encoding="utf-8")
    chat = ChatFormat(_ours(), "t5", str(tmp_path / "chat.jinja"))
    assert chat.tokenizer.chat_template == built_in_template("labels_zh", "t5")
    with pytest.raises(ConfigError, match=f"--chat_template alpaca is none of {', '.join(BUILT_IN)}, and as a file it"):
        ChatFormat(_ours(), "t5", "alpaca")


def test_what_cannot_be_a_chat_format_is_refused():
    tokenizer = _ours()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="has no end mark"):
        ChatFormat(tokenizer, "t5")
    with pytest.raises(DataError, match="does not write an answer behind its own generation prompt"):
        ChatFormat(_byte_level_with("{{ messages[0]['content'] }}{% if add_generation_prompt %}x{% endif %}"), "llama")
    with pytest.raises(DataError, match=r"refuses a conversation of user: .*no"):
        ChatFormat(_byte_level_with("{{ raise_exception('no') }}"), "llama")


def _byte_level_with(template):
    tokenizer = _byte_level()
    tokenizer.chat_template = template
    return tokenizer


MARKED = {
    "chatml": "<|im_start|>user\nhello there{end}\n<|im_start|>assistant\n你好世界{end}\n",
    "zephyr": "<|user|>\nhello there{end}\n<|assistant|>\n你好世界{end}\n",
}


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("make", [_ours, _byte_level])
def test_a_template_with_marks_is_transformers_text_and_its_end_of_turn_is_learned(name, make):
    tokenizer, reference = make(), make()
    tokenizer.chat_template = None
    chat = ChatFormat(tokenizer, "llama", name)
    messages = [QUESTION, ANSWER]
    bos = tokenizer.bos_token if tokenizer.bos_token not in (None, "<|im_start|>") else ""
    text = bos + MARKED[name].format(end=tokenizer.eos_token)
    reference.chat_template = tokenizer.chat_template
    assert reference.apply_chat_template(messages, tokenize=False) == text
    learned = [*chat.prompt_ids([QUESTION]), *chat.answer_ids(ANSWER["content"])]
    assert learned == reference(text.removesuffix("\n"), add_special_tokens=False).input_ids
    assert learned[-1] == tokenizer.eos_token_id == chat.end_ids[-1]
    ((before, answer),) = chat.turns(messages)
    assert before + answer + tokenizer.eos_token + "\n" == text
