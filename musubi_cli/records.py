"""What is known of a plugin, and what it offers."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint
from typing import Any, Generic, Literal, TypeVar

OWN_DISTRIBUTION = "musubi"

T = TypeVar("T")


@dataclass(frozen=True)
class PluginRecord:
    """What is known of one plugin.

    Attributes:
        name: the entry point's name.
        distribution: the installed package that declares it.
        version: that package's version.
        module: the entry point's target.
        status: `ok`, `disabled` by the user, or `broken`.
        adds: what it offers, for instance `schedule power`.
        problems: why it, or a part of it, does not work, each with the way out.
        remarks: what works, and should be mended nevertheless.
        seconds: how long it took to load it and to ask it what it offers.
        trace: the traceback, where it failed by an exception.
    """

    name: str
    distribution: str
    version: str
    module: str
    status: Literal["ok", "disabled", "broken"]
    adds: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    seconds: float = 0.0
    trace: str = ""


@dataclass(frozen=True)
class Offer(Generic[T]):
    """One item that a hook returned, and whose it is.

    Attributes:
        value: the item.
        plugin: the plugin's name.
        origin: that name with distribution and version, for people.
        built_in: whether it is shipped with musubi, and so comes before a stranger's.
    """

    value: T
    plugin: str
    origin: str
    built_in: bool = False


@dataclass
class Entry:
    """A plugin while it is being looked at; `PluginRecord` is its public face.

    Attributes:
        point: its entry point.
        distribution: the installed package it came with.
        version: that package's version.
    """

    point: EntryPoint
    distribution: str
    version: str
    status: Literal["ok", "disabled", "broken"] = "ok"
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    plugin: Any = None
    seconds: float = 0.0
    trace: str = ""

    @property
    def module(self) -> str:
        """The module that the entry point names."""
        return self.point.value.partition(":")[0].strip()

    def shares_name(self, other: Entry) -> bool:
        """Whether both go by one name, `-` and `_` being one."""
        return self.point.name.replace("-", "_") == other.point.name.replace("-", "_")

    @property
    def built_in(self) -> bool:
        """Whether it is shipped with musubi."""
        return self.distribution == OWN_DISTRIBUTION

    @property
    def origin(self) -> str:
        """Its name with distribution and version, for people."""
        return f"plugin {self.point.name} ({self.distribution} {self.version})"


def name_of(distribution: Distribution | None) -> tuple[str, str]:
    """A distribution's name and version, from its folder's name where its metadata are damaged."""
    folder = getattr(getattr(distribution, "_path", None), "stem", "unknown-?")
    name, _, version = str(folder).partition("-")
    with contextlib.suppress(Exception):  # whatever a damaged file makes the library raise
        if distribution:
            return distribution.name or name, distribution.version or version or "?"
    return name, version or "?"


def label(hook: str, name: str) -> str:
    """What people call an offer.

    >>> label("musubi_ema_schedules", "power"), label("musubi_merge_commands", "ema")
    ('schedule power', 'merge ema')
    """
    kinds = {
        "musubi_commands": "command",
        "musubi_merge_commands": "merge",
        "musubi_ema_schedules": "schedule",
        "musubi_caption_backends": "caption",
        "musubi_caption_formats": "format",
    }
    return f"{kinds[hook]} {name}"
