"""What a plugin author's own tests import: contract checks, a runner, small real files.

    from musubi_cli.testing import check_schedule
    from my_plugin import musubi_ema_schedules

    def test_the_contract():
        (spec,) = musubi_ema_schedules()
        check_schedule(spec)

A check raises `AssertionError` with a sentence that says what was promised and what was found. It
needs no test framework. musubi's own plugins pass the same checks.
"""

from musubi_cli.testing.backends import check_backend
from musubi_cli.testing.files import write_checkpoints, write_pictures, write_safetensors
from musubi_cli.testing.formats import check_format
from musubi_cli.testing.plugins import check_plugin
from musubi_cli.testing.running import Ran, run
from musubi_cli.testing.schedules import check_schedule

__all__ = [
    "Ran",
    "check_backend",
    "check_format",
    "check_plugin",
    "check_schedule",
    "run",
    "write_checkpoints",
    "write_pictures",
    "write_safetensors",
]
