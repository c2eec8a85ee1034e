"""SmolLM2's own weights: branches learn and are written as sequences of their own are, in transformers."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from fivefold.adapters.peft_warnings import quiet_peft
from fivefold.branches.decode import decode_branches
from fivefold.branches.model import prepare_for_branches
from fivefold.branches.settings import BranchScheme
from fivefold.data.branch_layout import Branch, branch_batch, branch_layout
from fivefold.data.loader import tensors
from fivefold.objectives.branches import BranchObjective
from fivefold.objectives.settings import LossSettings

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")]

PLAIN = BranchScheme(rope_2d_ratio=0.0)
PASSAGE = (
    "The lighthouse on the northern cape was built in 1872 by two brothers, Anders and Nils. It burned whale oil for "
    "forty years, and was lit by electricity from 1912 on. Today a family of bakers lives in it.\n"
)
QUESTIONS = ["Question: Who built it?\nAnswer:", "Question: When?\nAnswer:", "Question: Who lives there now?\nAnswer:"]
ANSWERS = [" Anders and Nils.", " In 1872.", " A family of bakers."]


@pytest.fixture(scope="module")
def tokenizer(real_smollm2):
    return AutoTokenizer.from_pretrained(real_smollm2)


def _ids(tokenizer, text):
    return tokenizer(text, return_tensors="np").input_ids[0]


def _adapted(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    with quiet_peft():
        return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


def _gradients(model, losses):
    total = 0.0
    for loss in losses:
        loss.backward()
        total += float(loss.detach())
    return total, {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def test_loss_and_gradients(real_smollm2, tokenizer):
    together, alone = _adapted(real_smollm2), _adapted(real_smollm2)
    prepare_for_branches(together.get_base_model(), PLAIN)
    main = _ids(tokenizer, PASSAGE)
    texts = [_ids(tokenizer, question + answer) for question, answer in zip(QUESTIONS, ANSWERS, strict=True)]
    batch = tensors(branch_batch([branch_layout(main, [Branch(text) for text in texts], learns_main=False)], 0))
    ours, our_gradients = _gradients(together, [BranchObjective(LossSettings(), PLAIN)(together, batch).loss_sum])

    def losses():
        for text in texts:
            ids = torch.tensor([[*main, *text]])
            logits = alone(input_ids=ids, use_cache=False).logits[0, len(main) - 1 : -1]
            yield torch.nn.functional.cross_entropy(logits, ids[0, len(main) :], reduction="sum")

    theirs, their_gradients = _gradients(alone, losses())
    assert abs(ours - theirs) <= 1e-6 * theirs
    for name, gradient in their_gradients.items():
        difference = (our_gradients[name] - gradient).norm() / gradient.norm()
        assert difference < 1e-4, name  # thirty layers of float32 sums in another order


def test_writing(real_smollm2, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(real_smollm2, dtype=torch.float32).eval()
    # Behind "Answer:" the model, which knows other marks, would end at once.
    openings = [
        _ids(tokenizer, one).tolist() for one in ("The brothers", "In 1912 the", "Every morning, the bakers bake")
    ]
    main = _ids(tokenizer, PASSAGE).tolist()
    expected = []
    for opening in openings:
        ids = torch.tensor([[*main, *opening]])
        done = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
        expected.append(done[0, ids.shape[1] :].tolist())
    assert min(map(len, expected)) > 4
    assert max(map(len, expected)) == 16
    prepare_for_branches(model, PLAIN)
    ends = model.generation_config.eos_token_id
    for cache in ("shared", "flat", "expanded"):
        written = [[] for _ in openings]
        tokens = decode_branches(
            *(model, main, openings),
            scheme=PLAIN,
            max_new_tokens=16,
            eos_ids=ends if isinstance(ends, list) else [ends],
            cache=cache,
        )
        for branch, token in tokens:
            written[branch - 1].append(token)
        assert written == expected, cache
