"""What an installed plugin promises as a whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from musubi_cli.testing.demands import demand


def check_plugin(name: str) -> None:
    """Check that an installed plugin works in a fresh process, adds something, and loads quickly.

    Args:
        name: the plugin's, that is its entry point's in group `musubi`.

    Raises:
        AssertionError: with what `musubi plugins` says about it.
    """
    command = [sys.executable, "-m", "musubi_cli", "--config", os.devnull, "plugins", "--json"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MUSUBI_")}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    demand(ran.returncode == 0, f"musubi plugins failed: {ran.stderr}")
    records = {record["name"]: record for record in json.loads(ran.stdout)}
    demand(
        name in records,
        f"no plugin {name} is installed; there are {', '.join(records)}. Its pyproject.toml needs "
        "an entry in [project.entry-points.musubi], which counts when it is installed anew",
    )
    record = records[name]
    told = [*record["problems"], *record["remarks"]]
    demand(not told, f"plugin {name}: {'; '.join(told)}\n{record['trace']}".rstrip())
    demand(bool(record["adds"]), f"plugin {name} adds nothing: its hooks give nothing")
