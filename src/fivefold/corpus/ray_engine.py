"""Reading and cleaning spread over a Ray cluster: a task a file, then tasks that clean, results in order."""

import logging
import os
import pickle
from collections import Counter
from collections.abc import Iterator
from typing import Any

from fivefold.corpus.batches import Batch, read_batches
from fivefold.corpus.clean import Cleaner, CleanText
from fivefold.corpus.read import Corpus
from fivefold.errors import ConfigError, DataError, FivefoldError

# A task gets this much at a time; with Ray's own 128 MB one task would clean a whole file.
BLOCK_BYTES = 1 << 23
# Less than a processor, so that Ray keeps reading and cleaning apart and several tasks clean one large file.
READING_PROCESSORS = 0.5


def clean_batches_with_ray(corpus: Corpus, clean: Cleaner) -> Iterator[tuple[Batch, list[CleanText]]]:
    """What `clean_batches` gives, from the cluster that is running, or else from this machine's processors.

    All machines must find the files under the same names. Broken lines are counted here, so that a few more than
    allowed may be met before it stops.

    Args:
        corpus: where the text comes from; copies of it read its files from where it stands.
        clean: what to do to texts.

    Raises:
        ConfigError: Ray is not installed.
        DataError: bad data.
    """
    # Ray would tell its makers that it is used.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import pyarrow
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(f"--engine ray needs Ray ({error}); pip install 'fivefold[ray]'.") from error

    settings, fields = corpus.settings, corpus.fields

    def read(item: dict[str, Any]) -> Iterator[dict[str, bytes]]:
        part, position = pickle.loads(item["item"])
        one = Corpus([part], settings, fields, keep_markup=True)
        one.load_state_dict(one.state_dict() | {"position": position})
        try:
            for batch in read_batches(one):
                yield {"batch": pickle.dumps(batch)}
        except FivefoldError as error:  # raised here, it would come out between Ray's own lines
            yield {"batch": pickle.dumps(error)}

    def clean_block(block: "pyarrow.Table") -> "pyarrow.Table":
        cleaned: list[bytes] = []
        for row in block["batch"]:
            batch = pickle.loads(row.as_py())
            texts = [record[settings.text_field] for record in batch.records] if isinstance(batch, Batch) else []
            cleaned.append(pickle.dumps((batch, clean(texts))))
        return pyarrow.table({"batch": cleaned})

    start = corpus.state_dict()
    parts = corpus.parts[start["part"] :]
    if not parts:
        return
    began_here = not ray.is_initialized()
    if began_here:
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    positions = [start["position"], *[None] * len(parts)]
    items = [pickle.dumps(pair) for pair in zip(parts, positions, strict=False)]
    try:
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        dataset = dataset.flat_map(read, num_cpus=READING_PROCESSORS)
        dataset = dataset.map_batches(clean_block, batch_format="pyarrow", batch_size=None)
        part, bad_lines, left_out = start["part"], start["bad_lines"], Counter[str](start["left_out"])
        for row in dataset.iter_rows():
            batch, cleaned = pickle.loads(row["batch"])
            if isinstance(batch, FivefoldError):
                raise batch
            ends_part = batch.reader["part"]
            reader = start | {
                "part": part + ends_part,
                "position": batch.reader["position"],
                "bad_lines": bad_lines + batch.reader["bad_lines"],
                "left_out": dict(left_out + Counter(batch.reader["left_out"])),
            }
            if reader["bad_lines"] > settings.max_bad_lines:
                raise DataError(
                    f"{' '.join(settings.data)} holds more than {settings.max_bad_lines} broken lines: mend the data, "
                    "or raise --max_bad_lines to skip such lines."
                )
            yield Batch(batch.records, reader), cleaned
            if ends_part:
                part, bad_lines, left_out = reader["part"], reader["bad_lines"], Counter(reader["left_out"])
    finally:
        if began_here:
            ray.shutdown()
