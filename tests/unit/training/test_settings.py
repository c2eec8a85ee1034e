import subprocess
import sys

import pytest

from fivefold.errors import ConfigError
from fivefold.training.settings import CUSTOMARY_LR, LoopSettings, OptimizerSettings, ScheduleSettings


def test_importing_the_settings_does_not_import_torch():
    code = "import sys, fivefold.training.settings, fivefold.commands.report; print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"


@pytest.mark.parametrize(
    ("short", "name"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32"), ("float32", "float32")]
)
def test_dtype_takes_its_full_name(short, name):
    assert LoopSettings(output_dir="run", dtype=short).dtype == name


def test_const_is_what_loro_calls_constant():
    assert ScheduleSettings("const") == ScheduleSettings("constant")


@pytest.mark.parametrize("optimizer", CUSTOMARY_LR)
def test_peak_lr_is_the_given_one_or_the_customary_one(optimizer):
    assert OptimizerSettings(optimizer=optimizer).peak_lr == CUSTOMARY_LR[optimizer]
    assert OptimizerSettings(optimizer=optimizer, lr=0.5).peak_lr == 0.5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: OptimizerSettings(lr=0.0), "lr is 0.0"),
        (lambda: OptimizerSettings(lr=float("nan")), "lr is nan"),
        (lambda: OptimizerSettings(weight_decay=-1.0), "weight_decay"),
        (lambda: OptimizerSettings(grad_clipping=-1.0), "grad_clipping"),
        (lambda: OptimizerSettings(beta2=1.0), "beta2"),
        (lambda: OptimizerSettings(eps=0.0), "eps"),
        (lambda: OptimizerSettings(optimizer="adafactor", beta1=0.5, eps=1e-8), "adafactor has no beta1 or eps"),
        (lambda: ScheduleSettings(warmup_steps=-1), "warmup_steps"),
        (lambda: ScheduleSettings(min_lr_ratio=1.5), "min_lr_ratio"),
        (lambda: ScheduleSettings(warmup_ratio=1.5), "warmup_ratio is 1.5"),
        (lambda: ScheduleSettings(warmup_steps=3, warmup_ratio=0.1), "give one of the two"),
        (lambda: LoopSettings(eval_strategy="epoch", eval_every=5), "--eval_strategy epoch has no eval_every"),
        (lambda: LoopSettings(save_strategy="no", save_every=5), "--save_strategy no has no save_every"),
        (lambda: LoopSettings(load_best_model_at_end=True, eval_strategy="no"), "but not all are measured"),
        (lambda: LoopSettings(load_best_model_at_end=True, eval_every=3), "but not all are measured"),
        (lambda: ScheduleSettings(decay_frac=-0.1), "decay_frac"),
        (lambda: ScheduleSettings(scheduler="cosine_restart"), "needs the steps between two restarts"),
        (lambda: ScheduleSettings(scheduler="cosine_restart", cosine_restart_freq=0), "cosine_restart_freq is 0"),
        (lambda: ScheduleSettings(lr_adjust_steps=-5), "--scheduler cosine has no lr_adjust_steps: drop the flag or"),
        (
            lambda: ScheduleSettings(scheduler="wsd", cosine_restart_freq=5),
            "--scheduler wsd has no cosine_restart_freq",
        ),
        (lambda: ScheduleSettings(cosine_restart_warmup=9), "--scheduler cosine has no cosine_restart_warmup"),
        (lambda: ScheduleSettings(decay_frac=0.4), "--scheduler cosine has no decay_frac"),
        (lambda: ScheduleSettings("constant", min_lr_ratio=0.5), "--scheduler constant has no min_lr_ratio"),
        (lambda: ScheduleSettings("const", decay_frac=0.5), "--scheduler constant has no decay_frac"),
        (lambda: ScheduleSettings(cosine_restart_warmup=0), "cosine_restart_warmup"),
        (lambda: LoopSettings(output_dir=""), "output_dir is empty"),
        (lambda: LoopSettings(output_dir="run", num_training_steps=0), "num_training_steps is 0"),
        (lambda: LoopSettings(output_dir="run", log_every=0), "log_every is 0"),
        (lambda: LoopSettings(output_dir="run", keep_last=-1), "keep_last is -1"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_sentence(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_strategy_becomes_numbers_of_steps():
    assert LoopSettings(eval_strategy="no", save_strategy="no") == LoopSettings(eval_every=0, save_every=0)
    loop = LoopSettings(epochs=3, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True)
    # 10.5 steps a pass: measured when a pass is over, three times in all, the last time at the end.
    told = LoopSettings(num_training_steps=32, eval_every=11, save_every=11, load_best_model_at_end=True)
    assert loop.with_steps(84, 8) == told
    by_steps = LoopSettings(num_training_steps=5, save_strategy="epoch")
    assert by_steps.with_steps(84, 8) == LoopSettings(num_training_steps=5, save_every=11)
    with pytest.raises(ConfigError, match="save_strategy is epoch, but text is read as training goes"):
        by_steps.with_steps(None, 8)
