"""Names: the known ones are understood, the others are left alone."""

import pytest

from trainmedic.readers.names import canonical, step_column


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("train_loss", "train/loss"),
        ("Training Loss", "train/loss"),
        ("trainLoss", "train/loss"),
        ("train/loss", "train/loss"),
        ("Loss/train", "train/loss"),
        ("loss", "train/loss"),
        ("train_loss_epoch", "train/loss"),
        ("total_loss", "train/loss"),
        ("val_loss", "validation/loss"),
        ("valLoss", "validation/loss"),
        ("valid_loss", "validation/loss"),
        ("eval/loss", "validation/loss"),
        ("Validation Loss", "validation/loss"),
        ("dev_acc", "validation/accuracy"),
        ("train_acc", "train/accuracy"),
        ("val/set-a/loss", "validation/set-a/loss"),
        ("val_f1", "validation/f1"),
        ("lr", "optimizer/learning_rate"),
        ("learning_rate", "optimizer/learning_rate"),
        ("lr-Adam", "optimizer/learning_rate"),
        ("lr/pg0", "optimizer/learning_rate"),
        ("lr/pg2", "optimizer/learning_rate/2"),
        ("train/grad_norm", "gradient/norm"),
        ("grad_norm", "gradient/norm"),
        ("grad_2.0_norm_total", "gradient/norm"),
        ("loss_scale", "optimizer/loss_scale"),
    ],
)
def test_known_names(name: str, series: str) -> None:
    assert canonical([name]) == {name: series}


@pytest.mark.parametrize(
    "name", ["test_loss", "accuracy", "lossless", "time", "foo", "grad_2.0_norm/fc1.weight", "evaluate", "G_loss", ""]
)
def test_unknown_names_stay_as_they_are(name: str) -> None:
    assert canonical([name]) == {}


def test_accuracy_is_that_of_training_only_beside_one_of_validation() -> None:
    assert canonical(["accuracy", "val_accuracy"])["accuracy"] == "train/accuracy"


def test_each_series_is_given_once_to_the_name_that_says_it_best() -> None:
    assert canonical(["loss", "train_loss"]) == {"train_loss": "train/loss"}
    assert canonical(["train_loss_epoch", "train_loss_step"]) == {"train_loss_step": "train/loss"}
    assert canonical(["val_loss_step", "val_loss_epoch"]) == {"val_loss_epoch": "validation/loss"}
    assert canonical(["train_loss", "train/loss"]) == {"train/loss": "train/loss"}


def test_the_step_comes_before_the_epoch() -> None:
    assert step_column(["Epoch", "loss", " Step"]) == " Step"
    assert step_column(["loss", "epoch"]) == "epoch"
    assert step_column(["loss"]) is None
