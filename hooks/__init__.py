"""Measure: a model and its optimizer go in, ``Snapshots`` come out."""
