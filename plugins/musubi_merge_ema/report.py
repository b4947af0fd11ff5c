"""A plan as text for people and as plain data for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from musubi_cli import bar, show_path, show_size, table
from musubi_merge_ema.checks import AVERAGED_DTYPES, is_alpha
from musubi_merge_ema.order import show_instant
from musubi_merge_ema.plan import Plan, Written

BAR_WIDTH = 20


def as_text(plan: Plan) -> Iterator[str]:
    """The plan, line by line."""
    yield f"schedule   {shown_schedule(plan)}"
    yield f"order      {plan.order.reason}"
    yield ""
    yield from table(_rows(plan), right=(0, 1, 3, 4))
    yield ""
    yield (
        f"effective  {plan.effective_count:.1f} checkpoints "
        f"(as many equally weighted ones would average as much)"
    )
    averaged, kept = _tensor_counts(plan)
    yield f"tensors    {averaged} averaged in float32, {kept} taken from the oldest file"
    for file, reason in plan.skipped:
        yield f"left out   {file.shown}: {reason}"
    exists = ", replacing what is there" if plan.force and plan.output.exists() else ""
    yield f"output     {show_path(plan.output)}, {show_size(plan.output_bytes)}{exists}"
    for message in plan.warnings:
        yield f"warning    {message}"


def as_data(plan: Plan, written: Written | None = None, seconds: float = 0.0) -> dict[str, Any]:
    """The plan for `json.dumps`; with `written` also what came of it."""
    averaged, kept = _tensor_counts(plan)
    rates = (None, *plan.rates)
    data: dict[str, Any] = {
        "output": str(plan.output),
        "output_bytes": plan.output_bytes,
        "schedule": plan.request.schedule.value.name,
        "options": {k: v for k, v in plan.request.values.items() if v is not None},
        "order": {"by": plan.order.key, "reason": plan.order.reason},
        "files": [
            {
                "path": str(file.path),
                "decay_rate": rate,
                "weight": weight,
                "step": file.checkpoint.step,
                "saved": file.checkpoint.saved,
                "mtime": file.checkpoint.mtime_ns / 1e9,
            }
            for file, rate, weight in zip(plan.files, rates, plan.weights, strict=True)
        ],
        "effective_checkpoints": plan.effective_count,
        "tensors": {"averaged": averaged, "kept": kept},
        "skipped": [{"path": str(file.path), "reason": reason} for file, reason in plan.skipped],
        "findings": [
            {"code": f.code, "severity": f.severity, "message": f.message} for f in plan.findings
        ],
        "written": None,
    }
    if written:
        data["written"] = {
            "sshs_model_hash": written.model_hash,
            "sshs_legacy_hash": written.legacy_hash,
            "bytes": plan.output_bytes,
            "seconds": round(seconds, 3),
        }
    return data


def as_line(plan: Plan, written: Written, seconds: float) -> str:
    """What was done, in one line."""
    left_out = f", {len(plan.skipped)} left out" if plan.skipped else ""
    rate = f" ({show_size(plan.input_bytes / seconds)}/s read)" if seconds > 0.1 else ""
    return (
        f"{show_path(plan.output)}: {len(plan.files)} files merged{left_out}, "
        f"{shown_schedule(plan)}, {show_size(plan.output_bytes)} in {seconds:.1f} s{rate}, "
        f"sshs_model_hash {written.model_hash[:12]}"
    )


def shown_schedule(plan: Plan) -> str:
    """Name and option values, such as `power, sigma_rel 0.2`."""
    values = plan.request.values.items()
    parts = [f"{name} {value}" for name, value in values if value is not None]
    return ", ".join([plan.request.schedule.value.name, *parts])


def _rows(plan: Plan) -> Iterator[tuple[str, ...]]:
    by_saved = plan.order.key == "saved"
    yield ("#", "weight", "", "decay", "step", "saved" if by_saved else "modified", "file")
    rates = (None, *plan.rates)
    heaviest = max(plan.weights)
    for number, (file, rate, weight) in enumerate(
        zip(plan.files, rates, plan.weights, strict=True), 1
    ):
        checkpoint = file.checkpoint
        instant = checkpoint.saved if by_saved else checkpoint.mtime_ns / 1e9
        yield (
            str(number),
            f"{100 * weight:.2f} %",
            bar(weight, BAR_WIDTH, of=heaviest),
            "" if rate is None else f"{rate:.4f}",
            "" if checkpoint.step is None else str(checkpoint.step),
            show_instant(instant or 0.0),
            file.shown,
        )


def _tensor_counts(plan: Plan) -> tuple[int, int]:
    tensors = plan.files[0].header.tensors
    averaged = sum(t.dtype in AVERAGED_DTYPES and not is_alpha(t.name) for t in tensors.values())
    return averaged, len(tensors) - averaged
