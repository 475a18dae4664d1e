"""The commands, one file each: ``trainmedic NAME`` is the click command ``NAME`` in ``NAME.py`` of this folder.

The folder is walked, there is no second list. All files are imported for ``--help``, so a file imports what its command
needs inside its functions only; files that begin with ``_`` hold what commands share.
"""
