"""Settings to sources: what is trained on, what is held out, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fivefold.corpus.settings import CorpusSettings
from fivefold.data.build import build_sources, open_tokenizer
from fivefold.data.corruption import build_corruption
from fivefold.data.defaults import with_defaults
from fivefold.data.held_out import is_held_out
from fivefold.data.preparation import prepare_tokens
from fivefold.data.settings import DataSettings, ObjectiveSettings, PrepareSettings
from fivefold.data.tokens import TOKENIZER, TRAIN
from fivefold.errors import ConfigError, DataError
from fivefold.tokenizer.encode import CorpusEncoder
from fivefold.tokenizer.save import save_tokenizer
from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.train import train_tokenizer

FRAC = 0.1


@pytest.fixture(scope="module")
def text_file(tmp_path_factory, texts: list[str]) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join([*texts, "", "   "]))
    return path


@pytest.fixture(scope="module")
def pair_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    pairs = [{"prompt": f"what is {number} apples", "response": f"{number}"} for number in range(300)]
    path.write_text("\n".join(map(json.dumps, pairs)))
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, text_file: Path, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    settings = PrepareSettings("", "", validation_frac=FRAC)
    prepare_tokens(CorpusSettings([str(text_file)]), settings, tokenizer, folder)
    save_tokenizer(tokenizer, folder / TOKENIZER)
    return folder


def real(batch: dict[str, np.ndarray], row: int) -> tuple[list[int], list[int]]:
    ids, labels = batch["input_ids"][row], batch["labels"][row]
    return ids[ids != 0].tolist(), labels[labels != -100].tolist()


def decoded_prefix(source, samples: np.ndarray, tokenizer: Any) -> str:
    """The text of some prefix-LM samples, end to end."""
    batch = source.batch(samples)
    pieces = [side[:-1] for row in range(len(samples)) for side in real(batch, row)]
    return tokenizer.decode([token for piece in pieces for token in piece])


@pytest.mark.parametrize("how", ["stream", "prepared"])
def test_held_out_texts_are_measured_on_and_not_trained_on(how, text_file, prepared, texts, tokenizer) -> None:
    corpus = CorpusSettings([str(text_file if how == "stream" else prepared)])
    data = DataSettings(validation_frac=FRAC) if how == "stream" else DataSettings()
    training, validation = build_sources(corpus, data, ObjectiveSettings("prefix", 64), tokenizer, seed=0)
    assert validation is not None
    encode = CorpusEncoder(tokenizer)
    held_out = [text for text in texts if is_held_out(text, FRAC)]
    trained_on = [text for text in texts if not is_held_out(text, FRAC)]
    assert 20 < len(held_out) < 60

    measured = decoded_prefix(validation, np.arange(validation.samples_per_epoch or 0), tokenizer)
    for text in held_out:
        assert text in measured + measured  # the windows are a circle: a document may be cut by the end
    assert len(measured) == sum(map(len, held_out))

    num_tokens = sum(map(len, encode(trained_on)))
    seen = decoded_prefix(training, np.arange(num_tokens // 64), tokenizer)
    assert not any(text in seen for text in held_out)
    assert sum(text in seen for text in trained_on) > len(trained_on) / 3


def test_validation_does_not_depend_on_the_seed(text_file, prepared, tokenizer) -> None:
    for objective in ("span", "ul2", "prefix", "causal"):
        settings = ObjectiveSettings(objective, 48)
        made = []
        for seed in (0, 1):
            training, validation = build_sources(
                CorpusSettings([str(prepared)]), DataSettings(), settings, tokenizer, seed
            )
            assert validation is not None
            made.append((training.batch(np.arange(4)), validation.batch(np.arange(4))))
        assert made[0][0]["input_ids"].tolist() != made[1][0]["input_ids"].tolist()
        for name, array in made[0][1].items():
            np.testing.assert_array_equal(array, made[1][1][name])


def test_validation_data_of_its_own_excludes_its_texts(tmp_path, text_file, texts, tokenizer) -> None:
    other = tmp_path / "other.txt"
    other.write_text("\n".join([texts[3], "something else entirely"]))
    data = DataSettings(validation_data=[str(other)], shuffle_documents=1)
    training, validation = build_sources(
        CorpusSettings([str(text_file)]), data, ObjectiveSettings("prefix", 32), tokenizer, seed=0
    )
    assert validation is not None
    assert validation.describe().startswith("2 documents")
    seen = decoded_prefix(training, np.arange(20), tokenizer)
    assert texts[2] + texts[4] in seen
    assert seen.startswith(texts[0])


def test_nothing_held_out_is_no_validation(text_file, tokenizer) -> None:
    data = DataSettings(validation_frac=0.0)
    _, validation = build_sources(CorpusSettings([str(text_file)]), data, ObjectiveSettings(), tokenizer, seed=0)
    assert validation is None


def test_pairs_are_split_and_padded(pair_file, tokenizer) -> None:
    corpus, data = CorpusSettings([str(pair_file)]), DataSettings(validation_frac=FRAC)
    objective = ObjectiveSettings("seq2seq", 16)
    training, validation = build_sources(corpus, data, objective, tokenizer, seed=0)
    assert validation is not None
    assert training.samples_per_epoch is not None
    assert validation.samples_per_epoch is not None
    assert training.samples_per_epoch + validation.samples_per_epoch == 300
    prompts = []
    for source in (training, validation):
        batch = source.batch(np.arange(source.samples_per_epoch or 0))
        for row in range(len(batch["labels"])):
            inputs, labels = real(batch, row)
            assert inputs[-1] == labels[-1] == 1
            prompt, response = tokenizer.decode(inputs[:-1]), tokenizer.decode(labels[:-1])
            assert prompt == f"what is {response} apples"
            prompts.append(prompt)
    assert len(set(prompts)) == 300


def test_packed_pairs_are_measured_on_padded_ones(pair_file, tokenizer) -> None:
    corpus, objective = CorpusSettings([str(pair_file)]), ObjectiveSettings("seq2seq", 64)
    sources = [
        build_sources(corpus, DataSettings(validation_frac=FRAC, packing=packing), objective, tokenizer, seed=0)
        for packing in (False, True)
    ]
    (padded, padded_validation), (packed, packed_validation) = sources
    assert (packed.samples_per_epoch or 0) < 0.3 * (padded.samples_per_epoch or 0)
    numbers = np.arange(20)
    for name, array in (padded_validation or padded).batch(numbers).items():
        np.testing.assert_array_equal(array, (packed_validation or packed).batch(numbers)[name])


@pytest.mark.parametrize("objective", ["span", "ul2"])
def test_packed_rows_hold_whole_documents(objective, prepared, texts, tokenizer) -> None:
    settings, corpus = ObjectiveSettings(objective, 128), CorpusSettings([str(prepared)])
    training, validation = build_sources(corpus, DataSettings(packing=True), settings, tokenizer, seed=0)
    again, _ = build_sources(corpus, DataSettings(packing=True), settings, tokenizer, seed=0)
    other, other_validation = build_sources(corpus, DataSettings(packing=True), settings, tokenizer, seed=1)
    assert validation is not None
    assert other_validation is not None
    batch = training.batch(np.arange(8))
    assert 100 < batch["input_ids"].shape[1] <= 128
    assert batch["segments"].max() > 3
    for name, array in batch.items():
        np.testing.assert_array_equal(array, again.batch(np.arange(8))[name])
    assert batch["input_ids"].tolist() != other.batch(np.arange(8))["input_ids"].tolist()
    for name, array in validation.batch(np.arange(2)).items():
        np.testing.assert_array_equal(array, other_validation.batch(np.arange(2))[name])
    held_out = sum(is_held_out(text, FRAC) for text in texts)
    assert f"{held_out} documents" in validation.describe()
    given = replace(settings, target_length=100)
    training, _ = build_sources(corpus, DataSettings(packing=True), given, tokenizer, seed=0)
    assert "128 and 100 tokens" in training.describe()


def test_the_tokenizer_comes_with_the_folder(prepared, text_file, tokenizer, tmp_path) -> None:
    opened = open_tokenizer(CorpusSettings([str(prepared)]), DataSettings())
    assert opened.get_vocab() == tokenizer.get_vocab()
    with pytest.raises(ConfigError, match="--tokenizer is missing"):
        open_tokenizer(CorpusSettings([str(text_file)]), DataSettings())

    tokenizer.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["normalizer"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="another tokenizer"):
        open_tokenizer(CorpusSettings([str(prepared)]), DataSettings(str(tmp_path)))


@pytest.mark.parametrize("wanted", [None, True, False])
def test_mode_tokens_stand_first(wanted: bool | None, tokenizer, prepared) -> None:
    objective = ObjectiveSettings("ul2", 64, mode_tokens=wanted)
    source, _ = build_sources(CorpusSettings([str(prepared)]), DataSettings(), objective, tokenizer, seed=0)
    first = tokenizer.convert_ids_to_tokens(source.batch(np.arange(70))["input_ids"][:, 0].tolist())
    counts = {token: first.count(token) for token in ("[NLU]", "[S2S]", "[NLG]")}
    expected = {"[NLU]": 20, "[S2S]": 10, "[NLG]": 40}
    assert counts == (expected if wanted is not False else dict.fromkeys(expected, 0))


def test_corruptions_that_cannot_work_are_refused(tokenizer) -> None:
    with pytest.raises(DataError, match="114 spans"):
        build_corruption(ObjectiveSettings("span", 2048), tokenizer, 0)
    with pytest.raises(ConfigError, match="makes targets of 114"):
        build_corruption(ObjectiveSettings("span", 512, 113), tokenizer, 0)
    build_corruption(ObjectiveSettings("span", 512, 114), tokenizer, 0)
    with pytest.raises(ConfigError, match="at least 3 tokens"):
        build_corruption(ObjectiveSettings("ul2", 2), tokenizer, 0)

    class NoModes:
        eos_token_id, pad_token_id = 1, None

        def get_vocab(self) -> dict[str, int]:
            return {f"<extra_id_{number}>": 999 - number for number in range(100)}

    plain: Any = NoModes()
    build_corruption(ObjectiveSettings("ul2", 64), plain, 0)
    with pytest.raises(DataError, match=r"no \[NLG\], \[NLU\], \[S2S\]"):
        build_corruption(ObjectiveSettings("ul2", 64, mode_tokens=True), plain, 0)
    with pytest.raises(DataError, match="no pad_token"):
        build_sources(CorpusSettings(["x"]), DataSettings(), ObjectiveSettings(), plain, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_length": 0}, "input_length is 0"),
        ({"input_length": -5}, "input_length is -5"),
        ({"target_length": 0}, "target_length is 0"),
        ({"noise_density": 1.0}, "noise_density is 1.0"),
        ({"noise_density": 0.0}, "noise_density is 0.0"),
        ({"noise_density": float("nan")}, "noise_density is nan"),
        ({"mean_span_length": 0.5}, "mean_span_length is 0.5"),
        ({"objective": "ul2", "noise_density": 0.3}, "belong to --objective span"),
        ({"mode_tokens": True}, "belongs to --objective ul2"),
        ({"objective": "causal", "target_length": 9}, "target_length would change nothing"),
        ({"objective": "causal", "noise_density": 0.3}, "belong to --objective span"),
        ({"objective": "causal", "input_length": 1}, "a token to read and one to predict"),
    ],
)
def test_objective_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ObjectiveSettings(**changes)


def test_settings_that_would_be_ignored_are_refused(prepared, text_file, pair_file, tokenizer) -> None:
    def build(path: Path, data: DataSettings, objective: str = "span") -> None:
        build_sources(CorpusSettings([str(path)]), data, ObjectiveSettings(objective, 32), tokenizer, 0)  # type: ignore[arg-type]

    for path, data, objective in (
        (prepared, DataSettings(validation_frac=0.5), "span"),
        (prepared, DataSettings(shuffle_documents=3), "span"),
        (prepared, DataSettings(validation_documents=3), "span"),
        (text_file, DataSettings(prompt_field="x"), "span"),
        (pair_file, DataSettings(append_eos_to_documents=True), "seq2seq"),
    ):
        with pytest.raises(ConfigError, match="would change nothing"):
            build(path, data, objective)
    for path, objective in ((prepared, "span"), (pair_file, "seq2seq")):
        corpus = CorpusSettings([str(path)], text_field="body")
        with pytest.raises(ConfigError, match="--text_field would change nothing"):
            build_sources(corpus, DataSettings(), ObjectiveSettings(objective, 32), tokenizer, 0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs prompts and responses"):
        build(prepared, DataSettings(), "seq2seq")
    with pytest.raises(ConfigError, match="is prepared; give text"):
        build(text_file, DataSettings(validation_data=[str(prepared)]))
    both = CorpusSettings([str(prepared), str(text_file)])
    with pytest.raises(ConfigError, match="is prepared, and more"):
        open_tokenizer(both, DataSettings())


def test_hopeless_validation_is_refused(tmp_path, text_file, pair_file, tokenizer) -> None:
    span = ObjectiveSettings("span", 32)
    with pytest.raises(DataError, match="No document was held out"):
        build_sources(CorpusSettings([str(text_file)]), DataSettings(validation_frac=1e-9), span, tokenizer, 0)
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n")
    with pytest.raises(DataError, match="blank records only"):
        build_sources(CorpusSettings([str(text_file)]), DataSettings(validation_data=[str(blank)]), span, tokenizer, 0)
    pairs, corpus = ObjectiveSettings("seq2seq", 32), CorpusSettings([str(pair_file)])
    with pytest.raises(DataError, match="no pairs to train on"):
        build_sources(corpus, DataSettings(validation_data=[str(pair_file)]), pairs, tokenizer, 0)


def test_end_marks_between_documents_on_request(prepared, text_file, tokenizer, texts) -> None:
    objective = ObjectiveSettings("prefix", 64)
    for path, data in ((prepared, DataSettings()), (text_file, DataSettings(validation_frac=FRAC))):
        marked = replace(data, append_eos_to_documents=True)
        _, validation = build_sources(CorpusSettings([str(path)]), marked, objective, tokenizer, seed=0)
        assert validation is not None
        held_out = [text for text in texts if is_held_out(text, FRAC)]
        seen = decoded_prefix(validation, np.arange(validation.samples_per_epoch or 0), tokenizer)
        assert sorted(seen.split("</s>")) == ["", *sorted(held_out)]


@pytest.mark.parametrize("how", ["stream", "prepared"])
def test_causal_samples_are_the_documents_with_their_end_marks(how, text_file, prepared, texts, tokenizer) -> None:
    corpus = CorpusSettings([str(text_file if how == "stream" else prepared)])
    data = DataSettings(validation_frac=FRAC, shuffle_documents=1) if how == "stream" else DataSettings()

    def documents(data: DataSettings) -> list[list[str]]:
        found = []
        for source in build_sources(corpus, data, ObjectiveSettings("causal", 64), tokenizer, seed=0):
            assert source is not None
            batch = source.batch(np.arange(source.samples_per_epoch or 80))
            ids = batch["input_ids"][batch["labels"] != -100]
            found.append(tokenizer.decode(ids.tolist()).split("</s>"))
        return found

    training, validation = documents(data)
    held_out = [text for text in texts if is_held_out(text, FRAC)]
    assert sorted(validation) == ["", *sorted(held_out)]
    if how == "stream":
        assert training[:-1] == [text for text in texts if not is_held_out(text, FRAC)][: len(training) - 1]
    unmarked = documents(replace(data, append_eos_to_documents=False))
    assert [len(parts) for parts in unmarked] == [1, 1]


def test_a_decoder_needs_no_pad_token(text_file, texts) -> None:
    trained = train_tokenizer(texts, TokenizerSettings(output_dir="", vocab_size=500, num_sentinels=100)).tokenizer
    trained.pad_token = None
    corpus, data = CorpusSettings([str(text_file)]), DataSettings(validation_frac=FRAC)
    _, validation = build_sources(corpus, data, ObjectiveSettings("causal", 64), trained, seed=0)
    assert validation is not None
    batch = validation.batch(np.arange(validation.samples_per_epoch or 0))
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert (batch["input_ids"][padding] == trained.eos_token_id).all()
    assert (batch["labels"][padding] == -100).all()
    with pytest.raises(DataError, match="no pad_token"):
        build_sources(corpus, data, ObjectiveSettings("span", 64), trained, seed=0)


def test_each_family_has_its_objective() -> None:
    assert ObjectiveSettings().for_family("t5") == ObjectiveSettings("span", input_length=512)
    assert ObjectiveSettings().for_family("llama") == ObjectiveSettings("causal", input_length=256)
    assert ObjectiveSettings("ul2", input_length=9).for_family("t5") == ObjectiveSettings("ul2", input_length=9)
    for objective in ("span", "ul2", "prefix", "seq2seq"):
        with pytest.raises(ConfigError, match=f"--objective {objective} needs an encoder"):
            ObjectiveSettings(objective).for_family("llama")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is for decoders"):
        ObjectiveSettings("causal").for_family("t5")
    with pytest.raises(ConfigError, match="target_length would change nothing"):
        ObjectiveSettings(target_length=5).for_family("llama")


def test_prepared_tokens_are_those_of_the_documents(prepared, tokenizer, texts) -> None:
    from fivefold.data.tokens import TokenShards

    tokens = TokenShards.open(prepared / TRAIN, eos_id=1)
    (ids,) = tokens.windows(np.array([0]), np.array([tokens.num_tokens])).ids
    documents = tokenizer.decode(ids.tolist()).split("</s>")
    assert sorted(documents) == ["", *sorted(text for text in texts if not is_held_out(text, FRAC))]
    assert documents[:-1] != [text for text in texts if not is_held_out(text, FRAC)], "shuffled"


def test_defaults_are_c4_and_its_tokenizer(text_file, prepared) -> None:
    c4 = CorpusSettings(["c4_en"])
    assert with_defaults(CorpusSettings(), DataSettings(), "span") == (
        c4,
        DataSettings("t5-base", ["c4_en"], append_eos_to_documents=False),
    )
    for given in (DataSettings("t", validation_frac=0.0), DataSettings("t", [str(text_file)])):
        assert with_defaults(CorpusSettings(), given, "causal") == (c4, replace(given, append_eos_to_documents=True))
    text, tokens = CorpusSettings([str(text_file)]), CorpusSettings([str(prepared)])
    assert with_defaults(text, DataSettings(), "seq2seq") == (text, DataSettings("t5-base"))
    assert with_defaults(tokens, DataSettings(), "seq2seq") == (tokens, DataSettings())
    assert with_defaults(text, DataSettings(), "seq2seq", "folder") == (text, DataSettings("folder"))
    assert with_defaults(tokens, DataSettings(), "seq2seq", "folder") == (tokens, DataSettings())
    with pytest.raises(ConfigError, match="--data is missing: --objective seq2seq needs"):
        with_defaults(CorpusSettings(), DataSettings(), "seq2seq")
