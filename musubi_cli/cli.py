"""The root command. Its tree is built from hooks, when somebody asks for it."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import signal
import sys
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from musubi_cli import config
from musubi_cli.commands import HOST_COMMANDS
from musubi_cli.console import Console
from musubi_cli.errors import ExitCode, InputError, MusubiError, Terminated, one_line, show_error
from musubi_cli.groups import CommandGroup
from musubi_cli.plugin_manager import PluginManager
from musubi_cli.process import forget_stdout, leave_soon, remember_interrupts
from musubi_cli.records import Offer

SETTINGS: dict[str, Any] = {
    "auto_envvar_prefix": "MUSUBI",
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    "show_default": True,
    "token_normalize_func": lambda token: token.replace("-", "_"),
}


_FIND_OUT = ("plugins", "completion")
"""Commands that a mistake in the configuration must not keep from telling what is wrong."""


class Root(CommandGroup):
    """`musubi` itself: the one place where exceptions become messages and exit codes.

    Args:
        plugins: knows whose bug an unexpected exception is.
        **arguments: as for `CommandGroup`.
    """

    def __init__(self, *args: Any, plugins: PluginManager, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self._plugins = plugins

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run, and exit with an `ExitCode` unless `standalone_mode` is off."""
        if not standalone_mode:
            return super().main(*args, **{**extra, "standalone_mode": False})
        sys.exit(self._run(*args, **extra))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand, noting first what is typed behind it."""
        ctx.meta["musubi.typed"] = {*ctx.args}
        return super().invoke(ctx)

    def _run(self, *args: Any, **extra: Any) -> int:
        console = extra["obj"] = Console()
        remember_interrupts(console)
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
            if sys.stdout:
                sys.stdout.flush()  # a full disk is told now
            return code if isinstance(code, int) else ExitCode.OK
        except (click.Abort, KeyboardInterrupt):
            return _interrupted()
        except BrokenPipeError:
            forget_stdout()
            return ExitCode.FAILED
        except SystemExit:
            raise
        except BaseException as error:
            if console.interrupted:  # a library made something else of the KeyboardInterrupt
                if isinstance(error, MusubiError):
                    error.show()
                return _interrupted()
            if console.verbose:
                import traceback

                traceback.print_exc()
            return _explain(error, self._plugins)


def build_cli(plugins: PluginManager) -> Root:
    """The command tree over `plugins`.

    Args:
        plugins: consulted when the first command is looked up, not before.
    """
    return Root(
        "musubi",
        help="Tools to keep open beside a LoRA trainer. Every job comes from a plugin.",
        plugins=plugins,
        fetch=lambda ctx: _root_commands(ctx, plugins),
        callback=_configure,
        context_settings=SETTINGS,
        params=[
            click.Option(
                ["--config"],
                type=click.Path(dir_okay=False, path_type=Path),
                help="Read this file instead of the nearest musubi.toml.",
            ),
            click.Option(
                ["--no_plugins"], is_flag=True, is_eager=True, help="Leave out third-party plugins."
            ),
            *_listening_options(),
            _version_option(),
        ],
    )


def main() -> None:
    """Entry point of the `musubi` command."""
    completing = "_MUSUBI_COMPLETE" in os.environ
    disabled = os.environ.get("MUSUBI_DISABLE_PLUGINS", "")
    plugins = PluginManager(
        disabled={name.strip() for name in disabled.split(",") if name.strip()},
        strict=not completing and os.environ.get("MUSUBI_STRICT_PLUGINS") == "1",
        report=(lambda _: None) if completing else _report_problem,
    )
    try:
        build_cli(plugins).main(prog_name="musubi")
    except SystemExit as end:
        if end.code == ExitCode.INTERRUPTED or isinstance(end, Terminated):
            leave_soon(int(end.code or 0))
        raise


def _report_problem(line: str) -> None:
    Console().warn(f"{line} (see: musubi plugins)")


def _root_commands(ctx: click.Context, plugins: PluginManager) -> Iterable[click.Command]:
    plugins.load(third_party=not ctx.find_root().params.get("no_plugins"))
    merge = [*_commands(plugins, "musubi_merge_commands")]
    own = [command(plugins) for command in HOST_COMMANDS]
    if merge:
        about = "Make one model out of several."
        own.append(CommandGroup("merge", help=about, fetch=lambda _: merge))
    names = {command.name for command in own}
    yield from map(_with_listening, own)
    yield from _commands(plugins, "musubi_commands", names)


def _commands(
    plugins: PluginManager, hook: str, taken: Container[str | None] = ()
) -> Iterator[click.Command]:
    """The commands of a hook, made ready each for itself."""
    offers: tuple[Offer[click.Command], ...] = plugins.offers(hook)
    for offer in offers:
        name = offer.value.name
        if name in taken:
            plugins.refuse(offer, f"command {name} is refused: musubi has its own")
            continue
        try:
            ready = _with_listening(offer.value)
        except Exception as error:
            plugins.refuse(offer, f"command {name} is refused: {one_line(error)}")
            continue
        yield ready


def _configure(config: Path | None, **_: Any) -> None:
    ctx = click.get_current_context()
    ctx.color = False if os.environ.get("NO_COLOR") else None
    ctx.default_map = _default_map(ctx, config)


def _default_map(ctx: click.Context, named: Path | None) -> dict[str, Any]:
    path = named
    with contextlib.suppress(OSError):  # the working directory may be gone
        path = named or config.find(Path.cwd())
    if path is None or not isinstance(ctx.command, click.Group):
        return {}
    console = ctx.find_object(Console) or Console()
    console.detail(f"configuration: {path}")
    ctx.meta["musubi.config"] = path
    try:
        return config.default_map(
            config.read(path), ctx.command, ctx, path, console.warn, typed=_typed(ctx)
        )
    except InputError as error:
        helping = {"-h", "--help"} & ctx.meta.get("musubi.typed", set())
        finding_out = ctx.invoked_subcommand in _FIND_OUT or helping
        if finding_out and not named:
            console.warn(str(error))
            return {}
        raise


def _typed(ctx: click.Context) -> set[str]:
    """All words behind the root's own options; the commands that run are among them."""
    words = (ctx.invoked_subcommand or "", *ctx.meta.get("musubi.typed", ()))
    return {word.replace("-", "_") for word in words}


def _with_listening(command: click.Command) -> click.Command:
    """A copy that takes --quiet and --verbose, unless it has options of these names."""
    command = copy.copy(command)
    if isinstance(command, CommandGroup) and (fetch := command.fetch):
        command.fetch = lambda ctx: map(_with_listening, fetch(ctx))
        return command
    if isinstance(command, click.Group):
        command.commands = {n: _with_listening(c) for n, c in command.commands.items()}
        if not command.invoke_without_command:
            return command
    taken = {name for param in command.params for name in (param.name, *param.opts)}
    fresh = [o for o in _listening_options() if not taken & {o.name, *o.opts}]
    command.params = [*command.params, *fresh]
    return command


def _listening_options() -> list[click.Option]:
    def listen(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        console = ctx.find_object(Console)
        if value and console and param.name:
            setattr(console, param.name, True)

    def option(*names: str, text: str) -> click.Option:
        return click.Option(
            names, is_flag=True, is_eager=True, expose_value=False, callback=listen, help=text
        )

    return [
        option("-q", "--quiet", text="Say nothing but results, warnings and errors."),
        option("-v", "--verbose", text="Say more; show the traceback of an error."),
    ]


def _version_option() -> click.Option:
    def show(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001  Click's signature
        if value:
            from musubi_cli import __version__

            click.echo(f"musubi {__version__}")
            ctx.exit()

    return click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show the version and exit.",
    )


def _interrupted() -> int:
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # impatience should not spoil the farewell
    show_error("interrupted; nothing half-written is left")
    return ExitCode.INTERRUPTED


def _explain(error: BaseException, plugins: PluginManager) -> int:
    if isinstance(error, MusubiError):
        error.show()
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    if isinstance(error, click.ClickException):
        show_error(" ".join(f"{error.format_message()}{_where_set(error)}".split()))
        ctx = getattr(error, "ctx", None)
        if isinstance(error, click.UsageError) and ctx:
            click.echo(f"Try '{ctx.command_path} --help'.", err=True)
        return error.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:
        show_error(f"standard output cannot be written: {error.strerror}; make room")
        forget_stdout()
        return ExitCode.FAILED
    show_error(one_line(error))
    click.echo(plugins.bug_notice(error), err=True)
    return ExitCode.FAILED


def _where_set(error: click.ClickException) -> str:
    """Where a refused value comes from, when it was not typed."""
    if not isinstance(error, click.BadParameter) or not error.ctx or not error.param:
        return ""
    source = error.ctx.get_parameter_source(str(error.param.name))
    if source is ParameterSource.DEFAULT_MAP:
        return f" It is set in {error.ctx.meta.get('musubi.config', config.FILE_NAME)}."
    if source is ParameterSource.ENVIRONMENT:
        variable = f"{error.ctx.auto_envvar_prefix}_{str(error.param.name).upper()}"
        return f" It is set by {error.param.envvar or variable}."
    return ""


__all__ = ["InputError", "build_cli", "main"]
