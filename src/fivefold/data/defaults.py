"""What is trained on, and read with, where the user does not say: what LORO's reference takes."""

from dataclasses import replace

from fivefold.corpus.settings import CorpusSettings
from fivefold.data.build import prepared_folder
from fivefold.data.settings import DataSettings
from fivefold.errors import ConfigError

DEFAULT_DATA, DEFAULT_TOKENIZER = "c4_en", "t5-base"


def with_defaults(
    corpus: CorpusSettings, data: DataSettings, objective: str | None, model: str | None = None
) -> tuple[CorpusSettings, DataSettings]:
    """The same settings with data, held-out data, tokenizer and what the objective decides filled in.

    Args:
        objective: what the model learns.
        model: folder or Hub id of the trained model to go on with, whose tokenizer text is then read with.

    Raises:
        ConfigError: pairs are wanted and no data are named.
    """
    data = data.for_objective(objective)
    if not corpus.data:
        if objective == "seq2seq":
            raise ConfigError("--data is missing: --objective seq2seq needs records with prompts and responses.")
        corpus = replace(corpus, data=[DEFAULT_DATA])
        if not data.validation_data and data.validation_frac == DataSettings().validation_frac:
            data = replace(data, validation_data=[DEFAULT_DATA])
    if data.tokenizer is None and prepared_folder(corpus) is None:
        data = replace(data, tokenizer=model or DEFAULT_TOKENIZER)
    return corpus, data
