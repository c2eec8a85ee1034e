"""WSC as free text: the model writes what a marked pronoun stands for, and that is compared to the one asked about."""

from collections.abc import Iterator, Sequence

from fivefold.corpus.files import Record
from fivefold.evaluation.superglue.example import Example, Source, Verdict
from fivefold.evaluation.superglue.task import BrokenRecord, Task

_DETERMINERS = "a an few her his each every many much my our some that the their these this those which whose your"
_OTHER = "?"
"""Is no referent."""


class WSC(Task):
    """Source: T5, section 2.4: only sentences whose referent is right teach anything."""

    def flatten(self, record: Record) -> Iterator[Record]:
        """An official record keeps its spans in a field of their own."""
        yield {**record, **record["target"]} if "target" in record else record

    def example(self, record: Record) -> Example:
        """A sentence, and what the pronoun may stand for."""
        label, referent = self.label_of(record), record["span1_text"]
        return Example(
            self.idx_of(record),
            self.source(record),
            gold=() if label is None else (label,),
            targets=(referent,) if label == "True" else (),
            referent=referent,
        )

    def source(self, record: Record) -> Source:
        """The sentence with stars around the pronoun."""
        words, pronoun, place = record["text"].split(), record["span2_text"], int(record["span2_index"])
        # Some numbers are off by a few words, some pronouns have marks at them.
        hits = [number for number, word in enumerate(words) if pronoun.lower() in _bare(word).lower().split()]
        hits = hits or [number for number, word in enumerate(words) if pronoun in word]
        if not hits:
            raise BrokenRecord(f"the pronoun {pronoun!r} is not in the text {record['text']!r}")
        at = min(hits, key=lambda number: abs(number - place))
        start = words[at].lower().index(pronoun.lower())
        end = start + len(pronoun)
        words[at] = f"{words[at][:start]}*{words[at][start:end]}*{words[at][end:]}"
        return Source(f"{self.prefix} ", " ".join(words))

    def judge(self, example: Example, answer: str) -> Verdict:
        """True where one's words are among the other's, determiners aside; "Bob" is not "Bob's hat"."""
        answer = answer.strip()
        said, asked = _core(answer), _core(example.referent)
        if not said:
            return Verdict(example, answer, None)
        is_same = ("'" in answer) == ("'" in example.referent) and (said <= asked or asked <= said)
        return Verdict(example, answer, str(is_same))

    def guesses(self, example: Example) -> tuple[str, ...]:
        """The referent, or something else."""
        return example.referent, _OTHER

    def most_frequent(self, examples: Sequence[Example]) -> list[str]:
        """The referent, or something else, whichever is right more often."""
        is_mostly_right = 2 * sum(example.gold == ("True",) for example in examples) > len(examples)
        return [example.referent if is_mostly_right else _OTHER for example in examples]


def _bare(word: str) -> str:
    return "".join(character if character.isalnum() or character == "'" else " " for character in word)


def _core(text: str) -> set[str]:
    return set(text.lower().split()) - set(_DETERMINERS.split())
