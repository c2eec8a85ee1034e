"""`import fivefold` teaches transformers' auto classes our model type, whichever of the two comes first."""

import subprocess
import sys

import pytest

_CONFIG = "from transformers import AutoConfig; c = AutoConfig.for_model('fivefold_t5', num_layers=1)"
_MODEL = "from transformers import AutoModelForSeq2SeqLM; print(type(AutoModelForSeq2SeqLM.from_config(c)).__name__)"


@pytest.mark.parametrize(
    "first",
    [
        "import fivefold",
        "import fivefold, transformers",
        "import transformers, fivefold",
        "import transformers.models.auto.configuration_auto, fivefold",
        "import transformers.models.auto.modeling_auto, fivefold",
        "import fivefold, transformers.modeling_utils",
        "import fivefold, transformers.generation.utils",
        "import fivefold, transformers.trainer",
        "import fivefold.t5.config",
        "import fivefold.t5.model",
        "from fivefold import T5Model",
    ],
)
def test_in_any_order(first):
    done = subprocess.run([sys.executable, "-c", f"{first}; {_CONFIG}; {_MODEL}"], capture_output=True, text=True)
    assert done.stdout.strip() == "CombinedT5Model", done.stderr[-2000:]


def test_importing_fivefold_alone_imports_no_torch():
    lines = "import fivefold, sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]
