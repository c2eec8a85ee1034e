"""Answers to held-out prompts while a model learns: numbers alone do not show what it says."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch.distributed as dist

from fivefold.tokenizer.chat_format import Message

SAMPLES_NAME = "samples.jsonl"


class Samples:
    """Writes, at each evaluation, the model's answers to the same held-out conversations.

    Lines of samples.jsonl: {"step", "prompt" (the messages), "answer", "reference" (the answer in the data)}.

    Args:
        run_dir: folder of the run.
        conversations: held-out ones, each ending with the assistant's answer.
        answer: conversations without their last answer to the model's own.
    """

    def __init__(
        self,
        run_dir: Path,
        conversations: Sequence[list[Message]],
        answer: Callable[[Sequence[Sequence[Message]]], list[str]],
    ) -> None:
        self._file = run_dir / SAMPLES_NAME
        self._conversations, self._answer = conversations, answer
        self._is_begun = False

    def __call__(self, step: int) -> dict[str, str]:
        """Let the model answer; on all processes but the first nothing happens."""
        if dist.is_initialized() and dist.get_rank() != 0:
            return {}
        prompts = [messages[:-1] for messages in self._conversations]
        lines = [
            {"step": step, "prompt": messages[:-1], "answer": answer, "reference": messages[-1]["content"]}
            for messages, answer in zip(self._conversations, self._answer(prompts), strict=True)
        ]
        if not self._is_begun:  # what a killed run wrote from this step on is written again
            _keep_before(self._file, step)
            self._is_begun = True
        with self._file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        return {"samples": "\n\n---\n\n".join(map(_as_markdown, lines))}


def _keep_before(file: Path, step: int) -> None:
    """Drop the lines from `step` on, and a last one that was cut short, in one atomic step."""
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    fresh = file.with_name(f".{file.name}.writing")
    fresh.write_bytes(b"".join(line for line in whole if json.loads(line)["step"] < step))
    fresh.replace(file)


def _as_markdown(line: dict) -> str:
    asked = "\n\n".join(f"**{message['role']}**: {message['content']}" for message in line["prompt"])
    return f"{asked}\n\n**answer**: {line['answer']}\n\n**reference**: {line['reference']}"
