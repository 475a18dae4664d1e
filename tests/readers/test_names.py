"""Names: the known ones are understood, the others are left alone."""

import pytest

from trainmedic.readers.names import canonical, layer_of, step_column


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
        ("val_acc1", "validation/accuracy"),
        ("Acc@1/val", "validation/accuracy"),
        ("train_accuracy_top1", "train/accuracy"),
        ("val_sparse_categorical_accuracy", "validation/accuracy"),
        ("error/train", "train/error"),
        ("val_err", "validation/error"),
        ("eval/ppl", "validation/perplexity"),
        ("perplexity/valid", "validation/perplexity"),
        ("valid_ppl", "validation/perplexity"),
        ("avg_train_loss", "train/loss"),
        ("val/avg_loss", "validation/loss"),
        ("lm loss", "train/loss"),
        ("lm loss validation", "validation/loss"),
        ("learning-rate", "optimizer/learning_rate"),
        ("grad-norm", "gradient/norm"),
        ("loss-scale", "optimizer/loss_scale"),
        ("gnorm", "gradient/norm"),
        ("train/lm_loss", "train/loss"),
        ("Train/Samples/train_loss", "train/loss"),
        ("Train/Samples/lr", "optimizer/learning_rate"),
        ("loss_metrics/global_avg_loss", "train/loss"),
        ("loss/train/total", "train/loss"),
        ("metrics/eval/MulticlassAccuracy", "validation/accuracy"),
        ("lr-DecoupledAdamW/group0", "optimizer/learning_rate"),
        ("l2_norm/grad/global", "gradient/norm"),
        ("charts/learning_rate", "optimizer/learning_rate"),
        ("optim/lr", "optimizer/learning_rate"),
        ("train_loss_epoch_mean", "train/loss_epoch_mean"),
    ],
)
def test_known_names(name: str, series: str) -> None:
    assert canonical([name]) == {name: series}


UNKNOWN = """
test_loss accuracy lossless time foo grad_2.0_norm/fc1.weight evaluate G_loss lr_scheduler data data_time loss_cls mse
rewards/margins train val norm ppl test_acc error top5 trainer devices evaluator/loss losses time/fps grad_norm/clipped
learning_rate_warmup scale total l2_norm/moment/a G_GAN train2/loss
"""


@pytest.mark.parametrize("name", ["", *UNKNOWN.split()])
def test_unknown_names_stay_as_they_are(name: str) -> None:
    assert canonical([name]) == {}


def test_accuracy_is_that_of_training_only_beside_one_of_validation() -> None:
    assert canonical(["accuracy", "val_accuracy"])["accuracy"] == "train/accuracy"


def test_of_keras_every_metric_beside_its_validation_is_one_of_training() -> None:
    names = ["loss", "mae", "auc", "time", "epoch", "val_loss", "val_mae", "val_epoch"]
    known = canonical(names)
    assert known["mae"] == "train/mae"
    assert {"auc", "time", "epoch"}.isdisjoint(known)
    assert "mae" not in canonical(["mae", "val_mae"])


def test_evaluation_sets_are_known_by_their_runtime() -> None:
    names = ["eval_hard_set_loss", "eval_hard_set_runtime", "eval/easy_loss", "eval/easy_runtime", "eval_other_loss"]
    known = canonical(names)
    assert known["eval_hard_set_loss"] == "validation/hard_set/loss"
    assert known["eval/easy_loss"] == "validation/easy/loss"
    assert known["eval_other_loss"] == "validation/other_loss"


def test_a_test_set_that_is_measured_all_along_is_a_validation_where_there_is_no_other() -> None:
    counts = {"loss": 10, "test_loss": 10, "test_acc": 1, "val_loss": 10}
    assert canonical(["loss", "test_loss", "test_acc"], counts) == {
        "loss": "train/loss",
        "test_loss": "validation/loss",
    }
    assert canonical(["test_loss", "val_loss"], counts) == {"val_loss": "validation/loss"}
    assert canonical(["test_loss"]) == {}


def test_a_single_value_that_sums_a_run_up_takes_no_series_from_one_that_goes_on() -> None:
    counts = {"loss": 10, "train_loss": 1}
    assert canonical(["loss", "train_loss"], counts) == {"loss": "train/loss"}
    assert canonical(["loss", "train_loss"], {"loss": 1, "train_loss": 1}) == {"train_loss": "train/loss"}


@pytest.mark.parametrize(
    ("step", "data"), [("time", "data_time"), ("iter_time", "data_time"), ("batch_time", "data_time")]
)
def test_times_are_known_where_both_are_told(step: str, data: str) -> None:
    assert canonical([step, data, "loss"]) == {step: "time/step", data: "time/data", "loss": "train/loss"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grad_2.0_norm/fc1.weight", ("gradient_norm", "fc1.weight")),
        ("l2_norm/grad/model.fc1", ("gradient_norm", "model.fc1")),
        ("l2_norm/param/model.fc1", ("weight_norm", "model.fc1")),
        ("l2_norm/grad/global", None),
        ("grad_1.0_norm/fc1.weight", None),
        ("grad_norm", None),
    ],
)
def test_norms_of_single_layers(name: str, expected: tuple[str, str] | None) -> None:
    assert layer_of(name) == expected


def test_each_series_is_given_once_to_the_name_that_says_it_best() -> None:
    assert canonical(["loss", "train_loss"]) == {"train_loss": "train/loss"}
    assert canonical(["train_loss_epoch", "train_loss_step"]) == {"train_loss_step": "train/loss"}
    assert canonical(["val_loss_step", "val_loss_epoch"]) == {"val_loss_epoch": "validation/loss"}
    assert canonical(["train_loss", "train/loss"]) == {"train/loss": "train/loss"}


def test_the_step_comes_before_the_epoch() -> None:
    assert step_column(["Epoch", "loss", " Step"]) == " Step"
    assert step_column(["loss", "epoch"]) == "epoch"
    assert step_column(["loss"]) is None
