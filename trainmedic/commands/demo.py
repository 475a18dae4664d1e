"""``trainmedic demo``."""

import click

CASES = ("vanishing", "exploding", "dead", "overfitting")


@click.command()
@click.argument("case", type=click.Choice(CASES), required=False, metavar="[CASE]")
@click.option("--logdir", type=click.Path(file_okay=False), help="Where to write the records, reports and curves.")
def demo(case: str | None, logdir: str | None) -> None:
    """Train a sick run on real images, untreated and treated, side by side (all cases unless one is named)."""
    from trainmedic import demo as demonstration

    demonstration.main(case, logdir)
