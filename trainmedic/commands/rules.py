"""``trainmedic rules``."""

import click

from trainmedic.commands._shared import format_option, listing


@click.command()
@format_option("text", "json")
def rules(form: str) -> None:
    """List the rules: what can be found."""
    from trainmedic import catalog

    listing("rules", catalog.rules(), form)
