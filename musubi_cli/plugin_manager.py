"""Find plugins, load each inside its own guard, and keep one record of each.

Pluggy dispatches, but its own entry-point loader is not used: there one failing import stops the
others, and a second plugin of the same name vanishes without a word.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, Literal, TypeVar

import click
import pluggy

from musubi_cli import hookspecs
from musubi_cli.errors import PluginError
from musubi_cli.specs import BackendSpec

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
    """

    name: str
    distribution: str
    version: str
    module: str
    status: Literal["ok", "disabled", "broken"]
    adds: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Offer(Generic[T]):
    """One item that a hook returned, and whose it is."""

    value: T
    plugin: str
    origin: str
    """The plugin's name with its distribution and version, for people."""
    built_in: bool = False
    """Whether it is shipped with musubi, and so comes before a stranger's."""


@dataclass
class _Entry:
    """A plugin while it is being looked at; `PluginRecord` is its public face."""

    point: EntryPoint
    status: Literal["ok", "disabled", "broken"] = "ok"
    problems: list[str] = field(default_factory=list)
    plugin: Any = None

    @property
    def distribution(self) -> str:
        return self.point.dist.name if self.point.dist else "unknown"

    @property
    def version(self) -> str:
        return self.point.dist.version if self.point.dist else "?"

    @property
    def built_in(self) -> bool:
        return self.distribution == OWN_DISTRIBUTION

    @property
    def origin(self) -> str:
        return f"plugin {self.point.name} ({self.distribution} {self.version})"


class PluginManager:
    """All plugins of this process.

    Args:
        points: the entry points to load; those installed in group `musubi` by default.
        disabled: names of plugins to leave out.
        strict: raise `PluginError` at the first broken plugin instead of carrying on without it.
        report: receives one line for each problem, when it is found.
    """

    def __init__(
        self,
        points: Iterable[EntryPoint] | None = None,
        *,
        disabled: Collection[str] = (),
        strict: bool = False,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._points = points
        self._disabled = disabled
        self._strict = strict
        self._report = report
        self._entries: list[_Entry] = []
        self._offers: dict[str, tuple[Offer[Any], ...]] = {}
        self._pluggy = pluggy.PluginManager(hookspecs.PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        self._loaded = False

    def load(self, *, third_party: bool = True) -> None:
        """Import and register every plugin, built-ins first, then by name; only once.

        Args:
            third_party: False disables all that is not shipped with musubi.
        """
        if self._loaded:
            return
        self._loaded = True
        points = entry_points(group=hookspecs.PROJECT) if self._points is None else self._points
        entries = [_Entry(point) for point in points]
        entries.sort(key=lambda e: (not e.built_in, e.point.name, e.distribution))
        for entry in entries:
            self._entries.append(entry)
            if entry.point.name in self._disabled or not (third_party or entry.built_in):
                entry.status = "disabled"
            else:
                self._load(entry)
        unknown = sorted(set(self._disabled) - {entry.point.name for entry in entries})
        if unknown:
            self._report(f"no plugin is named {', '.join(unknown)}, so none was disabled by it")

    def offers(self, hook: str) -> tuple[Offer[Any], ...]:
        """Everything the working plugins return from `hook`, each name once, first come."""
        self.load()
        if hook not in self._offers:
            self._offers[hook] = ()  # a plugin that asks for the hook it is answering gets nothing
            self._offers[hook] = self._unique(hook, self._collect(hook))
        return self._offers[hook]

    def refuse(self, offer: Offer[Any], reason: str) -> None:
        """Drop one offer, for a reason that is told once and kept in its plugin's record."""
        entry = next(e for e in self._entries if e.plugin is not None and e.origin == offer.origin)
        self._problem(entry, reason)
        for hook, offers in self._offers.items():
            self._offers[hook] = tuple(o for o in offers if o is not offer)

    def records(self) -> list[PluginRecord]:
        """One record a plugin, in load order, after every hook was asked."""
        for hook in hookspecs.OFFERED:
            self.offers(hook)
        return [
            PluginRecord(
                name=entry.point.name,
                distribution=entry.distribution,
                version=entry.version,
                module=entry.point.value,
                status=entry.status,
                adds=tuple(self._added_by(entry)),
                problems=tuple(entry.problems),
            )
            for entry in self._entries
        ]

    def _load(self, entry: _Entry) -> None:
        namesake = next((e for e in self._entries if e.plugin and _same_name(e, entry)), None)
        if namesake is not None:
            self._break(entry, f"the name is taken by {namesake.origin}; uninstall one of the two")
            return
        try:
            with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
                plugin = entry.point.load()
            self._pluggy.register(plugin, name=entry.point.name)
        except (Exception, SystemExit) as error:
            self._break(entry, f"{_one_line(error)}; {_way_out(error, entry)}")
            return
        entry.plugin = plugin
        mistake = self._misspelt_hook(plugin)
        if mistake:
            self._pluggy.unregister(plugin)
            entry.plugin = None
            self._break(entry, mistake)

    def _misspelt_hook(self, plugin: Any) -> str | None:
        for caller in self._pluggy.get_hookcallers(plugin) or ():
            if not caller.has_spec():
                import difflib

                close = difflib.get_close_matches(caller.name, hookspecs.OFFERED, n=1)
                meant = f"; did you mean {close[0]}?" if close else ""
                return f"it implements {caller.name}, which is no hook{meant}"
        for name in hookspecs.OFFERED:
            function = getattr(plugin, name, None)
            if callable(function) and not hasattr(function, f"{hookspecs.PROJECT}_impl"):
                return f"its function {name} is not marked with @musubi_cli.hookimpl"
        return None

    def _collect(self, hook: str) -> Iterator[tuple[_Entry, Offer[Any]]]:
        for entry in self._entries:
            if entry.status != "ok":
                continue
            caller = self._pluggy.subset_hook_caller(
                hook, [e.plugin for e in self._entries if e.plugin and e is not entry]
            )
            for item in self._guarded(entry, hook, caller):
                yield entry, Offer(item, entry.point.name, entry.origin, entry.built_in)

    def _guarded(self, entry: _Entry, hook: str, caller: Callable[..., Any]) -> Sequence[Any]:
        spec = getattr(self._pluggy.hook, hook).spec
        wanted = hookspecs.OFFERED[hook]
        try:
            with contextlib.redirect_stdout(sys.stderr):
                results = caller(**({"plugins": self} if "plugins" in spec.argnames else {}))
                items = [item for result in results for item in result]
        except PluginError:
            raise
        except (Exception, SystemExit) as error:
            self._break(entry, f"its {hook} failed: {_one_line(error)}; {_way_out(error, entry)}")
            return ()
        for item in items:
            fault = _fault(item, wanted)
            if fault:
                self._break(
                    entry, f"its {hook} returned {fault}; tell the author of {entry.distribution}"
                )
                return ()
        return items

    def _unique(
        self, hook: str, found: Iterable[tuple[_Entry, Offer[Any]]]
    ) -> tuple[Offer[Any], ...]:
        taken: dict[str, Offer[Any]] = {}
        for entry, offer in found:
            name = offer.value.name
            first = taken.setdefault(name.replace("-", "_"), offer)
            if first is not offer:
                what = _label(hook, name)
                self._problem(entry, f"{what} is refused: {first.origin} offers it already")
        return tuple(taken.values())

    def _added_by(self, entry: _Entry) -> Iterator[str]:
        for hook, offers in self._offers.items():
            for offer in offers:
                if offer.origin == entry.origin:
                    yield _label(hook, offer.value.name)

    def _break(self, entry: _Entry, problem: str) -> None:
        entry.status = "broken"
        self._problem(entry, problem)

    def _problem(self, entry: _Entry, problem: str) -> None:
        if problem in entry.problems:
            return
        entry.problems.append(problem)
        line = f"{entry.origin}: {problem}"
        if self._strict:
            raise PluginError(line)
        self._report(line)


def _same_name(one: _Entry, other: _Entry) -> bool:
    return one.point.name.replace("-", "_") == other.point.name.replace("-", "_")


def _fault(item: Any, wanted: type[Any]) -> str | None:
    """What is wrong with one item of a hook; None if nothing is."""
    if not isinstance(item, wanted):
        return f"{item!r:.60}, not a {wanted.__name__}"
    if not isinstance(item.name, str) or not item.name:
        return f"a {wanted.__name__} whose name is {item.name!r}"
    return None if wanted is click.Command else _fault_of_spec(item)


def _fault_of_spec(spec: Any) -> str | None:
    if not isinstance(spec.help, str):
        return f"{spec.name}, whose help is no text"
    if not isinstance(spec.options, tuple):
        return f"{spec.name}, whose options are no tuple"
    shares_its_command = not isinstance(spec, BackendSpec)
    for option in spec.options:
        if not isinstance(option, click.Option):
            return f"{spec.name}, one of whose options is {option!r:.60}, not a click.Option"
        disturbs = option.required or option.prompt or not option.expose_value
        if disturbs and shares_its_command:
            return (
                f"{spec.name}, whose option {option.opts[0]} is required, prompts or is not "
                "exposed, which would disturb those who do not use it"
            )
    return None


def _label(hook: str, name: str) -> str:
    """What people call an offer.

    >>> _label("musubi_ema_schedules", "power"), _label("musubi_merge_commands", "ema")
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


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _way_out(error: BaseException, entry: _Entry) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        top = error.name.partition(".")[0]
        if top != entry.point.value.partition(":")[0].partition(".")[0]:
            return f"install what brings the module {top}, or uninstall {entry.distribution}"
    return f"update or uninstall {entry.distribution}"
