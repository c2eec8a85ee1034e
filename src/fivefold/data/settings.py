"""What a user can say about tokens, objectives and batches."""

from dataclasses import dataclass, field, replace
from typing import Literal

from fivefold.choices import refuse_changed
from fivefold.corpus.settings import CorpusSettings
from fivefold.errors import ConfigError

MAX_LENGTH = 65_536
"""Longest input or target, and most raw tokens in a sample: places are counted in 16 bits."""


@dataclass
class DataSettings:
    """How text becomes training data."""

    tokenizer: str | None = None
    """Tokenizer folder or Hub id; without it, the one inside the prepared folder; for text, the one of --model, or for
    a fresh model t5-base."""
    validation_data: list[str] = field(default_factory=list)
    """Files, folders, catalogue names or Hub ids for the held-out loss, instead of a held-out share of the data; C4's
    own when --data is left out."""
    validation_split: str = "validation"
    """Split of the Hub data sets in --validation_data."""
    validation_frac: float = 0.01
    """Share of the documents held out for validation, by a hash of their text; 0 for none."""
    validation_documents: int = 1000
    """Most documents to measure the held-out loss on when they are not prepared."""
    shuffle_documents: int = 1000
    """Streamed documents read, tokenised and shuffled together; 1 keeps their order."""
    append_eos_to_documents: bool | None = None
    """Put an end mark after every document, as Hugging Face's T5 scripts do; by default for --objective causal only, as
    T5 itself puts nothing there."""
    prompt_field: str = "prompt"
    """Field of a record that holds the prompt, for --objective seq2seq."""
    response_field: str = "response"
    """Field of a record that holds the response, for --objective seq2seq."""
    packing: bool = False
    """Put as many documents or pairs into a row of input_length and target_length tokens as fit, each seeing itself
    alone: for --objective seq2seq, and for span and ul2 on prepared tokens; batch_size then counts rows."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_frac(self.validation_frac)
        for name in ("validation_documents", "shuffle_documents"):
            _check_at_least(self, name, 1)

    def for_objective(self, objective: str | None) -> "DataSettings":
        """The same settings with what the objective decides filled in."""
        if self.append_eos_to_documents is not None or objective == "seq2seq":
            return self
        return replace(self, append_eos_to_documents=objective == "causal")


@dataclass
class ObjectiveSettings:
    """What the model learns to do with the data."""

    objective: Literal["span", "ul2", "prefix", "causal", "seq2seq"] | None = None
    """T5's span corruption, UL2's seven denoisers in equal parts, prefix language modelling, a decoder's next token
    (causal), or prompt to response; by default span for t5 and causal for llama. A decoder's --objective parallel takes
    the flags of `fivefold parallel`."""
    input_length: int | None = None
    """Tokens of an encoder input, end mark included, by default 512; or of a decoder's sample, by default 256."""
    target_length: int | None = None
    """Tokens of a target, end mark included; by default what span corruption or packed documents need, else the input
    length."""
    noise_density: float = 0.15
    """Share of the tokens hidden, for --objective span."""
    mean_span_length: float = 3.0
    """Average length of a hidden span, for --objective span."""
    mode_tokens: bool | None = None
    """Put UL2's [NLU], [S2S] or [NLG] before each input, for --objective ul2; without it, if the tokenizer has them."""

    def __post_init__(self) -> None:
        """Check the numbers, and that none is set that the objective does not use."""
        for name, length in (("input_length", self.input_length), ("target_length", self.target_length)):
            if length is not None and not 1 <= length <= MAX_LENGTH:
                raise ConfigError(f"{name} is {length}; give a number of tokens from 1 to {MAX_LENGTH:,}.")
        if not 0 < self.noise_density < 1:
            raise ConfigError(f"noise_density is {self.noise_density}; give a share between 0 and 1, such as 0.15.")
        if not self.mean_span_length >= 1:
            raise ConfigError(f"mean_span_length is {self.mean_span_length}; give at least 1 token, such as 3.")
        if self.objective not in ("span", None) and (self.noise_density, self.mean_span_length) != (0.15, 3.0):
            raise ConfigError(
                "noise_density and mean_span_length belong to --objective span, but the objective is "
                f"{self.objective}; leave them out."
            )
        if self.objective != "ul2" and self.mode_tokens is not None:
            raise ConfigError(
                f"mode_tokens belongs to --objective ul2, but the objective is {self.objective or 'another'}; leave it "
                "out."
            )
        if self.objective == "causal" and self.target_length is not None:
            raise ConfigError(
                "target_length would change nothing with --objective causal, whose input is its own target; leave it "
                "out."
            )
        if self.objective == "causal" and self.input_length == 1:
            raise ConfigError("input_length is 1, but --objective causal needs a token to read and one to predict.")

    def for_family(self, family: str | None) -> "ObjectiveSettings":
        """The same settings with the family's own objective filled in: span for t5, causal for llama.

        Raises:
            ConfigError: an objective that the family cannot learn.
        """
        own = "causal" if family == "llama" else "span"
        objective = self.objective or own
        if objective != "causal" and family == "llama":
            raise ConfigError(
                f"--objective {objective} needs an encoder, but the model is a decoder, which learns causal only so "
                "far; leave --objective out, or train a T5."
            )
        if objective == "causal" and family != "llama":
            raise ConfigError(
                "--objective causal is for decoders, but the model is a T5; leave it out, or give --model_type llama."
            )
        settings = replace(self, objective=objective)
        return replace(settings, input_length=settings.sample_length)

    @property
    def sample_length(self) -> int:
        """`input_length`, or what it is by default."""
        return self.input_length or (256 if self.objective == "causal" else 512)


@dataclass
class DialogueSettings:
    """How conversations become training data."""

    tokenizer: str | None = None
    """Tokenizer folder or Hub id; by default the one of --model."""
    chat_template: str | None = None
    """How conversations are written: labels or labels_zh (a line a turn, begun with who speaks), chatml, zephyr, or a
    Jinja file; by default the tokenizer's own template, else labels. It is saved with the model."""
    input_length: int = 512
    """Most tokens of what a T5 reads, end mark included, or of a decoder's whole row, answers included. Of what is too
    long the oldest turns are left out, then the end of the last message."""
    target_length: int | None = None
    """Most tokens of an answer, end mark included; longer ones lose their end. By default the input length for a T5,
    and for a decoder what its prompt leaves of it, at least half."""
    packing: bool = False
    """Put as many conversations into a row as fit, each seeing itself alone; batch_size then counts rows."""
    validation_data: list[str] = field(default_factory=list)
    """Files, folders, catalogue names or Hub ids for the held-out loss, instead of a held-out share of the data."""
    validation_split: str | None = None
    """Split of the Hub data sets in --validation_data, by default validation; without --validation_data that of --data,
    instead of a held-out share."""
    validation_frac: float = 0.01
    """Share of the conversations held out for validation, by a hash of their first message; 0 for none."""
    validation_documents: int = 1000
    """Most conversations to measure the held-out loss on."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_frac(self.validation_frac)
        _check_at_least(self, "validation_documents", 1)
        for name, least in (("input_length", 2), ("target_length", 1)):
            length = getattr(self, name)
            if length is not None and not least <= length <= MAX_LENGTH:
                raise ConfigError(f"{name} is {length}; give a number of tokens from {least} to {MAX_LENGTH:,}.")

    def validation_corpus(self, corpus: CorpusSettings) -> CorpusSettings | None:
        """What to measure the held-out loss on; None if that is a share of the training data."""
        if self.validation_data:
            return replace(corpus, data=self.validation_data, data_split=self.validation_split or "validation")
        return replace(corpus, data_split=self.validation_split) if self.validation_split else None


@dataclass
class BranchDataSettings:
    """How main texts and their branches become training data."""

    tokenizer: str | None = None
    """Tokenizer folder or Hub id; by default the one of --model."""
    input_length: int = 512
    """Most tokens of a branch, end mark included; longer ones lose their end."""
    branches_per_sample: int = 8
    """Branches of one sample: of a main text with more of them several samples are made, and of single texts, which
    have no main text, as many go together."""
    max_branches_per_sample: int = 0
    """Draw the number of branches of each sample from 1 to this one; 0 takes --branches_per_sample."""
    max_total_tokens: int = 0
    """Most tokens of a sample, main text and all branches; 0 for as many as there are."""
    learn_main: bool = True
    """Learn main texts, too, not the branches alone."""
    use_streaming: bool = False
    """Read the data as they come, in their order, instead of holding all of them in memory."""
    validation_data: list[str] = field(default_factory=list)
    """Files, folders or Hub ids for the held-out loss, instead of a held-out share of the data."""
    validation_split: str = "validation"
    """Split of the Hub data sets in --validation_data."""
    validation_frac: float = 0.01
    """Share of the records held out for validation, by a hash of their main or first text; 0 for none."""
    validation_documents: int = 1000
    """Most samples to measure the held-out loss on."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_frac(self.validation_frac)
        for name, least in (
            ("input_length", 2),
            ("branches_per_sample", 1),
            ("max_branches_per_sample", 0),
            ("max_total_tokens", 0),
            ("validation_documents", 1),
        ):
            _check_at_least(self, name, least)

    @property
    def most_branches(self) -> int:
        """Of a sample."""
        return self.max_branches_per_sample or self.branches_per_sample


@dataclass
class BatchSettings:
    """How many samples a step takes."""

    batch_size: int = 8
    """Samples that one process puts through the model at once."""
    total_batch_size: int | None = None
    """Samples of one optimizer step over all processes; without it, batch_size x accumulation_steps x processes."""
    accumulation_steps: int | None = None
    """Micro-batches whose gradients one process adds up; without it, what total_batch_size needs."""
    eval_batch_size: int | None = None
    """Samples at once when the held-out loss is measured; by default batch_size."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("batch_size", "total_batch_size", "accumulation_steps", "eval_batch_size"):
            if getattr(self, name) is not None:
                _check_at_least(self, name, 1)


@dataclass
class BranchBatchSettings(BatchSettings):
    """The same with another default."""

    batch_size: int = 16
    """Samples that one process puts through the model at once, each a main text with all its branches."""


@dataclass
class PrepareSettings:
    """What to make of the documents."""

    output_dir: str
    """Folder to write: with --tokenizer token shards for training and validation, and the tokenizer; without it clean
    documents, which --data of every verb reads."""
    tokenizer: str | None = None
    """Tokenizer folder or Hub id; without it, documents stay text."""
    validation_data: list[str] = field(default_factory=list)
    """Files, folders, catalogue names or Hub ids for validation, instead of a held-out share of the data."""
    validation_split: str = "validation"
    """Split of the Hub data sets in --validation_data."""
    validation_frac: float = 0.01
    """Share of the documents held out for validation, chosen by a hash of their text; 0 for none."""
    num_workers: int = 0
    """Processes that clean and tokenise; 0 does it in this one, where the tokenizer's own threads use every core."""
    engine: Literal["local", "ray"] = "local"
    """Where to clean: on this machine, or on a Ray cluster that sees the same files."""
    seed: int = 0
    """Seed of the documents' order."""
    shuffle_buffer_tokens: int = 16_777_216
    """Tokens of documents held in memory to shuffle them; 0 keeps their order."""
    tokens_per_shard: int = 100_000_000
    """Tokens after which a new shard begins."""
    resume: bool = False
    """Go on with clean documents where an interrupted run of the same command stopped."""
    overwrite: bool = False
    """Replace what is in the output folder."""

    def __post_init__(self) -> None:
        """Check the numbers, and that none is set that has no use."""
        _check_frac(self.validation_frac)
        _check_at_least(self, "num_workers", 0)
        _check_at_least(self, "seed", 0)
        _check_at_least(self, "shuffle_buffer_tokens", 0)
        _check_at_least(self, "tokens_per_shard", 1)
        if self.tokenizer is None:
            unused = ("validation_data", "validation_split", "validation_frac", "seed", "shuffle_buffer_tokens")
            refuse_changed(self, (*unused, "tokens_per_shard"), "with documents without --tokenizer")
            if self.engine == "ray":
                refuse_changed(self, ("num_workers",), "with --engine ray, which takes every processor it has")
        elif self.resume:
            raise ConfigError(
                "--resume goes on with clean documents, but --tokenizer was given; leave it out, and make tokens of "
                "the documents in a second step."
            )
        if self.resume and self.overwrite:
            raise ConfigError("--resume goes on with what is there and --overwrite replaces it; give one of them.")


def _check_frac(validation_frac: float) -> None:
    if not 0 <= validation_frac < 1:
        raise ConfigError(f"validation_frac is {validation_frac}; give a share from 0 (none) to below 1, such as 0.01.")


def _check_at_least(settings: object, name: str, least: int) -> None:
    if getattr(settings, name) < least:
        raise ConfigError(f"{name} is {getattr(settings, name)}; give a whole number of at least {least}.")
