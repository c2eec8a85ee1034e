"""A model's own answers in the places of missing rejected ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fivefold.data.preferences import Preference
from fivefold.data.similarity import text_similarity
from fivefold.models.answer_journal import AnswerJournal
from fivefold.models.answers import Answerer
from fivefold.models.decoding import RejectedDecoding


@dataclass
class Filled:
    """Preferences that all have a rejected answer, in the order of the data, and what became of the others."""

    pairs: list[Preference] = field(default_factory=list)
    kept: int = 0
    """Had one already."""
    written: int = 0
    """Got one."""
    empty: int = 0
    """Left out: in the end the model said nothing."""
    similar: int = 0
    """Left out: in the end the model said what was chosen, or nearly."""

    def __str__(self) -> str:
        total = self.kept + self.written + self.empty + self.similar
        return (
            f"{total:,} prompts: {self.kept:,} had a rejected answer, {self.written:,} got one; dropped "
            f"{self.similar:,} whose answers are too much like the chosen one and {self.empty:,} with empty ones"
        )


def fill_rejected(
    preferences: Sequence[Preference],
    answerer: Answerer,
    decoding: RejectedDecoding,
    journal: AnswerJournal,
    *,
    batch_size: int,
    num_candidates: int,
    max_similarity: float,
    show_progress: Callable[[int, int], None] = lambda answers, more: None,
) -> Filled:
    """Let a model answer the prompts that have no rejected answer.

    Each prompt is answered once, then those whose answer cannot serve once more, up to `num_candidates` times: the
    first answer that can is taken, so that pairs hold what the model says and not the strangest of it. Prompts of like
    length are answered together.

    Args:
        preferences: from `read_preferences`.
        answerer: the model, mostly the one that is going to be trained.
        decoding: how its answers are chosen; drawn ones follow from the seed, a prompt's place and the draw alone.
        journal: of the answers written so far.
        batch_size: prompts answered at the same time.
        num_candidates: answers to a prompt at most; 1 where they are not drawn.
        max_similarity: an answer more alike to the chosen one than this cannot serve, see `text_similarity`.
        show_progress: told how many answers more there are, and how many more there will have to be.
    """
    missing = [place for place, preference in enumerate(preferences) if preference.rejected is None]
    encoded = answerer.chat_format.encode_prompts([preferences[place].prompt for place in missing]) if missing else []
    lengths = dict(zip(missing, map(len, encoded), strict=True))
    waiting = sorted(missing, key=lambda place: (-lengths[place], place))
    answers: dict[int, str] = {}
    for draw in range(num_candidates):
        show_progress(0, len(waiting))
        for start in range(0, len(waiting), batch_size):
            rows = waiting[start : start + batch_size]
            texts = journal.find(draw, *rows)
            if texts is None:
                texts = answerer.write([preferences[row].prompt for row in rows], decoding, rows, draw)
                journal.add(draw, *rows, answers=texts)
            answers |= zip(rows, texts, strict=True)
            show_progress(len(rows), 0)
        waiting = [row for row in waiting if not _can_serve(answers[row], preferences[row].chosen, max_similarity)]
    return _filled(preferences, answers, max_similarity)


def _filled(preferences: Sequence[Preference], answers: dict[int, str], max_similarity: float) -> Filled:
    filled = Filled()
    for place, preference in enumerate(preferences):
        if preference.rejected is not None:
            filled.kept += 1
            filled.pairs.append(preference)
        elif not answers[place]:
            filled.empty += 1
        elif not _can_serve(answers[place], preference.chosen, max_similarity):
            filled.similar += 1
        else:
            filled.written += 1
            filled.pairs.append(Preference(preference.prompt, preference.chosen, answers[place]))
    return filled


def _can_serve(answer: str, chosen: str, max_similarity: float) -> bool:
    return answer not in ("", chosen) and text_similarity(answer, chosen) <= max_similarity
