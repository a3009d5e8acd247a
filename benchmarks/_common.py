"""What every benchmark says about its machine, and where it writes."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def machine(threads: int | None = None, gpu: str | None = None) -> dict[str, str]:
    """Hardware, versions and date: what a number needs beside it, and nothing that names a host."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        fields = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
        processor = fields.get("model name", processor)
        flags = fields.get("flags", "").split()
        for flag, word in (("avx512_bf16", "AVX-512 BF16"), ("amx_bf16", "AMX")):
            processor += f", {word}" if flag in flags else ""
    found = {"processor": f"{processor}, {os.cpu_count()} cores", "GPU": gpu or "none"}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found["memory"] = f"{memory / 2**30:.0f} GiB"
    if threads:
        found["threads"] = str(threads)
    return found | {
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "system": platform.system(),
        "date": datetime.date.today().isoformat(),
    }


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
