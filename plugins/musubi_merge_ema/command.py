"""`musubi merge ema`: its options, and the walk from them to a plan and to a file."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from musubi_cli import (
    Console,
    InputError,
    Offer,
    PluginManager,
    ScheduleSpec,
    Section,
    SectionedCommand,
    current_console,
    join,
)
from musubi_merge_ema.schedules import DEFAULT_SCHEDULE

if TYPE_CHECKING:
    from musubi_merge_ema.plan import Plan, Request

Schedules = list[Offer[ScheduleSpec]]

SORTS = ("auto", "mtime", "saved", "step", "name")
SKIPS = ("merges", "duplicates")
ALLOWS = ("merges", "duplicates", "other_run", "quantized", "nonfinite")

HELP = """Make one steadier model out of a training run's checkpoints (post-hoc EMA).

Give two or more safetensors FILES of one run, in any order. The oldest is the start of a running
average into which each later one is mixed; how much of the average survives is decided by a
schedule, and the options given decide which: --beta, --beta2 or --sigma_rel.

\b
    musubi merge ema *.safetensors -o out.safetensors --sigma_rel 0.2
    musubi merge ema *.safetensors -o out.safetensors --sigma_rel 0.2 --dry_run
"""


def ema_command(plugins: PluginManager) -> click.Command:
    """Build the command with the options of every installed schedule.

    Args:
        plugins: asked for the schedules.
    """
    own = _own_parameters()
    schedule = click.Option(
        ["--schedule"], help="Which schedule, where the options below do not tell."
    )
    own.insert(2, schedule)
    joined = join(own, plugins.offers("musubi_ema_schedules"), plugins.refuse)
    schedules: Schedules = [offer for offer, _ in joined]
    schedule.type = click.Choice([offer.value.name for offer in schedules])

    def callback(**parameters: Any) -> None:
        _run(click.get_current_context(), schedules, parameters)

    return SectionedCommand(
        "ema",
        help=HELP,
        short_help="Average a run's checkpoints (post-hoc EMA).",
        params=own,
        sections=[Section(_title(offer), options) for offer, options in joined],
        callback=callback,
    )


def _own_parameters() -> list[click.Parameter]:
    def flag(name: str, text: str) -> click.Option:
        return click.Option([name], is_flag=True, help=text)

    def several(name: str, choices: tuple[str, ...], text: str) -> click.Option:
        return click.Option([name], type=click.Choice(choices), multiple=True, help=text)

    return [
        click.Argument(["files"], nargs=-1, required=True, type=click.Path(), metavar="FILES..."),
        click.Option(
            ["-o", "--output_file"],
            required=True,
            type=click.Path(),
            help="The merged model.",
        ),
        click.Option(
            ["--sort"],
            type=click.Choice(SORTS),
            default="auto",
            help="What tells older from newer. auto: modification time, unless the save instants "
            "in all files disagree with it.",
        ),
        flag("--no_sort", "Keep the order of the command line."),
        several("--skip", SKIPS, "Leave such files out. Repeatable."),
        several("--allow", ALLOWS, "Merge in spite of this finding. Repeatable."),
        flag("--force", "Replace an existing output."),
        flag("--dry_run", "Print the plan, read no tensor, write nothing."),
        click.Option(
            ["--json"],
            is_flag=True,
            help="Print the plan, and what was written, as JSON.",
        ),
    ]


def _title(offer: Offer[ScheduleSpec]) -> str:
    default = ", the default" if offer.value.name == DEFAULT_SCHEDULE else ""
    return f"Schedule {offer.value.name}{default}: {offer.value.help.rstrip('.')}"


def _run(ctx: click.Context, schedules: Schedules, parameters: dict[str, Any]) -> None:
    import json

    # No linear algebra to speak of: without its threads numpy loads faster and forking is clean.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from musubi_merge_ema.plan import make_plan
    from musubi_merge_ema.report import as_data, as_text

    console = current_console()
    request = _request(ctx, schedules, parameters, console)
    dry_run, as_json = parameters["dry_run"], parameters["json"]
    plan = make_plan(request, read_contents=not dry_run)
    if dry_run:
        for line in [json.dumps(as_data(plan), indent=2)] if as_json else as_text(plan):
            console.out(line)
    else:
        for message in plan.warnings:
            console.warn(message)
    if plan.errors:
        if as_json and not dry_run:
            console.out(json.dumps(as_data(plan), indent=2))
        raise InputError(*plan.errors)
    if not dry_run:
        _merge(plan, console, as_json=as_json)


def _merge(plan: Plan, console: Console, *, as_json: bool) -> None:
    import json

    from musubi_merge_ema.report import as_data, as_line, as_text
    from musubi_merge_ema.stream import run

    if console.verbose:
        for line in as_text(plan):
            console.detail(line)
    start = perf_counter()
    with console.progress(plan.input_bytes, f"merging {len(plan.files)} files") as progress:
        written = run(plan, progress)
    seconds = perf_counter() - start
    if as_json:
        console.out(json.dumps(as_data(plan, written, seconds), indent=2))
    else:
        for file, reason in plan.skipped:
            console.note(f"left out {file.shown}: {reason}")
        console.note(as_line(plan, written, seconds))


def _request(
    ctx: click.Context, schedules: Schedules, parameters: dict[str, Any], console: Console
) -> Request:
    from musubi_merge_ema.choice import choose, given_options, option_names, rank
    from musubi_merge_ema.inputs import expand
    from musubi_merge_ema.plan import Request

    sort = _sort(ctx, parameters)
    given = given_options(ctx, schedules)
    name, directness = parameters["schedule"], rank(ctx, "schedule")
    if name and directness >= max(given.values(), default=0):
        schedule = next(offer for offer in schedules if offer.value.name == name)
    else:
        schedule = choose(schedules, given, DEFAULT_SCHEDULE)
    own = option_names(schedule)
    directest = max(given.values(), default=0)  # a less direct value gives way without a word
    ignored = sorted(n for n, rank in given.items() if n not in own and rank == directest)
    if ignored:
        flags = ", ".join(f"--{name}" for name in ignored)
        console.warn(f"{flags} ignored: schedule {schedule.value.name} does not use it")
    return Request(
        paths=expand(parameters["files"]),
        output=_output(parameters["output_file"]),
        schedule=schedule,
        values={name: parameters[name] for name in option_names(schedule)},
        sort=sort,
        allow=parameters["allow"],
        skip=parameters["skip"],
        force=parameters["force"],
    )


def _output(name: str) -> Path:
    if name.endswith(("/", os.sep)):
        raise InputError(f"{name}: is a folder's name; name the file to write in it")
    return Path(name)


def _sort(ctx: click.Context, parameters: dict[str, Any]) -> str:
    from musubi_merge_ema.order import GIVEN

    typed = {
        name
        for name in ("sort", "no_sort")
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if len(typed) == 2:
        raise click.UsageError("--no_sort and --sort exclude each other; give one of them.")
    if parameters["no_sort"] and "sort" not in typed:
        return GIVEN
    return str(parameters["sort"])
