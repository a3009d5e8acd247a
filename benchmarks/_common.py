"""What the benchmarks share: the machine they ran on, Markdown tables, true minus signs."""

import datetime
import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["HERE", "ROOT", "machine", "table"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def machine(threads: int) -> str:
    """Hardware, versions and date in one line: what a number needs beside it."""
    processor = platform.processor() or platform.machine()
    if (file := Path("/proc/cpuinfo")).exists():
        name, flags = (re.search(rf"{key}\s*: (.*)", file.read_text()) for key in ("name", "flags"))
        some = {"avx512_bf16", "amx_bf16"} & set(flags[1].split() if flags else ())
        processor = ", ".join([name[1] if name else processor, *sorted(some)])
    return (
        f"{processor}, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)} · "
        f"Python {platform.python_version()} · PyTorch {importlib.metadata.version('torch')} · "
        f"{datetime.date.today().isoformat()}"
    )


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
