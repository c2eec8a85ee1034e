"""Main texts and branches for a training loop of one's own: a data set, and a collator that lays records out."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from fivefold.corpus.settings import CorpusSettings
from fivefold.data.branch_layout import branch_batch, branch_layout
from fivefold.data.branch_records import BRANCHED, BranchedText, open_branches
from fivefold.data.branch_samples import BranchEncoder, encoded, grouped
from fivefold.data.loader import tensors
from fivefold.data.settings import BranchDataSettings


class ParallelPretrainDataset(Dataset[BranchedText]):
    """Records of a file, {"main", "branches"} or {"text"}.

    Args:
        data_path: JSON lines, or whatever else `--data` reads.

    Raises:
        ConfigError, DataError: no such file, or a broken line in it.
    """

    def __init__(self, data_path: str | Path) -> None:
        self._records = [record[BRANCHED] for record in open_branches(CorpusSettings([str(data_path)]))]

    def __len__(self) -> int:
        """Records."""
        return len(self._records)

    def __getitem__(self, index: int) -> BranchedText:
        """A main text, None for a single text, and its branches."""
        return self._records[index]


class ParallelPretrainCollator:
    """Records to a batch of `BranchObjective`, all their branches in it; nothing is kept from one batch to the next.

    Args:
        tokenizer: with an end mark, at which branches end.
        branches_per_sample: branches of a row: records with more become several rows, single texts share one.
        max_seq_len: most tokens of a branch.
        learn_main: whether main texts are learned, too.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        branches_per_sample: int = 8,
        max_seq_len: int = 512,
        *,
        learn_main: bool = True,
    ) -> None:
        self._data = BranchDataSettings(
            input_length=max_seq_len, branches_per_sample=branches_per_sample, learn_main=learn_main
        )
        self._encode = BranchEncoder(tokenizer, self._data, None)

    def __call__(self, records: Sequence[BranchedText]) -> dict[str, Tensor]:
        """`input_ids`, `branches`, `times` [B, N], and `sources`, `targets` [P]."""
        samples = grouped(encoded(records, self._encode), self._data, seed=0)
        layouts = [branch_layout(one.main, one.branches, learns_main=self._data.learn_main) for one in samples]
        return tensors(branch_batch(layouts, self._encode.end_id))
