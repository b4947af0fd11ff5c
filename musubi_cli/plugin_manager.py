"""Find plugins, load each inside its own guard, and keep one record of each.

Pluggy dispatches, but its own entry-point loader is not used: there one failing import stops the
others, and a second plugin of the same name vanishes without a word.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from importlib.metadata import EntryPoint
from types import TracebackType
from typing import Any

import pluggy

from musubi_cli import hookspecs
from musubi_cli.discovery import installed
from musubi_cli.errors import PluginError, Terminated, one_line
from musubi_cli.faults import fault, hook_mistake, unmet_need, way_out
from musubi_cli.records import Entry, Offer, PluginRecord, label, name_of
from musubi_cli.watching import watched


class _StrictError(PluginError):
    """A problem that strictness makes an error; a hook's own `PluginError` is just another one."""


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
        self._entries: list[Entry] = []
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
        if self._points is None:
            entries = [*installed(hookspecs.PROJECT)]
        else:
            entries = [Entry(point, *name_of(point.dist)) for point in self._points]
        entries.sort(key=lambda e: (not e.built_in, e.point.name, e.distribution))
        for entry in entries:
            self._entries.append(entry)
            if entry.point.name in self._disabled or not (third_party or entry.built_in):
                entry.status = "disabled"
            elif entry.problems:
                self._tell(entry, *entry.problems)
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

    def object_to(self, offer: Offer[Any], reason: str) -> None:
        """Tell once, and keep in its plugin's record, why an offer is not used everywhere."""
        entry = next(e for e in self._entries if e.plugin is not None and e.origin == offer.origin)
        self._problem(entry, f"{reason}; tell the author of {entry.distribution}, or uninstall it")

    def refuse(self, offer: Offer[Any], reason: str) -> None:
        """Drop one offer altogether, for a reason that is told likewise."""
        self.object_to(offer, reason)
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
                remarks=tuple(entry.remarks),
                seconds=round(entry.seconds, 3),
                trace=entry.trace,
            )
            for entry in self._entries
        ]

    def bug_notice(self, error: BaseException) -> str:
        """Whose bug an unexpected exception is, and what the user can do about it."""
        entry = next(filter(None, map(self._owner, _modules(error.__traceback__))), None)
        if entry is None or entry.built_in:
            where = f" ({entry.point.name})" if entry else ""
            return f"This is a bug in musubi{where}; --verbose shows where."
        return (
            f"This is a bug in {entry.origin}, so tell its author; --verbose shows where, "
            f"MUSUBI_DISABLE_PLUGINS={entry.point.name} leaves it out."
        )

    def _owner(self, module: str) -> Entry | None:
        """The plugin whose code a module is."""
        top = module.partition(".")[0]
        entries = [e for e in self._entries if e.module.partition(".")[0] == top]
        closest = [e for e in entries if f"{module}.".startswith(f"{e.module}.")]
        return next(iter(closest or entries), None)

    def _load(self, entry: Entry) -> None:
        obstacle = self._obstacle(entry)
        if obstacle:
            self._break(entry, obstacle)
            return
        try:
            with self._watching(entry):
                plugin = entry.point.load()
                mistake = hook_mistake(plugin, self._accepted())
                mistake = mistake or self._registered_before(plugin)
                deprecated = [] if mistake else self._register(plugin, entry)
        except (KeyboardInterrupt, Terminated):
            raise
        except BaseException as error:  # a skipped test module's is no Exception, for instance
            self._fail(entry, error)
            return
        if mistake:
            self._break(entry, f"{mistake}; update or uninstall {entry.distribution}")
            return
        entry.plugin = plugin
        if not self._pluggy.get_hookcallers(plugin):
            self._remark(entry, "implements no hook; its entry point should name the module")
        for remark in deprecated:
            self._remark(entry, remark)

    def _registered_before(self, plugin: Any) -> str | None:
        hash(plugin)  # pluggy needs that
        first = next((e for e in self._entries if e.plugin is plugin), None)
        return f"its module is that of {first.origin} already" if first else None

    def _register(self, plugin: Any, entry: Entry) -> list[str]:
        """Make a plugin's hooks known; gives what it should use instead of deprecated ones."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._pluggy.register(plugin, name=entry.point.name)
        return [str(warning.message) for warning in caught]

    def _accepted(self) -> dict[str, tuple[str, ...]]:
        specs = ((hook, getattr(self._pluggy.hook, hook).spec) for hook in hookspecs.OFFERED)
        return {hook: spec.argnames for hook, spec in specs}

    def _obstacle(self, entry: Entry) -> str | None:
        """Why a plugin is not even imported."""
        others = (e for e in self._entries if e.plugin is not None)
        namesake = next((e for e in others if e.shares_name(entry)), None)
        if namesake is not None:
            return f"the name is taken by {namesake.origin}; uninstall one of the two"
        if not entry.module.replace(".", "").isidentifier():
            return f"its entry point names no module but {entry.point.value!r}"
        dist = entry.point.dist
        need = unmet_need(dist) if dist and not entry.built_in else None
        if need:
            return f"it needs {need}; install versions of the two that go together"
        return None

    @contextlib.contextmanager
    def _watching(self, entry: Entry) -> Iterator[None]:
        """Let a plugin do something, and keep in its record what that costs, if it succeeds."""
        with watched() as seen:
            yield
        entry.seconds += seen.seconds
        for remark in seen.remarks():
            self._remark(entry, remark)

    def _collect(self, hook: str) -> Iterator[tuple[Entry, Offer[Any]]]:
        for entry in self._entries:
            if entry.status != "ok":
                continue
            others = [e.plugin for e in self._entries if e.plugin is not None and e is not entry]
            caller = self._pluggy.subset_hook_caller(hook, others)
            for item in self._guarded(entry, hook, caller):
                yield entry, Offer(item, entry.point.name, entry.origin, entry.built_in)

    def _guarded(self, entry: Entry, hook: str, caller: pluggy.HookCaller) -> Sequence[Any]:
        spec = getattr(self._pluggy.hook, hook).spec
        try:
            with self._watching(entry):
                results = caller(**({"plugins": self} if "plugins" in spec.argnames else {}))
                if not results and caller.get_hookimpls():
                    raise TypeError("it returned None instead of a list")
                for result in results:
                    if not isinstance(result, Iterable):
                        raise TypeError(f"it returned a {type(result).__name__} instead of a list")
                items = [item for result in results for item in result]
                mistake = next(filter(None, (fault(item, hook) for item in items)), None)
        except (_StrictError, KeyboardInterrupt, Terminated):
            raise
        except BaseException as error:
            self._fail(entry, error, f"its {hook} failed: ")
            return ()
        if mistake:
            self._break(
                entry, f"its {hook} returned {mistake}; tell the author of {entry.distribution}"
            )
            return ()
        return items

    def _unique(
        self, hook: str, found: Iterable[tuple[Entry, Offer[Any]]]
    ) -> tuple[Offer[Any], ...]:
        taken: dict[str, Offer[Any]] = {}
        for entry, offer in found:
            name = offer.value.name
            first = taken.setdefault(name.replace("-", "_"), offer)
            if first is not offer:
                self._problem(
                    entry,
                    f"{label(hook, name)} is refused: {first.origin} offers it already; "
                    f"tell the author of {entry.distribution}, or uninstall one of the two",
                )
        return tuple(taken.values())

    def _added_by(self, entry: Entry) -> Iterator[str]:
        for hook, offers in self._offers.items():
            for offer in offers:
                if offer.origin == entry.origin:
                    yield label(hook, offer.value.name)

    def _fail(self, entry: Entry, error: BaseException, what: str = "") -> None:
        with contextlib.suppress(Exception):  # an exception may fail to tell of itself
            import traceback

            entry.trace = "".join(traceback.format_exception(error))
        remedy = way_out(error, entry.module, entry.distribution)
        self._break(entry, f"{what}{one_line(error)}; {remedy}")

    def _break(self, entry: Entry, problem: str) -> None:
        entry.status = "broken"
        self._problem(entry, problem)

    def _problem(self, entry: Entry, problem: str) -> None:
        if problem in entry.problems:
            return
        entry.problems.append(problem)
        self._tell(entry, problem)

    def _tell(self, entry: Entry, problem: str) -> None:
        line = f"{entry.origin}: {problem}"
        if self._strict:
            raise _StrictError(line)
        self._report(line)

    def _remark(self, entry: Entry, remark: str) -> None:
        if not entry.built_in and remark not in entry.remarks:
            entry.remarks.append(remark)
            self._report(f"{entry.origin}: {remark}")


def _modules(traceback: TracebackType | None) -> list[str]:
    """The modules that a traceback goes through, the innermost first."""
    names = []
    while traceback:
        names.append(str(traceback.tb_frame.f_globals.get("__name__")))
        traceback = traceback.tb_next
    return names[::-1]
