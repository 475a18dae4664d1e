"""``trainmedic formats``."""

import json

import click

from trainmedic.commands._shared import FINE, FOUND, format_option


@click.command()
@click.argument("path", required=False)
@format_option("text", "json")
def formats(path: str | None, form: str) -> int:
    """List the formats of logs that are read, or say of one file which reader knows it, and why others do not.

    Exit code: 1 where no reader knows the file.
    """
    from trainmedic.readers import opinions
    from trainmedic.readers.reader import readers
    from trainmedic.reports.wording import printable

    if path is None:
        told = {reader.name: reader.supports for reader in readers()}
    else:
        told = {name: reason or "" for name, reason in opinions(path)}
    known = path is None or "" in told.values()
    if form == "json":
        key = "supports" if path is None else "declines"
        click.echo(
            json.dumps({"formats": [{"name": name, key: text or None} for name, text in told.items()]}, indent=1)
        )
        return FINE if known else FOUND
    width = max(map(len, told))
    first = next((name for name, text in told.items() if not text), None)
    for name, text in told.items():
        note = text or ("it reads this file" if name == first else "it could read this file too")
        click.echo(f"{name:<{width}}  {printable(note)}")
    return FINE if known else FOUND
