"""Finds the plugins that are installed, whatever state other packages are in."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import Distribution, EntryPoint, distributions

from musubi_cli.errors import one_line
from musubi_cli.records import Entry, name_of

_FILE = "entry_points.txt"


def installed(group: str) -> Iterator[Entry]:
    """A record of each entry point in a group, or of the distribution in which they are damaged.

    `importlib.metadata.entry_points` gives none at all when a single package, perhaps one that has
    nothing to do with us, has a damaged file.
    """
    seen = set()
    for distribution in distributions():
        points = _points(distribution, group)
        if not points:
            continue
        name = name_of(distribution)[0].lower().replace("_", "-")
        if name not in seen:  # one that comes first on the path hides others of its name
            seen.add(name)
            yield from points


def _points(distribution: Distribution, group: str) -> list[Entry]:
    if f"[{group}]" not in _text(distribution):
        return []
    name, version = name_of(distribution)
    try:
        found = [point for point in distribution.entry_points if point.group == group]
    except Exception as error:
        broken = Entry(EntryPoint(name, "", group), name, version, status="broken")
        broken.problems.append(f"its {_FILE} cannot be read: {one_line(error)}; reinstall {name}")
        return [broken]
    return [Entry(point, name, version) for point in found]


def _text(distribution: Distribution) -> str:
    try:
        return distribution.read_text(_FILE) or ""
    except UnicodeDecodeError as error:
        return error.object.decode(errors="replace")
    except Exception:  # nothing can be said of it, not even that it is a plugin
        return ""
