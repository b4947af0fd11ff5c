"""`musubi caption BACKEND`: the options that backends share, and the walk to a plan and a run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from musubi_caption.prompt import DEFAULT_PROMPT, is_text, unescape
from musubi_cli import (
    BackendSpec,
    Console,
    ExitCode,
    FormatSpec,
    InputError,
    Offer,
    PluginError,
    PluginManager,
    Section,
    SectionedCommand,
    clean_stdout,
    current_console,
    join,
)

if TYPE_CHECKING:
    from musubi_caption.plan import Output, Plan, Request
    from musubi_caption.run import Tally
    from musubi_caption.sharing import Crew

Formats = list[Offer[FormatSpec]]

HELP = """{help}

Captions are written as they come, in the order of the pictures' names. A further run goes on where
an earlier one stopped.

\b
    musubi caption {name} --image_dir photos --output_file captions.jsonl ...
    musubi caption {name} --image_dir photos --output_format text --dry_run ...
"""


def backend_commands(plugins: PluginManager) -> list[click.Command]:
    """One command for each backend that is installed.

    Args:
        plugins: asked for backends and formats.
    """
    backends = plugins.offers("musubi_caption_backends")
    commands = (_backend_command(plugins, backend) for backend in backends)
    return [command for command in commands if command]


def _backend_command(plugins: PluginManager, backend: Offer[BackendSpec]) -> click.Command | None:
    own = _own_parameters()
    offers: list[Offer[Any]] = [backend, *plugins.offers("musubi_caption_formats")]
    offers.sort(key=lambda offer: not offer.built_in)  # in its own command the backend comes first

    def refuse(offer: Offer[Any], reason: str) -> None:
        if offer is backend:
            plugins.refuse(offer, reason)
        else:  # with another backend it may go together
            plugins.object_to(offer, f"with caption {backend.value.name}, {reason}")

    joined = join(own, offers, refuse)
    formats = [offer for offer, _ in joined if isinstance(offer.value, FormatSpec)]
    _output_format(own).type = click.Choice([offer.value.name for offer in formats])
    sections = {id(offer): Section(_title(offer.value), options) for offer, options in joined}
    if id(backend) not in sections:
        return None
    first = sections.pop(id(backend))

    def callback(**parameters: Any) -> None:
        _run(click.get_current_context(), backend, formats, parameters)

    return SectionedCommand(
        backend.value.name,
        help=HELP.format(help=backend.value.help, name=backend.value.name),
        short_help=backend.value.help,
        params=own,
        sections=[first, *sections.values()],
        callback=callback,
    )


def _own_parameters() -> list[click.Parameter]:
    folder = click.Path(exists=True, file_okay=False, path_type=Path)
    return [
        click.Option(["--image_dir"], required=True, type=folder, help="The folder of pictures."),
        click.Option(
            ["-o", "--output_file"],
            multiple=True,
            type=click.Path(path_type=Path),
            help="Where captions go, for a format that writes a file. Repeatable, in the "
            "order of such formats.",
        ),
        click.Option(
            ["--output_format"],
            multiple=True,
            default=["jsonl"],
            help="How captions are written. Repeatable.",
        ),
        click.Option(
            ["--prompt"],
            default=DEFAULT_PROMPT,
            show_default="prose in four rules",
            help=r"What the model is asked. \n stands for a line break.",
        ),
        click.Option(
            ["--max_new_tokens"],
            type=click.IntRange(1),
            default=1024,
            help="Where a caption is cut off.",
        ),
        click.Option(
            ["--max_size"],
            type=click.IntRange(1),
            default=1280,
            help="Show pictures at an area of at most this squared, in pixels.",
        ),
        click.Option(["--recursive"], is_flag=True, help="Look into folders below, too."),
        click.Option(
            ["--limit"],
            type=click.IntRange(1),
            help="Take the first so many of those to caption.",
        ),
        click.Option(
            ["--existing"],
            type=click.Choice(["skip", "overwrite"]),
            default="skip",
            help="What becomes of pictures that have a caption.",
        ),
        click.Option(["--dry_run"], is_flag=True, help="Print the plan, load and write nothing."),
        click.Option(["--json"], is_flag=True, help="Print the plan, or the outcome, as JSON."),
    ]


def _output_format(own: Iterable[click.Parameter]) -> click.Parameter:
    return next(parameter for parameter in own if parameter.name == "output_format")


def _title(spec: BackendSpec | FormatSpec) -> str:
    return f"{'Format' if isinstance(spec, FormatSpec) else 'Backend'} {spec.name}"


def _run(
    ctx: click.Context, backend: Offer[BackendSpec], formats: Formats, parameters: dict[str, Any]
) -> None:
    import json

    from musubi_caption.plan import make_plan
    from musubi_caption.report import as_data, as_text, sizes
    from musubi_caption.sharing import find_crew

    console = current_console()
    crew = find_crew()
    if crew and crew.rank:
        _assist(_request(backend, formats, parameters, Console(quiet=True)), crew)
        return
    try:
        request = _request(backend, formats, parameters, console)
        with clean_stdout():
            plan = make_plan(request)
    except BaseException:
        if crew:
            crew.announce(())  # so that the others do not wait
        raise
    if crew:
        crew.announce(() if parameters["dry_run"] else plan.todo)
    as_json = parameters["json"]
    if parameters["dry_run"]:
        found = sizes(plan)
        for line in [json.dumps(as_data(plan, found))] if as_json else as_text(plan, found):
            console.out(line)
        return
    tally = _caption(plan, console, crew)
    _tell(plan, tally, console, as_json=as_json)
    if tally.failed or plan.unreadable:
        ctx.exit(ExitCode.PARTIAL)


def _assist(request: Request, crew: Crew) -> None:
    """Caption a share of what another process has planned."""
    from musubi_caption.plan import Plan
    from musubi_caption.run import assist

    todo = crew.hear()
    if crew.share(todo):
        with clean_stdout():
            assist(Plan(request, about={}, pictures=todo, todo=todo, done=0), crew)


def _caption(plan: Plan, console: Console, crew: Crew | None) -> Tally:
    from musubi_caption.plan import bug_in
    from musubi_caption.report import token_rate
    from musubi_caption.run import Tally, run

    tally = Tally()
    if not plan.todo:
        return tally
    for about, line in plan.about.items():
        console.detail(f"{about}: {line}")

    def rate(done: int, seconds: float) -> str:
        tally.seconds = seconds
        return f"{done / seconds:.2f} pictures/s  {token_rate(tally)}" if seconds else ""

    label = f"captioning {len(plan.todo)} pictures"
    try:
        with (
            clean_stdout(),
            console.progress(len(plan.todo), label, rate) as progress,
        ):
            run(plan, tally, progress, crew)
    except BaseException as error:
        goes_on = "" if plan.request.overwrite else "; the same command goes on from there"
        if tally.captioned or isinstance(error, KeyboardInterrupt | SystemExit):
            console.note(f"{tally.captioned} captions of this run are kept{goes_on}")
        raise
    missing = len(plan.todo) - tally.captioned - len(tally.failed)
    if missing:
        raise PluginError(
            f"captioning ended with {missing} pictures to go and no reason given; "
            f"{bug_in(plan.request.origin)}"
        )
    return tally


def _tell(plan: Plan, tally: Tally, console: Console, *, as_json: bool) -> None:
    import json

    from musubi_caption.report import as_data, outcome

    if as_json:
        console.out(json.dumps(as_data(plan, tally=tally)))
        return
    *items, summary = outcome(plan, tally)
    for item in items:
        console.warn(item)
    console.note(summary)


def _request(
    backend: Offer[BackendSpec], formats: Formats, parameters: dict[str, Any], console: Console
) -> Request:
    from musubi_caption.plan import Request

    prompt = unescape(parameters["prompt"])
    if not is_text(prompt):
        raise InputError("--prompt is not valid UTF-8; check the terminal's encoding")
    return Request(
        backend=backend.value,
        origin=backend.origin,
        values=_values(backend.value, parameters),
        image_dir=parameters["image_dir"],
        outputs=_outputs(formats, parameters, console),
        prompt=prompt,
        max_new_tokens=parameters["max_new_tokens"],
        max_size=parameters["max_size"],
        recursive=parameters["recursive"],
        limit=parameters["limit"],
        overwrite=parameters["existing"] == "overwrite",
    )


def _values(spec: BackendSpec | FormatSpec, parameters: dict[str, Any]) -> dict[str, Any]:
    names = (str(option.name) for option in spec.options if option.expose_value)
    return {name: parameters[name] for name in names}


def _outputs(formats: Formats, parameters: dict[str, Any], console: Console) -> tuple[Output, ...]:
    """The outputs asked for; files are given to the formats that need one, in order."""
    from musubi_caption.plan import Output

    asked = dict.fromkeys(parameters["output_format"])
    chosen = [next(offer for offer in formats if offer.value.name == name) for name in asked]
    files = [_real(path) for path in parameters["output_file"]]
    takers = [offer.value.name for offer in chosen if offer.value.target == "file"]
    if len(files) < len(takers):
        name = takers[len(files)]
        other = ", or --output_format text" if len(chosen) == 1 else ""
        needed = f"--output_format {name} needs {'a further ' if files else ''}--output_file FILE"
        raise InputError(f"{needed}{other}")
    if len(files) > len(takers):
        console.warn(f"--output_file {files[len(takers)]} ignored: no format chosen writes it")
    if len({*files[: len(takers)]}) < len(takers):
        raise InputError("two formats cannot write one --output_file; name another")
    targets = iter(files)
    return tuple(
        Output(
            offer.value,
            offer.origin,
            next(targets) if offer.value.target == "file" else parameters["image_dir"],
            _values(offer.value, parameters),
        )
        for offer in chosen
    )


def _real(path: Path) -> Path:
    """The file behind /dev/stdout and the like, which would be another one during the run."""
    return Path(os.path.realpath(path)) if path.as_posix().startswith(("/dev/", "/proc/")) else path
