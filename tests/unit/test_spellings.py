"""What command lines of peft's examples/sft and of transformers' Trainer mean here."""

import dataclasses
import logging
import shlex

import pytest

from fivefold.commands import sft
from fivefold.errors import ConfigError
from fivefold.flags import parse
from fivefold.spellings import ALIASES, MEANINGS, NEEDLESS, REFUSED, meaning_of


def _read(line):
    settings = parse("sft", sft.run, shlex.split(line)).settings.values()
    return {name: value for group in settings for name, value in vars(group).items()}


EVERY_FLAG = """
    --seed 42 --model_name_or_path M --dataset_name D --chat_template_format none --add_special_tokens False
    --append_concat_token False --splits "train,test" --max_length 2048 --num_train_epochs 3 --logging_steps 10
    --log_level info --logging_strategy steps --eval_strategy no --save_strategy epoch --bf16 True --packing False
    --learning_rate 0.0002 --lr_scheduler_type cosine --weight_decay 0.01 --warmup_ratio 0.03 --max_grad_norm 1.0
    --output_dir O --per_device_train_batch_size 4 --per_device_eval_batch_size 2 --gradient_accumulation_steps 4
    --gradient_checkpointing True --use_reentrant True --dataset_text_field text --use_peft_lora True --lora_r 4
    --lora_alpha 8 --lora_dropout 0.1 --lora_target_modules "q_proj, v_proj" --use_flash_attn True --push_to_hub False
    --use_4bit_quantization True --use_8bit_quantization False --use_nested_quant False --use_unsloth False
    --bnb_4bit_compute_dtype float16 --bnb_4bit_quant_storage_dtype uint8 --bnb_4bit_quant_type nf4 --report_to none
    --save_total_limit 1 --trust_remote_code False --fp16 False
"""


def test_every_flag_of_the_example_means_what_it_says(caplog):
    with caplog.at_level(logging.INFO, "fivefold"):
        found = _read(EVERY_FLAG)
    expected = {
        "seed": 42, "model": "M", "data": ["D"], "data_split": "train", "validation_split": "test",
        "input_length": 2048, "epochs": 3, "log_every": 10, "eval_every": 0, "save_strategy": "epoch",
        "dtype": "bfloat16", "packing": False, "lr": 2e-4, "scheduler": "cosine", "min_lr_ratio": 0,
        "weight_decay": 0.01, "warmup_ratio": 0.03, "grad_clipping": 1, "output_dir": "O", "batch_size": 4,
        "eval_batch_size": 2, "accumulation_steps": 4, "gradient_checkpointing": True, "text_field": "text",
        "keep_last": 1, "chat_template": None,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    lora = parse("sft", sft.run, shlex.split(EVERY_FLAG)).settings["trainable"].adapter_source
    modules = ["q_proj", "v_proj"]
    assert lora == {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": modules}
    needless = {message.split()[0] for message in caplog.messages}
    assert {"--chat_template_format", "--log_level", "--use_reentrant", "--use_flash_attn"} <= needless


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        ("--bf16 False", {"dtype": "float32"}),
        ("--bf16 False --fp16 True", {"dtype": "float16"}),
        ("--lr_scheduler_type linear --min_lr_ratio 0.2", {"scheduler": "linear", "min_lr_ratio": 0.2}),
        ("--lr_scheduler_type constant_with_warmup", {"scheduler": "constant"}),
        ("--chat_template_format zephyr", {"chat_template": "zephyr"}),
        ("--splits train_sft", {"data_split": "train_sft", "validation_split": None}),
        ("--optim adamw_torch --report_to wandb", {"optimizer": "adamw", "use_wandb": True}),
        ("--eval_strategy NO", {"eval_strategy": "steps", "eval_every": 0}),
        ("--config x.json", {"adapter": "x.json"}),
    ],
)
def test_values_count(line, settings):
    found = _read(line)
    assert {name: found[name] for name in settings} == settings


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--logging_strategy epoch", "--logging_strategy epoch is refused: the log has a line every"),
        ("--add_special_tokens True", "is refused: the chat template writes all special tokens"),
        ("--push_to_hub", "--push_to_hub true is refused: nothing is sent to the Hub"),
        ("--load_in_4bit --load_in_8bit", "Weights have 4 or 8 bits; drop"),
        ("--load_in_8bit --use_nested_quant", "--use_nested_quant would change nothing without --use_4bit"),
        ("--bnb_4bit_quant_type fp4", "--bnb_4bit_quant_type would change nothing without --use_4bit_quantization"),
        ("--use_unsloth True", "unsloth's kernels are not part"),
        ("--lr_scheduler_type polynomial", "say --scheduler"),
        ("--save_strategy best", "--save_strategy best is refused: the best checkpoint is kept"),
        ("--splits a,b,c", "--splits a,b,c is refused"),
        ("--bf16 True --dtype float32", "--bf16 and --dtype mean the same and were given as 'bfloat16' and 'float32'"),
        ("--use_peft_lora false --lora_r 4", "--lora_r would change nothing with --use_peft_lora false"),
        ("--adapter a.json --lora_r 4", "--lora_r would change nothing with --adapter a.json"),
        ("--adapter a.json --use_peft_lora true", "--use_peft_lora would change nothing with --adapter a.json"),
        ("--lora_r 4 --freeze embeddings", "--freeze would change nothing with an adapter"),
    ],
)
def test_what_is_not_here_is_refused_by_name(line, sentence):
    with pytest.raises(ConfigError) as caught:
        _read(line)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("line", ["--lora_r 2", "--use_peft_lora"])
def test_a_flag_of_lora_means_lora(line):
    source = parse("sft", sft.run, line.split()).settings["trainable"].adapter_source
    assert source["target_modules"] == "all-linear"
    assert source["r"] == (2 if "2" in line else 64)


def test_a_recipe_may_say_the_same(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "eval_strategy: no\nbf16: true\nlr_scheduler_type: cosine\npush_to_hub: false\ndataset_name: D\n"
        "lora_target_modules: q_proj,v_proj\nlora_r: 4\ndeepspeed: null\n"
    )
    found = _read(f"--recipe {tmp_path / 'r.yaml'}")
    assert (found["eval_every"], found["dtype"], found["min_lr_ratio"], found["data"]) == (0, "bfloat16", 0, ["D"])
    assert _read(f"{tmp_path / 'r.yaml'} --min_lr_ratio 0.3")["min_lr_ratio"] == 0.3
    constant = _read(f"{tmp_path / 'r.yaml'} --lr_scheduler_type constant --bf16 False")  # what is typed wins
    assert (constant["scheduler"], constant["min_lr_ratio"], constant["dtype"]) == ("constant", 0.1, "float32")


def test_every_flag_of_theirs_has_an_answer():
    fields = {field.name for group in _groups() for field in dataclasses.fields(group)}
    for name in {name for name, _ in MEANINGS} | set(REFUSED):
        with pytest.raises(ConfigError, match=rf"--{name}.* is refused: \w"):
            meaning_of(name, "a,b,c")
    assert not fields & {*REFUSED, *NEEDLESS}
    assert {*REFUSED, *NEEDLESS}.isdisjoint(ALIASES)
    for meaning in MEANINGS.values():
        assert {*meaning.settings, *meaning.implied} <= fields
        assert bool(meaning.note) != bool(meaning.settings or meaning.implied)


def _groups():
    return [type(group) for group in parse("sft", sft.run, []).settings.values()]
