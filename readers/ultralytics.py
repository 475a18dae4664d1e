"""Ultralytics' ``results.csv``: losses by part, of training and of validation, one row for each epoch."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from trainmedic.history import History
from trainmedic.readers.csv import CsvReader, header
from trainmedic.readers.reader import Options
from trainmedic.readers.table import Column, Table

PART = re.compile(r"(train|val)/(?:box|cls|dfl|obj|seg|pose|kobj|rle|giou|l1)_(?:loss|om)")


class UltralyticsReader(CsvReader):
    """The loss that is minimised is the sum of its parts, which the log holds with their weights in them.

    Source: the loss classes of YOLOv5 and of the ``ultralytics`` package return the sum to the optimizer and the parts,
    already weighted, to the log.
    """

    name = "ultralytics"
    supports = "Ultralytics results.csv"
    patterns: ClassVar[tuple[str, ...]] = ("results*.csv",)
    rank = 8

    def declines(self, path: Path, head: bytes) -> str | None:
        names = header(head)
        if "train/box_loss" not in names or "val/box_loss" not in names:
            return "its columns are not those of Ultralytics"
        return super().declines(path, head)

    def read(self, path: Path, options: Options) -> list[History]:
        table = self.table(path)
        for role, whole in (("train", "train/loss"), ("val", "val/loss")):
            parts = [name for name in table.columns if (found := PART.fullmatch(name)) and found[1] == role]
            if whole not in table.columns:
                _sum_up(table, parts, whole)
        return table.histories()


def _sum_up(table: Table, parts: Sequence[str], whole: str) -> None:
    """Add the sum of columns, where all of them have the same rows."""
    columns = [table.columns[name] for name in parts]
    if len(columns) < 2 or any(column.rows != columns[0].rows for column in columns):
        return
    table.columns[whole] = Column(columns[0].rows[:])
    table.columns[whole].values.extend(map(sum, zip(*(column.values for column in columns), strict=True)))
    table.notes.append(f"{whole} is the sum of {', '.join(parts)}")
