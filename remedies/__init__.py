"""Treat: a ``Finding`` and the run go in, ``Changes`` come out. One act, one file. Importing it imports no torch."""
