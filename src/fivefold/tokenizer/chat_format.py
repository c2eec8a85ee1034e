"""Conversations to what a model reads and learns: one serialisation, the chat template saved with the tokenizer."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fivefold.errors import ConfigError, DataError
from fivefold.tokenizer.encode import CorpusEncoder, broken, special_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Family: TypeAlias = Literal["t5", "llama"]
Message: TypeAlias = dict[str, str]
"""{"role": "system", "user" or "assistant", "content": text}, as Hugging Face has it."""

Ids: TypeAlias = NDArray[np.int32]

_LABELS = {
    "labels": {"system": "System:", "user": "User:", "assistant": "Assistant:"},
    "labels_zh": {"system": "\u7cfb\u7edf\uff1a", "user": "\u7528\u6237\uff1a", "assistant": "\u52a9\u624b\uff1a"},
}
_MARKS = {"chatml": "'<|im_start|>' + {role} + '\\n'", "zephyr": "'<|' + {role} + '|>\\n'"}
"""Jinja for what begins a turn."""
BUILT_IN = (*_LABELS, *_MARKS)
"""The serialisations that have a name: a line a turn, begun with who speaks, in English or in Chinese; and two in which
a mark begins every turn and another one ends it."""


def built_in_template(name: str, family: Family, special_tokens: Sequence[str] = ()) -> str:
    """The Jinja template of a serialisation that has a name.

    T5: one message of the user's is the bare text, so that prompts stay what they are to a T5; anything longer is a
    labelled line a turn. Decoder: labelled lines, an end mark behind each answer, and at the end the assistant's label.
    chatml and zephyr are the same for both; a turn of chatml ends with <|im_end|> where that is a special token, else
    with the end mark, since a model learns to stop by single tokens only.
    """
    if name in _MARKS:
        end = "'<|im_end|>'" if name == "chatml" and "<|im_end|>" in special_tokens else "eos_token"
        turn, answer = (_MARKS[name].format(role=role) for role in ("message['role']", "'assistant'"))
        return (
            "{{ bos_token if bos_token != '<|im_start|>' }}{% for message in messages %}"
            + "{{ "
            + turn
            + " + message['content'] + "
            + end
            + " + '\\n' }}{% endfor %}"
            + "{% if add_generation_prompt %}{{ "
            + answer
            + " }}{% endif %}"
        )
    label = "{{ " + repr(_LABELS[name]) + "[message['role']] }}"
    if family == "t5":
        line = label + "{{ ' ' + message['content'] }}{% if not loop.last %}{{ '\\n' }}{% endif %}"
        bare = "{% if messages | length == 1 and messages[0]['role'] == 'user' %}{{ messages[0]['content'] }}{% else %}"
        return bare + "{% for message in messages %}" + line + "{% endfor %}{% endif %}"
    line = (
        label
        + "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
        + "{% else %}{{ ' ' + message['content'] }}{% endif %}{{ '\\n' }}"
    )
    prompt = "{% if add_generation_prompt %}{{ " + repr(_LABELS[name]["assistant"]) + " }}{% endif %}"
    return "{{ bos_token }}{% for message in messages %}" + line + "{% endfor %}" + prompt


@dataclass
class Cuts:
    """What had to be left out so far because it was too long."""

    prompts: int = 0
    """Prompts that lost tokens or turns."""
    turns: int = 0
    """Messages left out of them whole."""
    answers: int = 0
    """Answers that lost their end, and so their end mark."""

    def __str__(self) -> str:
        return f"{self.prompts:,} prompts ({self.turns:,} whole turns among them) and {self.answers:,} answers cut"


class ChatFormat:
    """How a model reads conversations.

    A T5's encoder reads what stands before an answer, with an end mark behind it, and its decoder writes the answer. A
    decoder reads the template's text up to where the answer begins and goes on. What people write never becomes a
    special token: names of such tokens in a message are broken with a space, as in corpus text.

    The tokenizer keeps its chat template where it has one; else it is given ours, which it is then saved with.

    Args:
        tokenizer: of the `tokenizers` library; its `chat_template` may be set here.
        family: "t5" or "llama", which is any decoder.
        chat_template: a serialisation of `BUILT_IN`, a Jinja template, or a file with one; by default the
            tokenizer's own, else "labels".

    Raises:
        ConfigError: no such template, or not the one that the tokenizer has already.
        DataError: the template cannot be used, or there is no end mark.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", family: Family, chat_template: str | None = None) -> None:
        self.tokenizer: Any = tokenizer
        self.family: Family = family
        self.cuts = Cuts()
        if tokenizer.eos_token_id is None:
            raise DataError("The tokenizer has no end mark (eos_token), so no answer could ever end; give another one.")
        self._set_template(chat_template)
        self._plain = CorpusEncoder(tokenizer)
        names = sorted(special_names(tokenizer), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)))
        self._before, self._end, self._end_ids = self._probe()

    @property
    def end_ids(self) -> list[int]:
        """Tokens that each end an answer: what generation stops at."""
        return sorted({self.tokenizer.eos_token_id, *self._end_ids[:1].tolist()})

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """What is read before an answer, as transformers' `apply_chat_template` writes it.

        Raises:
            DataError: the template refuses these messages.
        """
        return self._render(messages, add_generation_prompt=True)

    def prompt_ids(self, messages: Sequence[Message], max_tokens: int | None = None) -> Ids:
        """The tokens read before an answer; a T5's with an end mark.

        Args:
            messages: the last one is the user's.
            max_tokens: where there would be more, the oldest turns are left out, the system's message excepted, and
                then the last message loses its end, whole characters at a time.

        Raises:
            DataError: the template refuses the messages, or does not fit into `max_tokens` itself.
        """
        (ids,) = self.encode_prompts([messages], max_tokens)
        return ids

    def answer_ids(self, text: str, max_tokens: int | None = None) -> Ids:
        """The tokens of an answer with the end mark; cut to whole characters and without end mark where they are more.

        Args:
            text: what the assistant says.
            max_tokens: the most there may be.
        """
        (ids,) = self.encode_answers([text], max_tokens)
        return ids

    def encode_prompts(self, prompts: Sequence[Sequence[Message]], max_tokens: int | None = None) -> list[Ids]:
        """As `prompt_ids`, many at once, which is faster."""
        encoded = self.encode_template_texts([self.prompt_text(messages) for messages in prompts])
        if self.family == "t5":
            end = np.array([self.tokenizer.eos_token_id], np.int32)
            encoded = [np.concatenate([ids, end]) for ids in encoded]
        if max_tokens is None:
            return encoded
        return [
            ids if len(ids) <= max_tokens else self._cut_prompt(messages, max_tokens)
            for messages, ids in zip(prompts, encoded, strict=True)
        ]

    def encode_answers(self, texts: Sequence[str], max_tokens: int | None = None) -> list[Ids]:
        """As `answer_ids`, many at once, which is faster."""
        texts = [self._before + self._disarmed(text) for text in texts]
        whole = [np.concatenate([ids, self._end_ids]) for ids in self._plain(texts)]
        if max_tokens is None:
            return whole
        return [
            ids if len(ids) <= max_tokens else self._cut_answer(text, ids, max_tokens)
            for text, ids in zip(texts, whole, strict=True)
        ]

    def encode_template_texts(self, texts: Sequence[str]) -> list[Ids]:
        """Texts that a template has written, in which the names of special tokens mean these."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def encode_texts(self, texts: Sequence[str]) -> list[Ids]:
        """Plain texts as a decoder learns them, in which the names of special tokens mean these.

        In front stands what the tokenizer itself puts before a text, behind it the end mark, each once.
        """
        end = self.tokenizer.eos_token_id
        start = [token for token in self.tokenizer("")["input_ids"] if token != end]
        whole = []
        for ids in self.encode_template_texts(texts):
            before = start if ids[: len(start)].tolist() != start else []
            behind = [end] if ids[-1:].tolist() != [end] else []
            whole.append(np.concatenate([before, ids, behind]).astype(np.int32))
        return whole

    def turns(self, messages: Sequence[Message]) -> list[tuple[str, str]] | None:
        """A conversation as a decoder learns it: by answer, the template's text since the one before, and the answer.

        Returns:
            For `encode_template_texts` and `encode_answers`; what stands before an answer begins with what the template
            writes behind the previous end mark. None where the template writes a history differently once it goes on,
            so that no text holds all answers as they were written.
        """
        found, done = [], ""
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self.prompt_text(messages[:place])
            if not prompt.startswith(done):
                return None
            found.append((prompt[len(done) :], message["content"]))
            done = prompt + self._before + self._disarmed(message["content"]) + self._end
        return found

    def describe(self) -> str:
        """The serialisation as a user sees it, by an example."""
        example = [
            {"role": "user", "content": "..."},
            {"role": "assistant", "content": "..."},
            {"role": "user", "content": "..."},
        ]
        return repr(self.prompt_text(example))

    @property
    def _backend(self) -> Any:
        return self.tokenizer.backend_tokenizer

    def _set_template(self, wanted: str | None) -> None:
        own = self.tokenizer.chat_template
        if wanted is None:
            if own is None:
                self.tokenizer.chat_template = built_in_template("labels", self.family)
            return
        template = (
            built_in_template(wanted, self.family, special_names(self.tokenizer))
            if wanted in BUILT_IN
            else _read_template(wanted)
        )
        if own is not None and own != template:
            raise ConfigError(
                "--chat_template is not what the model's tokenizer has been trained with: it brings another template; "
                "leave --chat_template out to use that, or start from a model without one."
            )
        self.tokenizer.chat_template = template

    def _probe(self) -> tuple[str, str, Ids]:
        """What the template puts in front of and behind an answer, the latter up to its end mark, and the end's ids."""
        eos = np.array([self.tokenizer.eos_token_id], np.int32)
        if self.family == "t5":
            return "", "", eos
        question, answer = {"role": "user", "content": "q"}, "Hm"
        prompt = self.prompt_text([question])
        whole = self._render([question, {"role": "assistant", "content": answer}], add_generation_prompt=False)
        if not whole.startswith(prompt) or answer not in whole[len(prompt) :]:
            raise DataError(
                f"The tokenizer's chat template does not write an answer behind its own generation prompt ({prompt!r}, "
                f"then {whole!r}); give one that does with --chat_template."
            )
        before, _, behind = whole[len(prompt) :].partition(answer)
        (ids,) = self.encode_template_texts([behind])
        marks = [place for place, token in enumerate(ids.tolist()) if token in self.tokenizer.all_special_ids]
        if not marks:
            return before, "", eos
        # What follows the end mark, mostly a line break, belongs to the next turn.
        names = [match.end() for match in self._names.finditer(behind)]
        return before, behind[: names[len(marks) - 1]], ids[: marks[-1] + 1]

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        disarmed = [message | {"content": self._disarmed(message["content"])} for message in messages]
        try:
            return self.tokenizer.apply_chat_template(
                disarmed, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # templates raise what they like, and Jinja its own kinds
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(f"The tokenizer's chat template refuses a conversation of {roles}: {error}.") from error

    def _disarmed(self, text: str) -> str:
        """The text, names of special tokens broken with a space, and so are those that NFKC makes of wide letters."""
        if self._names.search(text):
            return self._names.sub(broken, text)
        folded = unicodedata.normalize("NFKC", text)
        return self._names.sub(broken, folded) if self._names.search(folded) else text

    def _cut_prompt(self, messages: Sequence[Message], max_tokens: int) -> Ids:
        self.cuts.prompts += 1
        first = 1 if messages[0]["role"] == "system" else 0
        system, turns = list(messages[:first]), list(messages[first:])
        ids = self.prompt_ids([*system, *turns])
        while len(ids) > max_tokens and len(turns) > 1:
            turns = turns[2:]
            self.cuts.turns += 2
            ids = self.prompt_ids([*system, *turns])
        text = self._disarmed(turns[-1]["content"])
        while len(ids) > max_tokens and text:
            offsets = self._plain.offsets(text)
            # Behind what fits, the first token's own beginning: a character of several tokens begins with its first.
            keep = len(offsets) - (len(ids) - max_tokens)
            text = text[: offsets[keep][0]] if keep > 0 else ""
            ids = self.prompt_ids([*system, turns[-1] | {"content": text}])
        if not text:
            raise DataError(
                f"{max_tokens} tokens have no room for a prompt: what stands around it needs {len(ids)} already; give "
                "more with --input_length."
            )
        return ids

    def _cut_answer(self, text: str, ids: Ids, max_tokens: int) -> Ids:
        self.cuts.answers += 1
        keep = min(max_tokens, len(ids) - len(self._end_ids))
        if keep < max_tokens:  # only the end mark has no room
            return ids[:keep]
        offsets = self._plain.offsets(text)
        while keep and keep < len(offsets) and offsets[keep][0] < offsets[keep - 1][1]:
            keep -= 1
        return ids[:keep]


def _read_template(wanted: str) -> str:
    if "{" in wanted:
        return wanted
    try:
        return Path(wanted).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--chat_template {wanted} is none of {', '.join(BUILT_IN)}, and as a file it cannot be read ({error})."
        ) from None
