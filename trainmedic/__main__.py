"""``python -m trainmedic`` is the command line."""

from trainmedic.cli import main

main()
