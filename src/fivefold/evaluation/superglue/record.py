"""ReCoRD: which of a passage's names belongs into the gap of a sentence."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from fivefold.corpus.files import Record
from fivefold.evaluation.superglue.example import Example, Source, Verdict
from fivefold.evaluation.superglue.task import BrokenRecord, Task


class ReCoRD(Task):
    """The names of the passage are the choices; each right one is learned, and any of them will do."""

    def flatten(self, record: Record) -> Iterator[Record]:
        """An official passage, with queries in it, to one record a query."""
        if "qas" not in record:
            yield record
            return
        text = record["passage"]["text"]
        # The last character of a name is at its end, not behind it.
        names = [text[entity["start"] : entity["end"] + 1] for entity in record["passage"]["entities"]]
        for query in record["qas"]:
            yield {
                "passage": text,
                "query": query["query"],
                "entities": names,
                "answers": [answer["text"] for answer in query.get("answers", ())],
                "idx": {"passage": record["idx"], "query": query["idx"]},
            }

    def example(self, record: Record) -> Example:
        """A query with its names."""
        names, answers = (tuple(dict.fromkeys(record[key])) for key in ("entities", "answers"))
        if not names:
            raise BrokenRecord("it has no entities to choose among")
        source = self.source({**record, "entities": ", ".join(names)})
        return Example(self.idx_of(record), source, names, answers, answers)

    def source(self, record: Record) -> Source:
        """The passage's last lines, which sum it up, become sentences of it."""
        passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", record["passage"])
        return super().source({**record, "passage": passage.replace("\n@highlight\n", ". ")})

    def idx_of(self, record: Record) -> tuple[int, ...]:
        """Passage and query."""
        return int(record["idx"]["passage"]), int(record["idx"]["query"])

    def most_frequent(self, examples: Sequence[Example]) -> list[str]:
        """The name that the passage has most often."""
        return [max(example.choices, key=example.source.passage.count) for example in examples]

    def submission(self, verdicts: Sequence[Verdict]) -> Iterator[dict[str, Any]]:
        """The name, by the query's number."""
        for verdict in verdicts:
            yield {"idx": verdict.example.idx[1], "label": verdict.answer}
