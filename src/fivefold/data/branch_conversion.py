"""Conversations and questions on passages to main texts with branches."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from fivefold.corpus.bad_lines import BadRecord
from fivefold.corpus.files import Record
from fivefold.corpus.read import Corpus, open_corpus
from fivefold.corpus.settings import CorpusSettings
from fivefold.data.branch_records import BranchText
from fivefold.data.conversations import text_of
from fivefold.data.record_shapes import Shape, ShapeReader, first_of
from fivefold.tokenizer.chat_format import Message

PASSAGES, QUESTIONS = ("passage", "context", "paragraph"), ("question", "query")
ANSWERS = ("answer", "answers", "output", "response")
PASSAGE_QUESTION = "passage_question"
"""The field of a converted record that holds its `PassageQuestion`."""

_ITEM = re.compile(r"\s*(?:\d+[.):]|[-*+\u2022])\s+(\S.*)")


class PassageQuestion(NamedTuple):
    """A question on a passage, answered."""

    passage: str
    question: str
    answer: str


@dataclass(frozen=True)
class Formats:
    """How parts become text; what is in braces is put in."""

    prompt: str = "{prompt}\n"
    question: str = "Question: {question}\nAnswer:"

    def question_and_answer(self, question: str, answer: str) -> BranchText:
        """A branch that reads the question and learns the answer."""
        before = self.question.replace("{question}", question)
        return BranchText(f"{before} {answer}", len(before))


def open_passage_questions(settings: CorpusSettings) -> Corpus:
    """Records with a passage, a question and an answer, each {"passage_question": PassageQuestion}.

    Raises:
        ConfigError, DataError: nothing named, or something that cannot be found, fetched or read.
    """
    fields = " or ".join(PASSAGES), " or ".join(QUESTIONS), " or ".join(ANSWERS)
    shape = Shape(
        "passages with questions",
        ", ".join(fields),
        lambda record: all(first_of(record, names) is not None for names in (PASSAGES, QUESTIONS, ANSWERS)),
        _read_question,
    )
    return open_corpus(settings, (), ShapeReader((shape,), "passage with a question"))


def _read_question(record: Record) -> Record:
    passage, question = (text_of(record[str(first_of(record, names))], names[0]) for names in (PASSAGES, QUESTIONS))
    answer: Any = record[str(first_of(record, ANSWERS))]
    if isinstance(answer, dict):  # SQuAD's
        answer = answer.get("text")
    if isinstance(answer, list):  # several people's; one is learned
        if not answer:
            raise BadRecord("the question has no answer")
        answer = answer[0].get("text") if isinstance(answer[0], dict) else answer[0]
    if not passage or not question or not (answer := text_of(answer, "the answer")):
        raise BadRecord("the passage, the question or the answer is empty")
    return {PASSAGE_QUESTION: PassageQuestion(passage, question, answer)}


def by_passage(questions: Iterable[PassageQuestion], formats: Formats) -> Iterator[tuple[str, list[BranchText]]]:
    """All questions on a passage behind it."""
    groups: dict[str, list[BranchText]] = {}
    for one in questions:
        groups.setdefault(f"{one.passage}\n", []).append(formats.question_and_answer(one.question, one.answer))
    yield from groups.items()


def by_answers(conversations: Iterable[list[Message]], formats: Formats) -> Iterator[tuple[str, list[BranchText]]]:
    """All different answers to a prompt behind it."""
    groups: dict[str, list[BranchText]] = {}
    for *before, last in conversations:
        answers = groups.setdefault(_prompt(before, formats), [])
        if (answer := BranchText(last["content"])) not in answers:
            answers.append(answer)
    yield from groups.items()


def by_items(conversations: Iterable[list[Message]], formats: Formats) -> Iterator[tuple[str, list[BranchText]]]:
    """The items of answers that are lists, behind the prompt and what leads to the list; other answers give none."""
    for *before, last in conversations:
        lines = [line for line in last["content"].splitlines() if line.strip()]
        items = [_ITEM.fullmatch(line) for line in lines]
        first = next((place for place, item in enumerate(items) if item), len(lines))
        lead = "".join(f"{line}\n" for line in lines[:first])
        found = [BranchText(item[1]) for item in items[first:] if item]
        is_whole = len(found) == len(lines) - first
        yield _prompt(before, formats) + lead, found if is_whole else []


def by_turns(conversations: Iterable[list[Message]], formats: Formats) -> Iterator[tuple[str, list[BranchText]]]:
    """Each exchange of a conversation behind what its system says, for conversations whose questions stand alone."""
    for messages in conversations:
        has_system = messages[0]["role"] == "system"
        turns = messages[1:] if has_system else messages
        exchanges = zip(turns[::2], turns[1::2], strict=True)
        branches = [formats.question_and_answer(asked["content"], said["content"]) for asked, said in exchanges]
        yield f"{messages[0]['content']}\n" if has_system else "", branches


def _prompt(messages: list[Message], formats: Formats) -> str:
    return formats.prompt.replace("{prompt}", "\n".join(message["content"] for message in messages))
