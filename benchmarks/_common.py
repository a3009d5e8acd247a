"""What the benchmarks share: the machine they ran on, Markdown tables, true minus signs."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

__all__ = ["HERE", "ROOT", "machine", "table"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def machine(threads: int) -> str:
    """Hardware, versions and date in one line: what a number needs beside it."""
    processor = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        pairs = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        fields = {name.strip(): text.strip() for name, _, text in pairs}
        processor = fields.get("model name", processor)
        flags = fields.get("flags", "").split()
        processor += "".join(f", {f}" for f in ("avx512_bf16", "amx_bf16") if f in flags)
    return (
        f"{processor}, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)} · "
        f"Python {platform.python_version()} · PyTorch {importlib.metadata.version('torch')} · "
        f"{datetime.date.today().isoformat()}"
    )


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
