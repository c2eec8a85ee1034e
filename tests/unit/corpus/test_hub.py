"""Hub data sets, on a local folder that `datasets` opens like one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fivefold.corpus.hub import HubDataset, HubReader
from fivefold.corpus.read import Corpus
from fivefold.corpus.settings import CorpusSettings
from fivefold.errors import DataError

RECORDS = [{"text": f"document {number}", "number": number} for number in range(700)]


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDataset]:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    for name, records in (("a.jsonl", RECORDS[:500]), ("b.jsonl", RECORDS[500:])):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    datasets.disable_progress_bars()
    yield HubDataset(str(folder), None, "train")
    datasets.enable_progress_bars()


@pytest.mark.parametrize("streaming", [True, False])
def test_records_and_resuming(dataset: HubDataset, streaming: bool) -> None:
    settings = CorpusSettings(data=[dataset.hub_id], streaming=streaming)
    corpus = Corpus([dataset], settings, ["text"])
    states = []
    records = []
    for record in corpus:
        records.append(record)
        states.append(corpus.state_dict())
    assert records == RECORDS
    for taken in (1, 2, 499, 500, 501, 700):
        resumed = Corpus([dataset], settings, ["text"])
        resumed.load_state_dict(json.loads(json.dumps(states[taken - 1])))
        assert list(resumed) == RECORDS[taken:]


def test_a_record_without_text_is_named(dataset: HubDataset) -> None:
    corpus = Corpus([dataset], CorpusSettings(data=[dataset.hub_id]), ["title"])
    with pytest.raises(DataError, match="data: record 1: no field 'title', only 'text', 'number'"):
        list(corpus)


def test_a_split_or_configuration_that_does_not_exist(dataset: HubDataset) -> None:
    with pytest.raises(DataError, match="Bad split: nope"):
        list(HubReader(HubDataset(dataset.hub_id, None, "nope"), streaming=True))
    with pytest.raises(DataError, match="'nope' not found"):
        list(HubReader(HubDataset(dataset.hub_id, "nope", "train"), streaming=True))


def test_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="'nobody/nothing' is no local path and no catalogue name"):
        list(HubReader(HubDataset("nobody/nothing", None, "train"), streaming=True))
