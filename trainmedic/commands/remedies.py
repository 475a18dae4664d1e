"""``trainmedic remedies``."""

import click

from trainmedic.commands._shared import format_option, listing


@click.command()
@format_option("text", "json")
def remedies(form: str) -> None:
    """List the remedies: what can be done about it."""
    from trainmedic import catalog

    listing("remedies", catalog.remedies(), form)
