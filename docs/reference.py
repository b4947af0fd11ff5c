"""Writes the reference parts of the pages on plugins, from the docstrings.

    python docs/reference.py

A part stands between `<!-- KIND NAME -->` and `<!-- end -->`. The tests demand that every part is
up to date and that nothing public lacks one.
"""

import ast
import dataclasses
import importlib
import inspect
import re
from itertools import pairwise
from pathlib import Path

import musubi_cli
from musubi_cli import hookspecs

FOLDER = Path(__file__).parent
PAGES = (FOLDER / "plugins.md", *sorted((FOLDER / "plugins").glob("*.md")))
_PART = re.compile(r"<!-- (\w+) ([\w.]+) -->\n.*?<!-- end -->", re.DOTALL)
_ENTRY = re.compile(r"^(\*{0,2}\w+): (.*(?:\n {4,}.*)*)", re.MULTILINE)


def render(page: str) -> str:
    """A page with its reference parts written anew."""

    def part(found: re.Match[str]) -> str:
        kind, name = found[1], found[2]
        body = KINDS[kind](name)
        return f"<!-- {kind} {name} -->\n{body}\n<!-- end -->"

    return _PART.sub(part, page)


def parts(page: str) -> list[tuple[str, str]]:
    """Kind and name of each reference part of a page."""
    return [(found[1], found[2]) for found in _PART.finditer(page)]


def fields(name: str) -> str:
    """A dataclass: a row a field, from the `Attributes` of its docstring."""
    cls = _public(name)
    text = inspect.getdoc(cls) or ""
    described = _entries(text, "Attributes")
    rows = [
        (f"`{field.name}`", f"`{_annotation(field)}`", described[field.name])
        for field in dataclasses.fields(cls)
    ]
    return f"**`{name}`** {_summary(text)}\n\n" + _table(("field", "type", "what it is"), rows)


def methods(name: str) -> str:
    """The methods of a class."""
    cls = _public(name)
    rows = [
        (f"`{method}{_signature(function)}`", _flat(_prose(inspect.getdoc(function) or "")))
        for method, function in vars(cls).items()
        if inspect.isfunction(function) and not method.startswith("_")
    ]
    return f"Methods of `{name}`:\n\n" + _table(("method", "what it does"), rows)


def function(name: str) -> str:
    """A function: its signature, what it does, its arguments."""
    found = _public(name)
    short = name.rpartition(".")[2]
    text = inspect.getdoc(found) or ""
    lines = [f"**`{short}{_signature(found)}`** {_prose(text)}"]
    rows = [(f"`{argument}`", about) for argument, about in _entries(text, "Args").items()]
    lines += [_table(("argument", "what it is"), rows)] if rows else []
    for section in ("Yields", "Returns"):
        if told := _section(text, section):
            lines.append(f"{section}: {_flat(told)}")
    raised = [f"`{error}`: {when.rstrip('.')}" for error, when in _entries(text, "Raises").items()]
    lines += [f"Raises {'; '.join(raised)}."] if raised else []
    return "\n\n".join(lines)


def hook(name: str) -> str:
    """A hook: its signature, what it gives, its example."""
    spec = getattr(hookspecs, name)
    text = inspect.getdoc(spec) or ""
    item = hookspecs.OFFERED[name].__name__
    example = "\n".join(f"    {line}" for line in text[text.index(">>>") :].splitlines())
    lines = [f"**`{name}{_signature(spec)}`** gives `{item}`s. {_prose(text)}"]
    rows = [(f"`{argument}`", about) for argument, about in _entries(text, "Args").items()]
    lines += [_table(("argument", "what it is"), rows)] if rows else []
    return "\n\n".join([*lines, example])


def names(module: str) -> str:
    """All that a module lists in `__all__`."""
    owner = importlib.import_module(module)
    rows = [(f"`{name}`", _about(owner, name)) for name in owner.__all__ if name != "__version__"]
    return _table(("name", "what it is"), rows)


KINDS = {
    "fields": fields,
    "methods": methods,
    "function": function,
    "hook": hook,
    "names": names,
}


def _public(name: str) -> object:
    """`json_lines` of musubi_cli, or `testing.run` of its module testing."""
    *module, last = name.split(".")
    return getattr(importlib.import_module(".".join(["musubi_cli", *module])), last)


def _about(owner: object, name: str) -> str:
    """The first sentence of what a public name stands for."""
    found = getattr(owner, name)
    if inspect.isclass(found) or inspect.isfunction(found):
        return _summary(inspect.getdoc(found) or "")
    constants = [_constants(module) for module in (musubi_cli.specs, hookspecs)]
    return next(known[name] for known in constants if name in known)


def _constants(module: object) -> dict[str, str]:
    """What the strings below a module's assignments say of them."""
    return _strings(ast.parse(inspect.getsource(module)).body)


def _strings(body: list[ast.stmt]) -> dict[str, str]:
    described = {}
    for statement, after in pairwise(body):
        target = getattr(statement, "target", None) or next(
            iter(getattr(statement, "targets", ())), None
        )
        if (
            isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and target is not None
        ):
            described[ast.unparse(target)] = _flat(str(after.value.value))
    return described


def _annotation(field: dataclasses.Field) -> str:
    """A field's type, and its default if it has one."""
    if field.default_factory is not dataclasses.MISSING:
        return f"{field.type} = {field.default_factory()!r}"
    given = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
    return f"{field.type}{given}"


def _signature(function: object) -> str:
    """The arguments without their types."""
    parameters = [
        p.replace(annotation=inspect.Parameter.empty)
        for p in inspect.signature(function).parameters.values()
        if p.name != "self"
    ]
    return str(inspect.Signature(parameters))


def _section(text: str, title: str) -> str:
    found = re.search(rf"^{title}:\n((?: {{4}}.*\n?|\n)+)", text, re.MULTILINE)
    return inspect.cleandoc(found[1]) if found else ""


def _entries(text: str, title: str) -> dict[str, str]:
    return {name: _flat(about) for name, about in _ENTRY.findall(_section(text, title))}


def _prose(text: str) -> str:
    """A docstring up to its first section or example, a paragraph each."""
    head = re.split(r"^(?:\w+:$|>>>)", text, maxsplit=1, flags=re.MULTILINE)[0]
    return "\n\n".join(_flat(paragraph) for paragraph in head.strip().split("\n\n"))


def _summary(text: str) -> str:
    return _flat(text.split("\n\n")[0])


def _flat(text: str) -> str:
    return " ".join(text.split())


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        f"| {' | '.join(c.replace('|', chr(92) + '|') for c in row)} |" for row in cells
    )


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")
