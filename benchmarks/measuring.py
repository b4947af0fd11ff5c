"""Time and memory of a command, seen from outside."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path


def measured(command: list[str]) -> tuple[float, float, str]:
    """Wall seconds and peak MiB of a command with its children, and what it printed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    peak = [0]
    sampler = threading.Thread(target=_sample, args=(process, peak))
    sampler.start()
    printed, told = process.communicate()
    seconds = time.perf_counter() - start
    sampler.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed:\n{told.decode()}")
    return seconds, peak[0] / 2**20, printed.decode()


def _sample(process: subprocess.Popen[bytes], peak: list[int]) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    while process.poll() is None:
        total = 0
        for pid in [process.pid, *_children(process.pid)]:
            try:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
            except (FileNotFoundError, ProcessLookupError):
                continue
        peak[0] = max(peak[0], total)
        time.sleep(0.005)


def _children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
