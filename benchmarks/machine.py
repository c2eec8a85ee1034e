"""What a figure was measured on: the line below every table."""

import os
import platform
from importlib.metadata import version
from pathlib import Path


def measured_on(*packages: str) -> str:
    """Processor, cores and versions; besides fivefold and torch those of `packages`."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("fivefold", "torch", *packages))
    return f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}."


def processor() -> str:
    """What this machine calls its processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
