"""Where two roads through the training loop meet: stopped and not, padded and not, the same seed twice."""

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from fivefold import T5Config, T5Model
from fivefold.corpus.settings import CorpusSettings
from fivefold.data.build import build_sources
from fivefold.data.loader import evaluation_batches, tensors
from fivefold.data.pairs import PairSource
from fivefold.data.preparation import prepare_tokens
from fivefold.data.rows import Rows, seq2seq_batch
from fivefold.data.settings import BatchSettings, DataSettings, ObjectiveSettings, PrepareSettings
from fivefold.errors import ModelError
from fivefold.flags import as_recipe
from fivefold.lowrank.convert import convert
from fivefold.lowrank.settings import LowRankSettings
from fivefold.models.build import build_model
from fivefold.models.settings import ModelSettings
from fivefold.objectives.causal import CausalObjective
from fivefold.objectives.objective import Batch, LossTerms, Objective
from fivefold.objectives.seq2seq import Seq2SeqObjective
from fivefold.objectives.settings import LossSettings
from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.train import train_tokenizer
from fivefold.training.distributed import Processes
from fivefold.training.loop import Interrupted, Trainer
from fivefold.training.optimizers import FACTOR_OPTIMIZERS, build_optimizer
from fivefold.training.run import run_training
from fivefold.training.settings import LoopSettings, OptimizerSettings, ScheduleSettings
from fivefold.training.telemetry import TIMING_KEYS

ALONE = Processes(0, 1, torch.device("cpu"))
SHAPE = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
DECODER_SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On matrices this small a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Text:
    """The same text as lines and as prepared tokens, for a T5 and (as lines) for a decoder."""

    tokenizer: PreTrainedTokenizerBase
    data: dict[str, str]
    shapes: dict[str, str]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """300 lines of invented words."""
    folder = tmp_path_factory.mktemp("text")
    words = random.Random(0)
    vocabulary = ["".join(words.choices("abcdefghij", k=words.randint(2, 7))) for _ in range(200)]
    lines = [" ".join(words.choices(vocabulary, k=words.randint(3, 40))) for _ in range(300)]
    (folder / "text.txt").write_text("\n".join(lines))
    tokenizer = train_tokenizer(lines, TokenizerSettings("", vocab_size=450, num_sentinels=100)).tokenizer
    (folder / "tokens").mkdir()
    streamed = CorpusSettings([str(folder / "text.txt")])
    prepare_tokens(streamed, PrepareSettings("", "", validation_frac=0.1), tokenizer, folder / "tokens")
    (folder / "model.json").write_text(json.dumps(SHAPE | {"vocab_size": 512, "dropout_rate": 0.1}))
    (folder / "decoder.json").write_text(json.dumps({"model_type": "llama", **DECODER_SHAPE, "vocab_size": 512}))
    data = {"prepared": str(folder / "tokens")} | dict.fromkeys(("streamed", "causal"), str(folder / "text.txt"))
    shapes = dict.fromkeys(("prepared", "streamed"), str(folder / "model.json"))
    return Text(tokenizer, data, shapes | {"causal": str(folder / "decoder.json")})


def run(text: Text, kind: str, run_dir: Path, *, dtype: Any = "float32", seed: int = 0, **others: bool) -> None:
    """A run with dropout, accumulation, evaluations and checkpoints, as `fivefold pretrain` makes it."""
    settings = (
        corpus := CorpusSettings([text.data[kind]]),
        data := DataSettings() if kind == "prepared" else DataSettings(validation_frac=0.1),
        objective := ObjectiveSettings("causal" if kind == "causal" else "span", 32),
        batch := BatchSettings(batch_size=2, accumulation_steps=2),
        optimizer := OptimizerSettings(),
        schedule := ScheduleSettings(),
        loop := LoopSettings(
            str(run_dir),
            num_training_steps=10,
            eval_every=4,
            eval_samples=16,
            log_every=1,
            save_every=3,
            seed=seed,
            dtype=dtype,
            **others,
        ),
    )
    model_settings = ModelSettings(model_config=text.shapes[kind])
    model, _ = build_model(model_settings, LowRankSettings(), text.tokenizer, seed, default_init="spectral")
    sources = build_sources(corpus, data, objective, text.tokenizer, seed)
    loss = (CausalObjective if kind == "causal" else Seq2SeqObjective)(LossSettings())
    moves = (build_optimizer(model, optimizer), optimizer.grad_clipping, schedule)
    run_training(model, text.tokenizer, loss, *sources, batch, *moves, loop, as_recipe(settings), ALONE)


def weights(run_dir: Path) -> dict[str, Tensor]:
    """What a run ended with."""
    return load_file(run_dir / "final" / "model.safetensors")


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def log_of(run_dir: Path) -> list[dict[str, Any]]:
    """The log but for what a clock says."""
    lines = map(json.loads, (run_dir / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in TIMING_KEYS} for line in lines]


class PowerFailure(Exception):
    """What no program is told beforehand."""


def _break_off(step: int, monkeypatch: pytest.MonkeyPatch, *, politely: bool) -> None:
    """Let the run ask itself to stop after a step, as a signal does, or just end there."""
    original = Trainer.step

    def stepping(self: Trainer, number: int, micro_batches: list[Batch], want_stop: bool) -> dict[str, float]:
        if number == step and not politely:
            raise PowerFailure
        return original(self, number, micro_batches, want_stop or (politely and number + 1 == step))

    monkeypatch.setattr(Trainer, "step", stepping)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["prepared", "streamed", "causal"])
def test_a_run_that_was_stopped_three_times_is_the_undisturbed_one(kind, dtype, text, tmp_path, monkeypatch):
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    run(text, kind, undisturbed, dtype=dtype)
    # Two steps behind a checkpoint; between evaluations; after an evaluation.
    for step, politely in ((5, False), (7, True), (8, True)):
        with monkeypatch.context() as patch:
            _break_off(step, patch, politely=politely)
            with pytest.raises(Interrupted if politely else PowerFailure):
                run(text, kind, stopped, dtype=dtype, resume=step > 5)
        assert not (stopped / "final").exists()
    run(text, kind, stopped, dtype=dtype, resume=True)
    assert same(weights(stopped), weights(undisturbed))
    assert log_of(stopped) == log_of(undisturbed)


@pytest.mark.parametrize("kind", ["prepared", "streamed", "causal"])
def test_everything_follows_from_the_seed(kind, text, tmp_path):
    for name, seed, elsewhere in (("first", 0, 1), ("again", 0, 2), ("other", 1, 1)):
        torch.manual_seed(elsewhere)  # what others draw plays no part
        np.random.seed(elsewhere)
        random.seed(elsewhere)
        run(text, kind, tmp_path / name, seed=seed)
    assert same(weights(tmp_path / "again"), weights(tmp_path / "first"))
    assert log_of(tmp_path / "again") == log_of(tmp_path / "first")
    assert not same(weights(tmp_path / "other"), weights(tmp_path / "first"))
    # Losses of different runs compare, because they are measured on the same tokens.
    held_out = [
        [line["eval_tokens"] for line in log_of(tmp_path / name) if "eval_loss" in line] for name in ("first", "other")
    ]
    assert held_out[0] == held_out[1]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch._dynamo does it itself
def test_a_compiled_run_starts_where_the_plain_one_does_and_can_be_resumed_by_it(text, tmp_path, monkeypatch):
    def compile_without_a_compiler(module: torch.nn.Module) -> None:
        torch.nn.Module.compile(module, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(T5Model, "compile", compile_without_a_compiler)
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    run(text, "prepared", plain)
    with monkeypatch.context() as patch:
        _break_off(7, patch, politely=False)
        with pytest.raises(PowerFailure):
            run(text, "prepared", compiled, compile=True)
    run(text, "prepared", compiled, resume=True)
    assert weights(compiled).keys() == weights(plain).keys()
    first, expected = (log_of(run_dir)[0] for run_dir in (compiled, plain))
    assert first["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)  # float32, perhaps fused


@pytest.fixture
def model() -> T5Model:
    """In float64, so that sums in another order agree to 1e-12."""
    torch.manual_seed(0)
    return T5Model(T5Config(**SHAPE, vocab_size=64, dropout_rate=0.3)).double()


@pytest.fixture(scope="module")
def pairs() -> PairSource:
    """24 pairs of very different lengths, so that a mean of means is not the mean."""
    lengths = np.random.default_rng(0).integers(1, 40, (24, 2))
    prompts, responses = ([np.arange(start, start + n) % 60 + 3 for start, n in enumerate(side)] for side in lengths.T)
    return PairSource(prompts, responses, input_length=64, target_length=64, eos_id=1, pad_id=0, seed=0, shuffle=False)


def batch_of(pairs: PairSource, *numbers: int) -> Batch:
    """Some pairs side by side."""
    return tensors(pairs.batch(np.array(numbers)))


def trainer_of(
    model: torch.nn.Module,
    *,
    dtype: Any = "float32",
    grad_clipping: float = 0.0,
    objective: Objective | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Trainer:
    """By default with plain gradient descent at rate 1: a step is minus the gradient."""
    plain = torch.optim.SGD([{"params": list(model.parameters()), "lr": 1.0, "base_lr": 1.0}])
    objective = objective or Seq2SeqObjective(LossSettings())
    return Trainer(model, objective, optimizer or plain, lambda _: 1.0, grad_clipping, LoopSettings(dtype=dtype), ALONE)


def test_dropout_follows_from_the_step(model, pairs):
    trainer = trainer_of(model)
    trainer.optimizer.param_groups[0]["base_lr"] = 0.0
    losses = [trainer.step(step, [batch_of(pairs, 0, 1)], want_stop=False)["loss"] for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize("name", ["adamw", "muon", "loro_muon", "spectron"])
def test_the_learning_rate_in_the_log_is_the_given_one_times_the_schedule(name, model, pairs):
    if name in FACTOR_OPTIMIZERS:
        convert(model, scope="all", attn_rank=4, mlp_rank=4, init="spectral")
    # Queries come first and have a smaller rate under all but adamw; the embeddings have a larger one.
    optimizer = build_optimizer(model, OptimizerSettings(optimizer=name, lr=1e-3, dense_lr=1e-2))
    trainer = trainer_of(model, optimizer=optimizer)
    trainer.lr_factor = lambda step: 0.5**step
    rates = [trainer.step(step, [batch_of(pairs, 0, 1)], want_stop=False)["learning_rate"] for step in range(3)]
    assert rates == pytest.approx([1e-3, 5e-4, 2.5e-4], rel=1e-12)


def test_the_held_out_loss_is_the_mean_over_tokens_of_single_examples(model, pairs):
    nll, count = 0.0, 0
    model.eval()
    with torch.no_grad():
        for number in range(24):
            batch = batch_of(pairs, number)
            logits = model(input_ids=batch["input_ids"], labels=batch["labels"]).logits
            nll += torch.nn.functional.cross_entropy(logits[0], batch["labels"][0], reduction="sum").item()
            count += batch["labels"].numel()
    trainer = trainer_of(model.train())
    for batch_size in (1, 5, 24):
        measured = trainer.evaluate(evaluation_batches(pairs, 24, batch_size))
        assert measured.num_terms == count
        assert measured.loss == pytest.approx(nll / count, rel=1e-12)
        assert model.training  # dropout was off for the measurement only


class Learner(NamedTuple):
    """A model in float64 without dropout, its objective, and batches of samples that differ much in length."""

    model: PreTrainedModel
    objective: Objective
    batch_of: Callable[..., Batch]
    rtol: float
    """How far sums in another order may lie apart."""


@pytest.fixture(params=["t5", "llama"])
def learner(request: pytest.FixtureRequest, model: T5Model, pairs: PairSource) -> Learner:
    """A T5 with pairs, a LLaMA with texts."""
    loss = LossSettings(z_loss=1e-2, label_smoothing=0.1)
    if request.param == "t5":
        return Learner(model.eval(), Seq2SeqObjective(loss), lambda *numbers: batch_of(pairs, *numbers), 1e-10)
    torch.manual_seed(0)
    decoder = LlamaForCausalLM(LlamaConfig(**DECODER_SHAPE, vocab_size=64)).double().eval()
    texts = Rows(np.arange(8)[:, None] + np.arange(40) % 60, np.random.default_rng(0).integers(2, 40, 8))

    def texts_of(*numbers: int) -> Batch:
        rows = Rows(texts.ids[list(numbers)], texts.lengths[list(numbers)])
        return tensors(seq2seq_batch(rows, rows, pad_id=0))

    return Learner(decoder, CausalObjective(loss), texts_of, 1e-5)  # its norms compute in float32


def test_padding_changes_neither_loss_nor_gradient(learner):
    model, objective, batch_of, rtol = learner

    def terms(batches: list[Batch]) -> tuple[Tensor, int, int, list[Tensor]]:
        model.zero_grad()
        total = sum((objective(model, batch).loss_sum for batch in batches), torch.zeros(()))
        total.backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        num_tokens = sum(objective.count_tokens(batch).total for batch in batches)
        return total, sum(map(objective.count, batches)), num_tokens, gradients

    single = [batch_of(number) for number in range(8)]
    assert not any("attention_mask" in batch for batch in single)
    padded = batch_of(*range(8))
    further = {
        "input_ids": torch.nn.functional.pad(padded["input_ids"], (0, 9)),
        "attention_mask": torch.nn.functional.pad(padded["attention_mask"], (0, 9)),
        "labels": torch.nn.functional.pad(padded["labels"], (0, 9), value=-100),
    }
    expected = terms(single)
    for batch in (padded, further):
        got = terms([batch])
        assert got[1:3] == expected[1:3]
        torch.testing.assert_close((got[0], got[3]), (expected[0], expected[3]), rtol=rtol, atol=rtol / 100)


def test_eight_at_once_and_one_at_a_time_make_the_same_step(learner):
    steps = []
    for micro_batches in ([learner.batch_of(*range(8))], [learner.batch_of(number) for number in range(8)]):
        model = copy.deepcopy(learner.model)
        result = trainer_of(model, objective=learner.objective).step(0, micro_batches, want_stop=False)
        steps.append((parameters_of(model), [result[name] for name in ("loss", "grad_norm", "num_tokens")]))
    torch.testing.assert_close(steps[0], steps[1], rtol=learner.rtol, atol=learner.rtol / 100)


def parameters_of(model: torch.nn.Module) -> list[Tensor]:
    """A copy of every parameter."""
    return [parameter.detach().clone() for parameter in model.parameters()]


def global_norm(step: list[Tensor]) -> float:
    """Over all tensors together."""
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in step))


def test_clipping_shortens_the_whole_gradient_and_keeps_its_direction(model, pairs):
    before = parameters_of(model)

    def step(grad_clipping: float) -> tuple[list[Tensor], float]:
        for parameter, old in zip(model.parameters(), before, strict=True):
            parameter.data.copy_(old)
        result = trainer_of(model, grad_clipping=grad_clipping).step(0, [batch_of(pairs, 0, 1, 2)], want_stop=False)
        return [old - new for old, new in zip(before, parameters_of(model), strict=True)], result["grad_norm"]

    whole, norm = step(0.0)
    assert global_norm(whole) == pytest.approx(norm, rel=1e-9)
    for grad_clipping in (norm / 2, norm / 100, norm * 2):
        clipped, reported = step(grad_clipping)
        assert reported == pytest.approx(norm, rel=1e-12)  # what is logged is the norm before
        factor = min(1.0, grad_clipping / norm)
        # torch divides by norm + 1e-6.
        torch.testing.assert_close(clipped, [factor * tensor for tensor in whole], rtol=1e-5, atol=1e-9)


def test_float16_trains_and_a_step_that_overflows_is_skipped(pairs):
    torch.manual_seed(0)
    model = T5Model(T5Config(**SHAPE, vocab_size=64, dropout_rate=0.0))
    batch = batch_of(pairs, *range(8))
    exact = trainer_of(copy.deepcopy(model)).step(0, [batch], want_stop=False)
    optimizer = build_optimizer(model, OptimizerSettings(lr=1e-2))
    trainer = trainer_of(model, dtype="float16", grad_clipping=1.0, optimizer=optimizer)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    losses, norms, skipped = [], [], 0
    for number in range(60):
        before, scale = parameters_of(model), trainer.scaler.get_scale()
        result = trainer.step(number, [batch], want_stop=False)
        losses.append(result["loss"])
        norms.append(result["grad_norm"])
        moved = not all(map(torch.equal, before, parameters_of(model)))
        assert moved == math.isfinite(result["grad_norm"])
        assert trainer.scaler.get_scale() == (scale if moved else scale / 2)
        skipped += not moved
    assert 10 < skipped < 40  # float16 ends at 2^16
    assert losses[0] == losses[skipped]
    # The scale is gone from what is clipped and logged; float16 has 11 bits, and sums of its roundings grow.
    assert (losses[0], norms[skipped]) == pytest.approx((exact["loss"], exact["grad_norm"]), rel=1e-2)
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_loss_that_is_not_finite_moves_nothing(dtype, pairs):
    torch.manual_seed(0)
    model = T5Model(T5Config(**SHAPE, vocab_size=64))
    optimizer = build_optimizer(model, OptimizerSettings())
    trainer = trainer_of(model, dtype=dtype, optimizer=optimizer)
    good, bad = batch_of(pairs, 0, 1), batch_of(pairs, 2, 3)
    trainer.step(0, [good], want_stop=False)
    with torch.no_grad():
        model.shared.weight[bad["input_ids"][0, 0]] = math.inf
    before = [tensor.numpy().tobytes() for tensor in parameters_of(model)]
    moments = [state["exp_avg"].numpy().tobytes() for state in optimizer.state.values()]
    with pytest.raises(ModelError, match="The loss of step 2 is nan; the optimizer has not moved"):
        trainer.step(1, [good, bad], want_stop=False)
    assert [tensor.numpy().tobytes() for tensor in parameters_of(model)] == before
    assert [state["exp_avg"].numpy().tobytes() for state in optimizer.state.values()] == moments


class InfiniteSlope(Seq2SeqObjective):
    """The loss as ever, plus the root of a zero, whose slope is infinite."""

    def __call__(self, model: Any, batch: Batch) -> LossTerms:
        """Both."""
        terms = super().__call__(model, batch)
        zero = (model.shared.weight - model.shared.weight.detach()).square().sum()
        return LossTerms(terms.loss_sum + zero.sqrt(), terms.nll_sum)


def test_a_gradient_that_is_not_finite_moves_nothing(model, pairs):
    trainer = trainer_of(model, grad_clipping=1.0, objective=InfiniteSlope(LossSettings()))
    before = parameters_of(model)
    with pytest.raises(ModelError, match="The gradient norm of step 1 is nan; the optimizer has not moved"):
        trainer.step(0, [batch_of(pairs, 0, 1)], want_stop=False)
    assert all(map(torch.equal, before, parameters_of(model)))
