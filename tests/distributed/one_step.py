"""One training step on a fixed global batch of 8, divided as told; writes the gradients that the optimizer is handed.

python one_step.py OUT MICRO_BATCH ACCUMULATION        (alone, or under torchrun)
"""

import sys

import numpy as np
import torch
from safetensors.torch import save_file

from fivefold import T5Config, T5Model
from fivefold.data.batch_plan import BatchPlan
from fivefold.data.loader import BatchLoader
from fivefold.data.pairs import PairSource
from fivefold.objectives.seq2seq import Seq2SeqObjective
from fivefold.objectives.settings import LossSettings
from fivefold.training.distributed import start_processes
from fivefold.training.loop import Trainer
from fivefold.training.settings import LoopSettings


class Recorder(torch.optim.Optimizer):
    """Moves nothing and remembers the gradients."""

    def step(self, closure=None):
        self.gradients = [parameter.grad.clone() for parameter in self.param_groups[0]["params"]]


def main() -> None:
    out, micro_batch, accumulation = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.manual_seed(0)
    model = T5Model(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0))
    # Pairs of very different lengths, so that a mean of means would differ from the mean over tokens.
    lengths = np.random.default_rng(0).integers(1, 40, (32, 2))
    prompts, responses = ([np.arange(n) % 60 + 3 for n in column] for column in lengths.T)
    source = PairSource(prompts, responses, input_length=64, target_length=64, eos_id=1, pad_id=0, seed=5, shuffle=True)
    with start_processes() as processes:
        wrapped = processes.wrap(model)
        optimizer = Recorder([{"params": list(model.parameters()), "base_lr": 1.0}], {"lr": 1.0})
        settings = LoopSettings(dtype="float32")
        trainer = Trainer(wrapped, Seq2SeqObjective(LossSettings()), optimizer, lambda _: 1.0, 0.0, settings, processes)
        plan = BatchPlan(micro_batch, accumulation, processes.world_size)
        with BatchLoader(source, plan, rank=processes.rank) as loader:
            result = trainer.step(0, next(loader).micro_batches, want_stop=False)
        if processes.is_first:
            numbers = torch.tensor([result["loss"], result["grad_norm"], result["num_tokens"]])
            names = (name for name, _ in model.named_parameters())
            save_file(dict(zip(names, optimizer.gradients, strict=True)) | {"numbers": numbers}, out)


if __name__ == "__main__":
    main()
