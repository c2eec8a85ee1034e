"""Questions to a model, answers from it: written by it, or chosen among those there are by their likelihood."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fivefold.errors import ConfigError
from fivefold.evaluation.likelihood import answer_likelihoods, by_length
from fivefold.evaluation.prompts import Prompts
from fivefold.evaluation.superglue.example import Source
from fivefold.models.answer_journal import AnswerJournal
from fivefold.models.decoding import DecodingSettings
from fivefold.models.writing import Writer
from fivefold.objectives.answer_logps import check_answers_apart
from fivefold.t5.model import T5Model

Scoring = Literal["generate", "likelihood"]


@dataclass(frozen=True)
class Question:
    """What is asked."""

    source: Source
    choices: tuple[str, ...] = ()
    """The answers to choose among; whoever writes freely is only bounded by their length."""
    shots: Sequence[tuple[Source, str]] = field(default=())
    """Other questions with their answers, to be read before it."""


class Respondent:
    """A model that is asked.

    Args:
        model: a T5 or a decoder, in evaluation mode.
        tokenizer: the model's.
        scoring: generate lets it write, without chance; likelihood takes the likeliest choice, by the sum of the
            logarithms of its tokens' probabilities, a T5's end mark among them.
        input_length: most tokens of a question; by default what tokenizer and model allow.
        max_new_tokens: most tokens of a written answer; where there are choices, no more than the longest one has.

    Raises:
        ModelError: a decoder that cannot tell several answers apart is asked for likelihoods.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        scoring: Scoring = "generate",
        input_length: int | None = None,
        max_new_tokens: int = 32,
    ) -> None:
        self.model, self.scoring, self._max_new_tokens = model, scoring, max_new_tokens
        self._writer = Writer(model, tokenizer, input_length=input_length)
        self._is_t5 = isinstance(model, T5Model)
        room = self._writer.room(max_new_tokens)
        self.prompts = Prompts(tokenizer, "t5" if self._is_t5 else "llama", room)
        if scoring == "likelihood" and not self._is_t5:
            check_answers_apart(model)

    def ask(
        self,
        name: str,
        questions: Sequence[Question],
        batch_size: int,
        journal: AnswerJournal,
        show_progress: Callable[[int, int], None] = lambda done, to_do: None,
    ) -> list[str]:
        """The answer to each question.

        Args:
            name: of the questions, for the journal.
            batch_size: questions that are read together, those of like length.
            journal: of the answers so far.
            show_progress: told how many more are answered, and how many more there are to answer.
        """
        prompts = [self.prompts.prompt(one.source, self.prompts.shots(one.shots)) for one in questions]
        choices = [
            [self.prompts.answer(text, choice, ends=self._is_t5) for choice in question.choices]
            for (text, _), question in zip(prompts, questions, strict=True)
        ]
        decoding = self._decoding(choices)
        answers = [""] * len(questions)
        for batch in by_length([len(row) for _, row in prompts], batch_size):
            found = journal.find(name, *batch)
            if found is None:
                rows = [prompts[number][1] for number in batch]
                if self.scoring == "generate":
                    found = self.prompts.texts(self._writer.write([row.tolist() for row in rows], decoding))
                else:
                    best = self._likeliest(rows, [choices[number] for number in batch])
                    found = [questions[number].choices[place] for number, place in zip(batch, best, strict=True)]
                journal.add(name, *batch, answers=found)
            for number, answer in zip(batch, found, strict=True):
                answers[number] = answer
            show_progress(len(batch), 0)
        return answers

    def _likeliest(self, rows: Sequence[NDArray], choices: Sequence[Sequence[NDArray]]) -> list[int]:
        likelihoods = answer_likelihoods(self.model, rows, choices, pad_id=self._writer.pad_id)
        return [max(range(len(each)), key=lambda place: each[place].logp) for each in likelihoods]

    def _decoding(self, choices: Sequence[Sequence[NDArray]]) -> DecodingSettings:
        if not all(choices):
            if self.scoring == "likelihood":
                raise ConfigError(
                    "Likelihood chooses among answers, but some questions have none; let the model write."
                )
            return DecodingSettings(max_new_tokens=self._max_new_tokens)
        # A decoder's choices come without the end mark, which tells that nothing follows.
        longest = max(len(choice) for of_one in choices for choice in of_one) + (not self._is_t5)
        return DecodingSettings(max_new_tokens=min(longest, self._max_new_tokens))
