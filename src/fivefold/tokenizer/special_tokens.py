"""The tokens that are not text, and where they stand in a vocabulary."""

import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
LEADING_TOKENS = [PAD, EOS, UNK, *BYTE_TOKENS]
"""The first ids of every vocabulary made here, in order."""

# mT5's vocabulary writes its sentinels with the mark of a space in front.
SENTINEL = re.compile(r"\u2581?<extra_id_(\d+)>")


def sentinel_name(number: int) -> str:
    """The sentinel that stands for the `number`-th gap of a text."""
    return f"<extra_id_{number}>"


def sentinel_ids(tokenizer: "PreTrainedTokenizerBase") -> NDArray[np.int64]:
    """Ids of the sentinels `<extra_id_0>`, `<extra_id_1>`, ..., found by name.

    Source: Raffel et al. 2020, section 3.1.4.

    Args:
        tokenizer: any tokenizer; the size of a model's vocabulary, which may be padded, plays no part.

    Returns:
        [number of sentinels] ids in the order of the numbers, up to the first number that is missing.
    """
    found = {int(match[1]): id_ for token, id_ in tokenizer.get_vocab().items() if (match := SENTINEL.fullmatch(token))}
    ids: list[int] = []
    while len(ids) in found:
        ids.append(found[len(ids)])
    return np.array(ids, dtype=np.int64)


def sentinels_needed(max_length: int) -> int:
    """Sentinels that suffice for every input of `max_length` tokens.

    The densest denoiser of UL2 hides half of n tokens in spans of 3: n / 6 spans, and n / 2 + n / 6 tokens of input, so
    there are max_length / 4 spans. T5's own denoiser needs max_length / 18, and T5 has 100.
    """
    return max(100, -(-max_length // 4))
