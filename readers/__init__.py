"""Read: logs of any tool go in, ``History`` comes out. One format, one file. Imports no torch."""
