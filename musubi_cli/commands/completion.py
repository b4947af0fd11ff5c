"""`musubi completion SHELL`: the script that makes Tab work."""

from __future__ import annotations

import click

from musubi_cli.plugin_manager import PluginManager

SHELLS = ("bash", "zsh", "fish")

HELP = """Print the completion script for SHELL. It has to be loaded when the shell starts:

\b
    bash   echo 'eval "$(musubi completion bash)"' >> ~/.bashrc
    zsh    echo 'eval "$(musubi completion zsh)"' >> ~/.zshrc
    fish   musubi completion fish > ~/.config/fish/completions/musubi.fish
"""


def completion(plugins: PluginManager) -> click.Command:  # noqa: ARG001  as every host command
    """Build the command."""

    @click.command("completion", help=HELP, short_help="Print the script that makes Tab work.")
    @click.argument("shell", type=click.Choice(SHELLS))
    @click.pass_context
    def command(ctx: click.Context, shell: str) -> None:
        from click.shell_completion import get_completion_class

        complete = get_completion_class(shell)
        if complete is None:
            raise click.BadParameter(f"{shell} is not supported")
        root = ctx.find_root()
        click.echo(complete(root.command, {}, "musubi", "_MUSUBI_COMPLETE").source())

    return command
