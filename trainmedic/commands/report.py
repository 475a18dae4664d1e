"""``trainmedic report``."""

import click

from trainmedic.commands._shared import format_option, output_option, show
from trainmedic.errors import UnreadableError


@click.command()
@click.argument("path")
@format_option("text", "json")
@output_option
def report(path: str, form: str, output: str | None) -> None:
    """Show what the medic reported at the end of a watched run, from its logdir.

    Nothing is judged anew: this is how the run ended, with the settings that it had. To judge it again, use analyze.
    """
    from trainmedic.analysis import recorded_report
    from trainmedic.readers import find

    watched = [source for source in find(path) if source.reader.name == "trainmedic"]
    if not watched:
        raise UnreadableError(f"{path}: no logdir of a watched run; for other logs use: trainmedic analyze {path}")
    show([recorded_report(source) for source in watched], form, output)
