"""The program `fivefold`: the names of its verbs, and how their errors end it."""

import difflib
import errno
import importlib
import logging
import os
import sys

# Places that are forbidden, or not what their name says.
_WRONG_PLACE = (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)

VERBS = {
    "corpora": "the corpora that --data knows by name",
    "prepare": "documents to token shards, ready for training",
    "tokenizer": "train a tokenizer on text",
    "pretrain": "train a model from scratch, or on, on text or pairs",
    "dpo": "teach a model which of two answers is better",
    "rejected": "rejected answers for dpo, written by a model itself",
    "chat": "talk with a model in the terminal",
    "sft": "teach a model to answer, on conversations",
    "finetune": "the same by a PEFT JSON file: show the plan and the command, or run it",
    "parallel": "teach a decoder to go on from one text in several branches at once",
    "convert_branches": "conversations to main texts with branches, for parallel",
    "branches": "continue one text in several branches at once",
    "eval superglue": "score a model on SuperGLUE",
    "generate": "text in, text out; fill in blanks",
    "inspect": "the singular values of a model's layers",
    "export": "a low-rank model as a standard Hugging Face folder",
    "report": "the curves of a run as pictures and a page",
    "doctor": "check this installation",
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit code is 0, 2 for what the user can mend, 130 when interrupted."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("--version", "version"):
        from fivefold import __version__

        print(f"fivefold {__version__}")
        return 0
    verb, rest = split_verb(words)
    if verb not in VERBS:
        print(f"fivefold: {_unknown(verb)}", file=sys.stderr)
        return 2
    return _run(*_as_parallel(verb, rest))


def module_of(verb: str) -> str:
    """Where a verb's `run` is."""
    return f"fivefold.commands.{verb.replace(' ', '.')}"


def split_verb(words: list[str]) -> tuple[str, list[str]]:
    """The verb, of one word or of two, and the words behind it."""
    length = 2 if any(verb.startswith(f"{words[0]} ") for verb in VERBS) else 1
    return " ".join(words[:length]).replace("-", "_"), words[length:]


def _unknown(verb: str) -> str:
    if whole := [name for name in VERBS if name.startswith(f"{verb} ")]:
        return f"{verb!r} needs another word; there are {', '.join(whole)}."
    nearest = difflib.get_close_matches(verb, VERBS, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(VERBS)}."
    return f"there is no verb {verb!r}; {hint}"


def _as_parallel(verb: str, words: list[str]) -> tuple[str, list[str]]:
    """`pretrain --objective parallel` takes the flags of `parallel`, and is nothing else."""
    for said in (["--objective", "parallel"], ["--objective=parallel"]):
        for place in range(len(words) if verb == "pretrain" else 0):
            if words[place : place + len(said)] == said:
                return "parallel", words[:place] + words[place + len(said) :]
    return verb, words


def _run(verb: str, words: list[str]) -> int:
    from fivefold.errors import FivefoldError, is_full_disk
    from fivefold.flags import as_recipe, parse

    logging.basicConfig(format="%(message)s")
    logging.getLogger("fivefold").setLevel(logging.INFO)
    # It tells of kernels that it could fetch, even where nothing is quantised, and of each change of type in a product.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault(
        "HF_HUB_DISABLE_PROGRESS_BARS", "1"
    )  # ours says what goes on; a bar for each file would hide it
    module = importlib.import_module(module_of(verb))
    try:
        invocation = parse(verb, module.run, words, getattr(module, "POSITIONAL", None))
        if invocation.help_text is not None:
            print(invocation.help_text)
        elif invocation.print_config:
            import yaml

            print(yaml.safe_dump(as_recipe(invocation.settings.values()), sort_keys=False, allow_unicode=True), end="")
        else:
            module.run(**invocation.settings, dry_run=invocation.dry_run)
    except FivefoldError as error:
        print(f"fivefold {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"fivefold {verb}: {str(error) or 'interrupted'}.", file=sys.stderr)
        return 130
    except Exception as error:
        if not is_full_disk(error) and not (isinstance(error, OSError) and error.errno in _WRONG_PLACE):
            raise
        problem, file = (error.strerror, error.filename) if isinstance(error, OSError) else ("The disk is full", None)
        where = f" ({file})" if file else ""
        print(f"fivefold {verb}: {problem}{where}; make room or choose another place.", file=sys.stderr)
        return 2
    return 0


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {summary}" for verb, summary in VERBS.items())
    return (
        "usage: fivefold VERB [--recipe FILE] [--flag value ...]\n\n"
        "Small text-to-text and chat language models, from raw text to a chat window.\n\n"
        f"{verbs}\n\n"
        "fivefold VERB --help lists a verb's flags; --dry_run checks everything and does nothing."
    )


if __name__ == "__main__":
    sys.exit(main())
