"""Where a figure comes from: the line below every table, and a process of its own for what is measured."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def measured_on(*packages: str) -> str:
    """Processor, cores and versions; besides fivefold and torch those of `packages`."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("fivefold", "torch", *packages))
    return f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}."


def in_own_process(script: str, *words: object) -> Any:
    """What a script, run with other words, prints last, read as JSON: its peak memory and its threads are its own."""
    command = [sys.executable, script, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def processor() -> str:
    """What this machine calls its processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
