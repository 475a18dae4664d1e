"""A medic for PyTorch training runs: measures a run, tells what is wrong at the root, and treats it."""

__version__ = "0.1.0"
