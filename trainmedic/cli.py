"""The command line. What a command needs is imported when it runs: ``--help`` and the catalogue answer at once."""

import importlib
import os
import pkgutil
import sys
from typing import Any, NoReturn

import click

import trainmedic.commands
from trainmedic import __version__
from trainmedic.commands._shared import FINE, NOT_JUDGED, complain
from trainmedic.errors import TrainmedicError

INTERRUPTED, PIPE_CLOSED = 130, 141  # 128 + the number of the signal, as shells have it
DEBUG = "TRAINMEDIC_DEBUG"


class Main(click.Group):
    """The group of all commands: every error is one clear line on stderr, and the exit code says what it means."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        found = pkgutil.iter_modules(trainmedic.commands.__path__)
        return sorted(module.name for module in found if not module.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = getattr(importlib.import_module(f"trainmedic.commands.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character gets an escape, not a crash
                stream.reconfigure(errors="backslashreplace")
        sys.exit(self._guarded(*args, **kwargs))

    def _guarded(self, *args: Any, **kwargs: Any) -> int:
        try:
            code = super().main(*args, **{**kwargs, "prog_name": "trainmedic", "standalone_mode": False})
            return code if isinstance(code, int) else FINE
        except click.UsageError as error:
            hint = f" (see: {error.ctx.command_path} --help)" if error.ctx else ""
            complain(f"{error.format_message()}{hint}")
        except click.ClickException as error:
            complain(error.format_message())
        except (click.Abort, KeyboardInterrupt):
            click.echo("trainmedic: interrupted", err=True)
            return INTERRUPTED
        except TrainmedicError as error:
            _reraise_in_debug()
            complain(str(error))
        except Exception as error:
            _reraise_in_debug()
            reason = " ".join(str(error).split())
            complain(
                f"unexpected {type(error).__name__}: {reason}; this is a mistake in trainmedic, please report it with "
                "what the same command prints after trainmedic --debug"
            )
        return NOT_JUDGED

    def invoke(self, ctx: click.Context) -> Any:
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:  # as in `trainmedic rules | head`: whoever listened has heard enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or closing stdout complains once more
            ctx.exit(PIPE_CLOSED)
        return code


def _reraise_in_debug() -> None:
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        raise


def _debug(_context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        os.environ[DEBUG] = "1"


@click.group(
    cls=Main,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="trainmedic")
@click.option("--debug", is_flag=True, expose_value=False, is_eager=True, callback=_debug, help="Show tracebacks.")
@click.pass_context
def main(context: click.Context) -> int:
    """A medic for PyTorch training runs: tells what is wrong and why, and treats it.

    Exit code: 0 nothing was found, 1 something was, 2 it could not judge or was called wrongly.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
    return NOT_JUDGED
