"""Text: what tools print, line by line as they print it, read under the right names and at the right steps."""

# ruff: noqa: E501 - lines as tools print them

import math
from pathlib import Path

import numpy as np
import pytest

from trainmedic.errors import UnreadableError
from trainmedic.readers import find, read
from trainmedic.readers.textlog import parse

Expected = dict[str, list[tuple[int, float]]]

NANOGPT = """\
number of parameters: 10.65M
num decayed parameter tensors: 26, with 10,740,096 parameters
step 0: train loss 4.2874, val loss 4.2823
iter 0: loss 4.2660, time 3110.21ms, mfu -100.00%
iter 10: loss 3.2405, time 141.61ms, mfu 3.10%
iter 20: loss nan, time 140.02ms, mfu 3.11%
step 20: train loss 2.5, val loss 2.25
saving checkpoint to out
"""
WORD_LANGUAGE_MODEL = """\
| epoch   1 |   200/ 1000 batches | lr 20.00 | ms/batch  5.51 | loss  7.62 | ppl  2043.38
| epoch   1 |   400/ 1000 batches | lr 20.00 | ms/batch  5.50 | loss  6.86 | ppl   950.52
-----------------------------------------------------------------------------------------
| end of epoch   1 | time: 40.21s | valid loss  5.92 | valid ppl   373.04
-----------------------------------------------------------------------------------------
| epoch   2 |   200/ 1000 batches | lr 20.00 | ms/batch  5.51 | loss  5.62 | ppl   275.88
| end of epoch   2 | time: 40.21s | valid loss  5.50 | valid ppl   244.69
"""
MNIST = """\
Train Epoch: 1 [0/60000 (0%)]\tLoss: 2.300000
Train Epoch: 1 [640/60000 (1%)]\tLoss: 1.500000

Test set: Average loss: 0.0500, Accuracy: 9846/10000 (98%)

Train Epoch: 2 [0/60000 (0%)]\tLoss: 0.250000
Train Epoch: 2 [640/60000 (1%)]\tLoss: 0.125000

Test set: Average loss: 0.0400, Accuracy: 9880/10000 (99%)
"""
IMAGENET = """\
=> creating model 'resnet18'
Epoch: [0][  1/100]\tTime  0.5 ( 1.2)\tData  0.1 ( 0.2)\tLoss 6.9e+00 (7.0e+00)\tAcc@1   0.00 (  0.10)\tAcc@5   0.50 (  0.60)
Epoch: [0][ 11/100]\tTime  0.5 ( 0.6)\tData  0.1 ( 0.1)\tLoss 6.5e+00 (6.8e+00)\tAcc@1   1.00 (  0.50)\tAcc@5   2.50 (  1.60)
Test: [ 1/50]\tTime  0.5 ( 1.2)\tLoss 6.0e+00 (6.1e+00)\tAcc@1   2.00 (  2.10)\tAcc@5   5.50 (  5.60)
Test: [50/50]\tTime  0.5 ( 1.2)\tLoss 5.0e+00 (5.5e+00)\tAcc@1   3.00 (  3.10)\tAcc@5   6.50 (  6.60)
 *   Acc@1 3.100 Acc@5 6.600
Epoch: [1][  1/100]\tTime  0.5 ( 1.2)\tData  0.1 ( 0.2)\tLoss 5.9e+00 (5.9e+00)\tAcc@1   3.00 (  3.10)\tAcc@5   0.50 (  0.60)
Test: [50/50]\tTime  0.5 ( 1.2)\tLoss 4.0e+00 (4.5e+00)\tAcc@1   4.00 (  4.10)\tAcc@5   6.50 (  6.60)
"""
TIMM = """\
Train: 0 [   0/1251 (  0%)]  Loss: 6.95 (6.95)  Time: 1.2s, 100.5/s  (1.3s, 98.2/s)  LR: 1.000e-06  Data: 0.5 (0.5)
Train: 0 [  50/1251 (  4%)]  Loss: 6.90 (6.92)  Time: 1.2s, 100.5/s  (1.3s, 98.2/s)  LR: 1.000e-06  Data: 0.5 (0.5)
Test: [   0/48]  Time: 0.5 (0.5)  Loss:  6.9 (6.9)  Acc@1:  0.1 ( 0.1)  Acc@5:  0.5 ( 0.5)
Test: [  48/48]  Time: 0.5 (0.5)  Loss:  6.8 (6.7)  Acc@1:  0.2 ( 0.3)  Acc@5:  0.6 ( 0.7)
Train: 1 [   0/1251 (  0%)]  Loss: 6.50 (6.50)  Time: 1.2s, 100.5/s  (1.3s, 98.2/s)  LR: 2.000e-06  Data: 0.5 (0.5)
Test: [  48/48]  Time: 0.5 (0.5)  Loss:  6.1 (6.2)  Acc@1:  0.2 ( 0.9)  Acc@5:  0.6 ( 0.7)
"""
FAIRSEQ = """\
2024-05-01 10:00:00 | INFO | train_inner | epoch 001:    100 / 1000 loss=12.5, ppl=5792.6, wps=99, num_updates=100, \
lr=1.5e-05, gnorm=2.5, loss_scale=128, wall=60
2024-05-01 10:01:00 | INFO | train_inner | epoch 001:    200 / 1000 loss=11.5, ppl=2896.3, wps=99, num_updates=200, \
lr=3e-05, gnorm=1.5, loss_scale=128, wall=120
2024-05-01 10:02:00 | INFO | valid | epoch 001 | valid on 'valid' subset | loss 10.25 | nll_loss 9.5 | ppl 724.1 | \
num_updates 200 | best_loss 10.25
"""
FAIRSEQ_JSON = """\
2024-05-01 10:00:00 | INFO | train_inner | {"epoch": 1, "update": 0.1, "loss": "12.5", "num_updates": "100", "lr": "1.5e-05", "gnorm": "2.5"}
2024-05-01 10:01:00 | INFO | train_inner | {"epoch": 1, "update": 0.2, "loss": "11.5", "num_updates": "200", "lr": "3e-05", "gnorm": "1.5"}
2024-05-01 10:02:00 | INFO | valid | {"epoch": 1, "valid_loss": "10.25", "valid_num_updates": "200"}
"""
TORCHTITAN = (
    "\x1b[36m[titan] 2024-10-01 10:00:00,123 - root - INFO - \x1b[31mstep:  1  \x1b[32mloss:  8.0000  \x1b[38;2;180;60;0m"
    "grad_norm:  1.5000  \x1b[33mmemory:  5.20GiB(6.58%)  \x1b[34mtps: 1,234  \x1b[36mtflops: 10.20  mfu: 1.05%\x1b[39m\n"
    "\x1b[31mstep: 10  \x1b[32mloss:  7.5000  \x1b[38;2;180;60;0mgrad_norm:  2.5000  memory:  5.20GiB(6.58%)  tps: 2,345\n"
)
MMENGINE = """\
2024/05/01 10:00:00 - mmengine - INFO - Epoch(train)  [1][ 50/500]  lr: 1.0e-03  eta: 0:10:00  time: 0.5  loss: 2.25  \
loss_cls: 1.5
2024/05/01 10:00:00 - mmengine - INFO - Epoch(train)  [1][100/500]  lr: 1.0e-03  eta: 0:09:00  time: 0.5  loss: 2.00  \
loss_cls: 1.25
2024/05/01 10:00:00 - mmengine - INFO - Epoch(val)  [1][20/20]    coco/bbox_mAP: 0.125  data_time: 0.01
2024/05/01 10:00:00 - mmengine - INFO - Epoch(train)  [2][ 50/500]  lr: 1.0e-03  eta: 0:08:00  time: 0.5  loss: 1.75  \
loss_cls: 1.0
"""
DETECTRON = """\
[05/01 10:00:00 d2.utils.events]:  eta: 2:28:00  iter: 19  total_loss: 2.75  loss_cls: 1.5    time: 0.30  lr: 0.0002  \
max_mem: 2000M
[05/01 10:00:20 d2.utils.events]:  eta: 2:27:00  iter: 39  total_loss: 2.50  loss_cls: 1.25   time: 0.30  lr: 0.0004  \
max_mem: 2000M
"""
KERAS = (
    "Epoch 1/2\n"
    "  1/100 [..............................] - ETA: 1:12 - loss: 2.5000 - accuracy: 0.1000\r"
    " 50/100 [==============>...............] - ETA: 0:05 - loss: 2.2500 - accuracy: 0.2000\r"
    "100/100 [==============================] - 2s 1ms/step - loss: 2.0000 - accuracy: 0.2500\r"
    "100/100 [==============================] - 2s 20ms/step - loss: 2.0000 - accuracy: 0.2500 - val_loss: 1.7500 - "
    "val_accuracy: 0.5000\n"
    "Epoch 2/2\n"
    "\x1b[1m100/100\x1b[0m \x1b[32m━━━━━━━━━━━━━━━━━━━━\x1b[0m\x1b[37m\x1b[0m \x1b[1m3s\x1b[0m 1ms/step - accuracy: 0.5000 - "
    "loss: 1.5000 - val_accuracy: 0.6250 - val_loss: 1.2500\n"
)
TQDM = (
    "Epoch 0:  10%|█         | 10/100 [00:01<00:09,  9.5it/s, loss=2.500, v_num=0]\r"
    "Epoch 0:  10%|█         | 10/100 [00:01<00:09,  9.6it/s, loss=2.250, v_num=0]\r"
    "Epoch 0: 100%|██████████| 100/100 [00:10<00:00,  9.5it/s, loss=2.000, v_num=0]\n"
    "Epoch 1:  10%|█         | 10/100 [00:01<00:09,  9.5it/s, loss=1.500, v_num=0]\n"
)
HF_PRINT = (
    "{'loss': 2.5, 'grad_norm': 1.5, 'learning_rate': 5e-05, 'epoch': 0.5}\n"
    "{'loss': '2.25', 'grad_norm': 'nan', 'learning_rate': '4e-05', 'epoch': '1.0'}\n"
    "{'eval_loss': 2.0, 'eval_runtime': 1.5, 'epoch': 1.0}\n"
)
HANDMADE = "Epoch [1/3], Train Loss: 0.5000, Val Loss: 0.6000, Acc: 91.2%\nEpoch [2/3], Train Loss: 0.4000, Val Loss: 0.5500, Acc: 92%\n"
STEPS_OF_EPOCHS = """\
Epoch [1/2], Step [100/600], Loss: 0.5000
Epoch [1/2], Step [600/600], Loss: 0.4000
Epoch [2/2], Step [100/600], Loss: 0.3000
"""
CIFAR = "[1,  2000] loss: 2.250\n[1,  4000] loss: 2.000\n[2,  2000] loss: 1.750\nFinished Training\n"
LLM_C = "s:0 tel:11.0259\ns:1 trl:11.0157 lr:0.000003 norm:14.50\ns:2 trl:10.9943 lr:0.000006 norm:nan\ns:2 tel:10.75\n"
MEGATRON = """\
[default7]: iteration       10/     100 | consumed samples:  2560 | learning rate: 1.5E-05 | lm loss: 9.5E+00 | \
grad norm: 2.5 | number of skipped iterations:   0 | number of nan iterations:   0 |
[default7]: iteration       20/     100 | consumed samples:  5120 | learning rate: 3.0E-05 | loss scale: 65536.0 | \
grad norm: nan | number of skipped iterations:   1 | number of nan iterations:   1 |
 validation loss at iteration 20 | lm loss value: 8.5E+00 | lm loss PPL: 4.9E+03 |
"""
RANKS = "[rank0]: step 1 loss 2.5\n[rank1]: step 1 loss 2.25\n[rank0]: step 2 loss 2.0\n[rank0]: step 3 loss 1.5\n"
PLAIN = "starting\nloss: 0.5\nthe weather is fine\nloss: 0.25\n"


@pytest.mark.parametrize(
    ("text", "time", "expected"),
    [
        (
            NANOGPT,
            "step",
            {
                "train/loss": [(0, 4.2874), (20, 2.5)],
                "validation/loss": [(0, 4.2823), (20, 2.25)],
                "loss": [(0, 4.266), (10, 3.2405), (20, math.nan)],
                "mfu": [(0, -100), (10, 3.1), (20, 3.11)],
            },
        ),
        (
            WORD_LANGUAGE_MODEL,
            "batch",
            {
                "train/loss": [(200, 7.62), (400, 6.86), (1200, 5.62)],
                "validation/loss": [(400, 5.92), (1200, 5.5)],
                "optimizer/learning_rate": [(200, 20), (400, 20), (1200, 20)],
            },
        ),
        (
            MNIST,
            "batch",
            {
                "train/loss": [(0, 2.3), (640, 1.5), (60000, 0.25), (60640, 0.125)],
                "validation/loss": [(640, 0.05), (60640, 0.04)],
            },
        ),
        (
            IMAGENET,
            "batch",
            {
                "train/loss": [(1, 6.9), (11, 6.5), (101, 5.9)],
                "validation/loss": [(11, 5.5), (101, 4.5)],
                "validation/accuracy": [(11, 3.1), (101, 4.1)],
            },
        ),
        (
            TIMM,
            "batch",
            {
                "train/loss": [(0, 6.95), (50, 6.9), (1251, 6.5)],
                "validation/loss": [(50, 6.7), (1251, 6.2)],
                "optimizer/learning_rate": [(0, 1e-6), (50, 1e-6), (1251, 2e-6)],
            },
        ),
        (
            FAIRSEQ,
            "step",
            {
                "train/loss": [(100, 12.5), (200, 11.5)],
                "validation/loss": [(200, 10.25)],
                "gradient/norm": [(100, 2.5), (200, 1.5)],
                "optimizer/loss_scale": [(100, 128), (200, 128)],
            },
        ),
        (
            FAIRSEQ_JSON,
            "step",
            {
                "train/loss": [(100, 12.5), (200, 11.5)],
                "validation/loss": [(200, 10.25)],
                "gradient/norm": [(100, 2.5), (200, 1.5)],
            },
        ),
        (
            TORCHTITAN,
            "step",
            {"train/loss": [(1, 8), (10, 7.5)], "gradient/norm": [(1, 1.5), (10, 2.5)], "tps": [(1, 1234), (10, 2345)]},
        ),
        (
            MMENGINE,
            "batch",
            {
                "train/loss": [(50, 2.25), (100, 2.0), (550, 1.75)],
                "optimizer/learning_rate": [(50, 1e-3), (100, 1e-3), (550, 1e-3)],
                "loss_cls": [(50, 1.5), (100, 1.25), (550, 1.0)],
                "validation/coco/bbox_map": [(100, 0.125)],
            },
        ),
        (
            DETECTRON,
            "step",
            {"train/loss": [(19, 2.75), (39, 2.5)], "optimizer/learning_rate": [(19, 2e-4), (39, 4e-4)]},
        ),
        (
            KERAS,
            "epoch",
            {
                "train/loss": [(1, 2.0), (2, 1.5)],
                "train/accuracy": [(1, 0.25), (2, 0.5)],
                "validation/loss": [(1, 1.75), (2, 1.25)],
                "validation/accuracy": [(1, 0.5), (2, 0.625)],
            },
        ),
        (TQDM, "batch", {"train/loss": [(10, 2.25), (100, 2.0), (110, 1.5)]}),
        (
            HF_PRINT,
            "row",
            {
                "train/loss": [(0, 2.5), (1, 2.25)],
                "gradient/norm": [(0, 1.5), (1, math.nan)],
                "validation/loss": [(2, 2.0)],
                "epoch": [(0, 0.5), (1, 1), (2, 1)],
            },
        ),
        (
            HANDMADE,
            "epoch",
            {"train/loss": [(1, 0.5), (2, 0.4)], "validation/loss": [(1, 0.6), (2, 0.55)], "Acc": [(1, 91.2), (2, 92)]},
        ),
        (STEPS_OF_EPOCHS, "batch", {"train/loss": [(100, 0.5), (600, 0.4), (700, 0.3)]}),
        (CIFAR, "row", {"train/loss": [(0, 2.25), (1, 2.0), (2, 1.75)], "epoch": [(0, 1), (1, 1), (2, 2)]}),
        (
            LLM_C,
            "step",
            {
                "train/loss": [(1, 11.0157), (2, 10.9943)],
                "validation/loss": [(0, 11.0259), (2, 10.75)],
                "gradient/norm": [(1, 14.5), (2, math.nan)],
                "optimizer/learning_rate": [(1, 3e-6), (2, 6e-6)],
            },
        ),
        (
            MEGATRON,
            "step",
            {
                "train/loss": [(10, 9.5)],
                "gradient/norm": [(10, 2.5), (20, math.nan)],
                "validation/loss": [(20, 8.5)],
                "validation/perplexity": [(20, 4900)],
                "number of nan iterations": [(10, 0), (20, 1)],
            },
        ),
        (RANKS, "step", {"train/loss": [(1, 2.5), (2, 2.0), (3, 1.5)]}),
        (PLAIN, "row", {"train/loss": [(0, 0.5), (1, 0.25)]}),
        (STEPS_OF_EPOCHS.replace("\n", "\r\n"), "batch", {"train/loss": [(100, 0.5), (600, 0.4), (700, 0.3)]}),
    ],
    ids=lambda value: value[:24].strip() if isinstance(value, str) and len(value) > 8 else "",
)
def test_formats(tmp_path: Path, text: str, time: str, expected: Expected) -> None:
    path = tmp_path / "train.log"
    path.write_bytes(text.encode())
    (history,) = read(path)
    assert history.facts["time"] == time
    for name, points in expected.items():
        assert name in history, history.names()
        steps, values = history.series(name)
        assert steps.tolist() == [step for step, _ in points], name
        np.testing.assert_allclose(values, [value for _, value in points], rtol=1e-15, err_msg=name)
    (source,) = find(tmp_path)
    assert source.reader.name == "text"


def test_lines_point_at_the_file(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text(NANOGPT)
    (history,) = read(path)
    assert [history.line_of(step) for step in (0, 10, 15, 20)] == [3, 5, 5, 6]
    path.write_bytes(TQDM.encode())
    (history,) = read(path)
    assert [history.line_of(step) for step in (10, 100, 110)] == [1, 1, 2]


def test_runs_glued_together_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text(
        "".join(f"step:{i}/30 val_loss:{run + 1 / (i + 1):.4f}\n" for run in range(3) for i in range(0, 31, 10))
    )
    histories = read(path)
    assert [history.series("validation/loss").steps.tolist() for history in histories] == [[0, 10, 20, 30]] * 3
    assert [history.facts["notes"] for history in histories] == [[f"run {i} of 3 in this file"] for i in (1, 2, 3)]
    assert [history.line_of(0) for history in histories] == [1, 5, 9]
    assert histories[0].facts["total_steps"] == 30


def test_code_and_prose_before_the_run_are_no_series(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    code = "lr = 0.1\nfor step in range(10):\n    loss = 0.5\nloss = 0.25\nlr = 0.2\nRunning on 8 cards\n"
    path.write_text(code + "step 1 loss 2.0\nstep 2 loss 1.0\n")
    (history,) = read(path)
    assert history.names() == ["train/loss"]
    assert history.series("train/loss").values.tolist() == [2.0, 1.0]


def test_a_log_that_begins_with_much_else_is_known_by_its_end(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text("nothing to see here\n" * 10_000 + "step 1 loss 2.0\nstep 2 loss 1.0\n")
    assert read(path)[0].names() == ["train/loss"]


def test_text_in_utf_16_as_windows_shells_write_it(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_bytes("step 1 loss 2.0\nstep 2 loss 1.0\n".encode("utf-16"))
    assert read(path)[0].series("train/loss").values.tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    "text", ["hello\nworld\n", "numpy==2.1\nscipy==1.5\n", "a 1\nb 2\n", "step 1\nstep 2\n", "10:00:00 done\n" * 5]
)
def test_other_text_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(UnreadableError, match="text: no two lines in it tell of a metric by step or epoch"):
        read(path)


@pytest.mark.parametrize(
    "text",
    ["a" * 60_000, "a " * 30_000, "a=" * 30_000, "1,234" * 12_000, "loss: " * 10_000, "(" * 60_000, "1/" * 30_000, "nan " * 15_000,
     "epoch" * 12_000, "step [" * 10_000, "\x1b[" * 30_000, "9" * 60_000, "a.1 " * 15_000, "[1/" * 20_000, " " * 60_000],
)  # fmt: skip
def test_a_line_that_a_pattern_could_choke_on_tells_nothing(text: str) -> None:
    row = parse(text)  # one that takes the square of its length would be at it for minutes
    assert row is None or row.at is None
