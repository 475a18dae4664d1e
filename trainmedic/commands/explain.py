"""``trainmedic explain``."""

import click

from trainmedic.commands._shared import format_option


@click.command()
@click.argument("name", metavar="CODE|NAME")
@format_option("text", "json")
def explain(name: str, form: str) -> None:
    """Explain a rule or a remedy: what it is, why, its formula and limits."""
    import json

    from trainmedic import catalog

    entry = catalog.find(name)
    click.echo(json.dumps(entry, indent=1) if form == "json" else catalog.page(entry))
