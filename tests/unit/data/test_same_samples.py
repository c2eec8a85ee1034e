"""However a run is divided or interrupted, it trains on the same samples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fivefold.corpus.settings import CorpusSettings
from fivefold.data.batch_plan import BatchPlan
from fivefold.data.build import build_sources
from fivefold.data.loader import BatchLoader, Step
from fivefold.data.preparation import prepare_tokens
from fivefold.data.settings import DataSettings, ObjectiveSettings, PrepareSettings
from fivefold.data.source import Source

NUM_STEPS = 12
Samples = list[tuple[list[int], list[int]]]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(texts))
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, text_file: Path, tokenizer: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("prepared")
    prepare_tokens(CorpusSettings([str(text_file)]), PrepareSettings("", ""), tokenizer, folder)
    return folder


@pytest.fixture(
    scope="module",
    params=["prepared ul2", "prepared causal", "prepared ul2 packed", "text_file ul2", "text_file causal"],
)
def open_source(request: pytest.FixtureRequest, tokenizer: Any) -> Callable[[], Source]:
    kind, objective, *packed = request.param.split()
    corpus = CorpusSettings([str(request.getfixturevalue(kind))])
    data, settings = DataSettings(packing=bool(packed)), ObjectiveSettings(objective, 64)
    return lambda: build_sources(corpus, data, settings, tokenizer, seed=3)[0]


def samples(step: Step) -> Samples:
    """The real tokens of every sample, free of padding."""
    rows: Samples = []
    for batch in step.micro_batches:
        for row in range(len(batch["labels"])):
            mask = batch.get("segments", batch.get("attention_mask", torch.ones_like(batch["input_ids"])))[row]
            labels = batch["labels"][row]
            rows.append((batch["input_ids"][row][mask > 0].tolist(), labels[labels != -100].tolist()))
    return rows


def run(open_source: Callable[[], Source], plan: BatchPlan, rank: int, first: int, state: dict[str, Any]) -> list[Step]:
    source = open_source()
    source.load_state_dict(state)
    with BatchLoader(source, plan, rank=rank, first_step=first) as loader:
        return [next(loader) for _ in range(first, NUM_STEPS)]


@pytest.fixture(scope="module")
def eight_at_once(open_source: Callable[[], Source]) -> list[Samples]:
    initial = open_source().state_dict()
    return [sorted(samples(step)) for step in run(open_source, BatchPlan(8, 1, 1), 0, 0, initial)]


@pytest.mark.parametrize("plan", [BatchPlan(1, 8, 1), BatchPlan(4, 1, 2), BatchPlan(2, 2, 2), BatchPlan(1, 2, 4)])
def test_any_division_of_a_step_holds_the_same_samples(plan, open_source, eight_at_once) -> None:
    initial = open_source().state_dict()
    ranks = [run(open_source, plan, rank, 0, initial) for rank in range(plan.world_size)]
    for number, steps in enumerate(zip(*ranks, strict=True)):
        assert sorted(sample for step in steps for sample in samples(step)) == eight_at_once[number]


def test_every_process_goes_on_from_the_state_of_the_first(open_source, eight_at_once) -> None:
    plan = BatchPlan(2, 2, 2)
    initial = open_source().state_dict()
    states = [initial, *(step.source_state for step in run(open_source, plan, 0, 0, initial))]
    for first in (1, 5, NUM_STEPS - 1):
        ranks = [run(open_source, plan, rank, first, states[first]) for rank in range(2)]
        for number, steps in enumerate(zip(*ranks, strict=True), start=first):
            assert sorted(sample for step in steps for sample in samples(step)) == eight_at_once[number]
