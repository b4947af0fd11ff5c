"""All that a plugin may import.

Names listed in `__all__` are the public API; everything else may change without notice.
"""

from musubi_cli.captioning import in_batches, in_flight, stateless
from musubi_cli.console import (
    Console,
    bar,
    current_console,
    show_path,
    show_size,
    table,
)
from musubi_cli.errors import ExitCode, InputError, MusubiError, PluginError, one_line
from musubi_cli.files import atomic_output, obstacle
from musubi_cli.groups import CommandGroup
from musubi_cli.hookspecs import hookimpl
from musubi_cli.json_lines import json_lines, picture_key
from musubi_cli.options import Section, SectionedCommand, join
from musubi_cli.plugin_manager import PluginManager
from musubi_cli.process import clean_stdout
from musubi_cli.records import Offer, PluginRecord
from musubi_cli.specs import (
    BackendSpec,
    Captioner,
    CaptionRequest,
    CaptionResult,
    Checkpoint,
    FormatSpec,
    FormatWriter,
    ScheduleSpec,
)

__version__ = "0.1.0"

__all__ = [
    "BackendSpec",
    "CaptionRequest",
    "CaptionResult",
    "Captioner",
    "Checkpoint",
    "CommandGroup",
    "Console",
    "ExitCode",
    "FormatSpec",
    "FormatWriter",
    "InputError",
    "MusubiError",
    "Offer",
    "PluginError",
    "PluginManager",
    "PluginRecord",
    "ScheduleSpec",
    "Section",
    "SectionedCommand",
    "__version__",
    "atomic_output",
    "bar",
    "clean_stdout",
    "current_console",
    "hookimpl",
    "in_batches",
    "in_flight",
    "join",
    "json_lines",
    "obstacle",
    "one_line",
    "picture_key",
    "show_path",
    "show_size",
    "stateless",
    "table",
]
