"""How long does `musubi --help` take, against importing what it is made of?

python benchmarks/start_up.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 20
COMMANDS = {
    "import click, pluggy": [sys.executable, "-c", "import click, pluggy"],
    "musubi --help": [str(Path(sys.executable).with_name("musubi")), "--help"],
    "musubi merge ema --help": [
        str(Path(sys.executable).with_name("musubi")),
        *("merge", "ema", "--help"),
    ],
}


def main() -> None:
    """Run the commands in turn and print best and median times."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            times[name].append(time.perf_counter() - start)
    base = times["import click, pluggy"]
    for name, taken in times.items():
        best, median = min(taken), statistics.median(taken)
        ratio = median / statistics.median(base)
        print(f"{name:24} best {1e3 * best:4.0f} ms  median {1e3 * median:4.0f} ms  {ratio:.2f}x")


if __name__ == "__main__":
    main()
