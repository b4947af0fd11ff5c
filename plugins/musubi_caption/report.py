"""A plan and what came of it, as text for people and as plain data for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from musubi_caption.picture import UnreadablePictureError, measure
from musubi_caption.plan import Plan
from musubi_caption.run import Tally
from musubi_cli import show_path, table

_SHOWN = 20

Sizes = list[tuple[Path, tuple[int, int] | str]]
"""Pictures with the size at which the model sees them, or the reason why they have none."""


def sizes(plan: Plan) -> Sizes:
    """Read the headers of what is to do."""
    found: Sizes = []
    for path in plan.todo:
        try:
            found.append((path, plan.fit(*measure(path))))
        except UnreadablePictureError as error:
            found.append((path, str(error)))
    return found


def as_text(plan: Plan, found: Sizes) -> Iterator[str]:
    """The plan, line by line."""
    grid = plan.request.backend.grid
    for about, line in plan.about.items():
        yield f"{about:<9}  {line}"
    yield f"{'prompt':<9}  {json.dumps(plan.request.prompt, ensure_ascii=False)}"
    yield f"{'pictures':<9}  {_shown_counts(plan)}"
    for output in plan.request.outputs:
        yield f"{'output':<9}  {output.format.name}, {show_path(output.target)}"
    for folder, reason in plan.unreadable:
        yield f"{'warning':<9}  {show_path(folder)}: {reason}"
    tokens = [w * h // grid**2 for _, (w, h) in _readable(found)]
    if tokens and grid > 1:
        yield (
            f"{'tokens':<9}  {sum(tokens):,} visual; "
            f"{min(tokens)} to {max(tokens)}, on average {mean(tokens):.0f} a picture"
        )
    if found:
        yield ""
        yield from table(_rows(found, grid), right=(0, 1) if grid > 1 else (0,))
    if len(found) > _SHOWN:
        yield f"... and {len(found) - _SHOWN} more (--json has all)"


def as_data(plan: Plan, found: Sizes | None = None, tally: Tally | None = None) -> dict[str, Any]:
    """Plan and outcome for `json.dumps`."""
    grid = plan.request.backend.grid
    data: dict[str, Any] = {
        "backend": plan.request.backend.name,
        "about": dict(plan.about),
        "prompt": plan.request.prompt,
        "image_dir": str(plan.request.image_dir),
        "outputs": [
            {"format": output.format.name, "target": str(output.target)}
            for output in plan.request.outputs
        ],
        "pictures": len(plan.pictures),
        "already_done": plan.done,
        "to_do": len(plan.todo),
    }
    if found is not None:
        data["files"] = [
            {"path": str(path), "error": size}
            if isinstance(size, str)
            else {
                "path": str(path),
                "width": size[0],
                "height": size[1],
                "visual_tokens": size[0] * size[1] // grid**2 if grid > 1 else None,
            }
            for path, size in found
        ]
    if tally is not None:
        data |= {
            "captioned": tally.captioned,
            "cut": [str(path) for path in tally.cut],
            "failed": [{"path": str(p), "error": e} for p, e in failures(plan, tally)],
            "tokens": tally.tokens,
            "load_seconds": tally.load_seconds,
            "seconds": tally.seconds,
            "waited_seconds": tally.waited,
            "processes": tally.processes or {0: len(plan.todo)},
        }
    return data


def failures(plan: Plan, tally: Tally) -> list[tuple[Path, str]]:
    """Pictures without a caption, and folders that could not be looked into."""
    return [*plan.unreadable, *tally.failed]


def outcome(plan: Plan, tally: Tally) -> Iterator[str]:
    """What came of a run, line by line."""
    for path in tally.cut:
        yield f"cut off at {plan.request.max_new_tokens} tokens: {show_path(path)}"
    if tally.cut:
        yield "for longer captions raise --max_new_tokens, and add --existing overwrite"
    for path, reason in failures(plan, tally):
        yield f"failed: {show_path(path)}: {reason}"
    rates = ", ".join(filter(None, [_rate(tally.captioned, tally), token_rate(tally)]))
    parts = [
        f"{tally.captioned} captioned",
        f"{plan.done} already done" if plan.done else "",
        f"{len(tally.cut)} cut off" if tally.cut else "",
        f"{len(tally.failed)} failed" if tally.failed else "",
    ]
    seconds = f" in {tally.seconds:.1f} s ({rates})" if tally.seconds and rates else ""
    targets = ", ".join(show_path(output.target) for output in plan.request.outputs)
    yield f"{targets}: {', '.join(filter(None, parts))}{seconds}"


def token_rate(tally: Tally) -> str:
    """Tokens a second, if the backend counts them."""
    return f"{tally.tokens / tally.seconds:.0f} tokens/s" if tally.tokens and tally.seconds else ""


def _rate(count: int, tally: Tally) -> str:
    return f"{count / tally.seconds:.2f} pictures/s" if count and tally.seconds else ""


def _shown_counts(plan: Plan) -> str:
    total, todo = len(plan.pictures), len(plan.todo)
    line = f"{total} in {show_path(plan.request.image_dir)}"
    if plan.done:
        line += f", {plan.done} already done and kept"
    return f"{line}, {todo} to caption"


def _rows(found: Sizes, grid: int) -> Iterator[tuple[str, ...]]:
    yield ("tokens", "size", "picture") if grid > 1 else ("size", "picture")
    for path, size in found[:_SHOWN]:
        if isinstance(size, str):
            cells = ("-", "-") if grid > 1 else ("-",)
            yield (*cells, f"{show_path(path)}: {size}")
        else:
            width, height = size
            shown = (f"{width} x {height}", show_path(path))
            yield (str(width * height // grid**2), *shown) if grid > 1 else shown


def _readable(found: Sizes) -> Iterator[tuple[Path, tuple[int, int]]]:
    for path, size in found:
        if not isinstance(size, str):
            yield path, size
