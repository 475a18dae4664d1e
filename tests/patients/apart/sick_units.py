"""Units that are dead, stuck, all alike or wrongly fed."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.patients.apart.measures import (
    baseball,
    computers,
    letters,
    raw_baseball,
    raw_sunspots,
    sunspots,
    verses,
    volcano,
)
from tests.patients.apart.nets import (
    DenseNet,
    Dilated,
    GatedNet,
    Maxout,
    Pooled,
    Sets,
    group_norm_net,
    highway,
    maxout,
    mobilenet,
)
from tests.patients.optimizers import adam, momentum
from tests.patients.patient import sick
from tests.patients.training import EXPLAINED, Training, accumulating_step, validation

STUCK = ("TM404", "TM405", "TM406", "TM502", "TM201", "TM203")
UNIT_CURES = ("reinitialize", "replace-activation", "insert-batchnorm")


@sick(
    "TM301", "a penalty on what the hidden units give, summed, until they give nothing", family="sets", data="bible",
    also=("TM502",), symptoms=(*STUCK, "TM604", "TM305"), onset=None,
)  # fmt: skip
def silenced_by_a_penalty(sick: bool) -> Training:
    def objective(model: Sets, batch: Any) -> Tensor:
        given: list[Tensor] = []
        layers = (model.each[1], model.all[0], model.all[2])
        hooks = [layer.register_forward_hook(lambda _, __, out: given.append(out)) for layer in layers]
        error = F.cross_entropy(model(batch[0]), batch[1])
        for hook in hooks:
            hook.remove()
        return error + (0.02 if sick else 1e-4) * sum(out.sum(-1).mean() for out in given)

    model = Sets()
    return Training(model, adam(model, 3e-3), verses(), objective=objective, epochs=6)


@sick(
    "TM301", "batch norms drawn with a scale of 0.1 and shifts around -0.6", family="mobilenet", data="letters",
    also=("TM303",), symptoms=(*STUCK, "TM305"), cures=("reinitialize", "replace-activation"),
)  # fmt: skip
def shifted_below_zero(sick: bool) -> Training:
    model = mobilenet()
    for module in model.modules() if sick else ():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.1)
            nn.init.normal_(module.bias, -0.6, 0.3)
    return Training(model, adam(model, 3e-3), letters(), epochs=5)


@sick(
    "TM302", "highways whose gates start at -20", family="highway", data="computers", metric=EXPLAINED,
    also=("TM303",), symptoms=STUCK, cures=("reinitialize",),
)  # fmt: skip
def shut_gates(sick: bool) -> Training:
    model = highway(9, 1, gate=-20.0 if sick else -1.0)
    return Training(model, adam(model, 3e-3), computers(), nn.MSELoss(), epochs=5)


@sick(
    "TM302", "attention at a temperature of a hundredth: one word takes all", family="attention-pooling", data="bible",
    symptoms=(*STUCK, "TM202", "TM601", "TM501"),
)  # fmt: skip
def cold_attention(sick: bool) -> Training:
    model = Pooled(heat=0.01 if sick else 1.0)
    return Training(model, adam(model, 3e-3), verses(), epochs=8)


@sick(
    "TM303", "kernels drawn between 0 and 0.15, none below", family="densenet", data="letters",
    symptoms=(*STUCK, "TM202", "TM401", "TM402", "TM403", "TM601", "TM301", "TM305"), cures=UNIT_CURES,
)  # fmt: skip
def none_below_zero(sick: bool) -> Training:
    model = DenseNet(norm=False)
    for block in model.blocks if sick else ():
        nn.init.uniform_(block[-1].weight, 0.0, 0.15)  # type: ignore[index]
    return Training(model, adam(model, 3e-3), letters(), epochs=6)


@sick(
    "TM303", "the scales of all group norms zero, with no way around them", family="groupnorm-cnn", data="letters",
    also=("TM301",), symptoms=(*STUCK, "TM305"), cures=("reinitialize", "insert-residual"),
)  # fmt: skip
def scales_of_zero(sick: bool) -> Training:
    model = group_norm_net()
    for module in model.modules() if sick else ():
        if isinstance(module, nn.GroupNorm):
            nn.init.zeros_(module.weight)
    return Training(model, adam(model, 3e-3), letters(), epochs=5)


@sick(
    "TM303", "all pieces of a maxout net are copies of one", family="maxout", data="volcano", metric=EXPLAINED,
    symptoms=("TM404", "TM405", "TM502"), cures=("reinitialize",),
)  # fmt: skip
def copied_pieces(sick: bool) -> Training:
    model = maxout(2, 1, pieces=4)
    for module in model if sick else ():
        if isinstance(module, Maxout):
            module.pieces = nn.ModuleList(copy.deepcopy(module.pieces[0]) for _ in range(4))
    return Training(model, adam(model, 5e-3), volcano(), nn.MSELoss(), epochs=8)


SKEWED = ("TM301", "TM302", "TM401", "TM402", "TM403", "TM404", "TM405", "TM406", "TM502", "TM601", "TM202", "TM305")
SCALE_CURES = ("normalize-inputs", "insert-batchnorm")


@sick(
    "TM304", "sunspots as they are counted", family="tcn", data="sunspots", metric=EXPLAINED,
    symptoms=(*SKEWED, "TM602"),
    cures=(*SCALE_CURES, "raise-learning-rate", "find-learning-rate"),
)  # fmt: skip
def sunspots_as_counted(sick: bool) -> Training:
    model = Dilated(3, 16, nn.Tanh, around=False)
    return Training(model, adam(model, 2e-3), raw_sunspots() if sick else sunspots(), nn.MSELoss(), epochs=7)


@sick(
    "TM304", "the year beside a dozen triples", family="glu", data="baseball", metric=EXPLAINED, symptoms=SKEWED,
    cures=SCALE_CURES,
)  # fmt: skip
def the_year_as_it_is(sick: bool) -> Training:
    model = GatedNet(10, 1, depth=3)
    return Training(model, adam(model, 2e-3), raw_baseball() if sick else baseball(), nn.MSELoss(), epochs=6)


@sick(
    "TM304", "prices in millions: 0.0022, give or take 0.0006", family="maxout", data="computers", metric=EXPLAINED,
    symptoms=SKEWED, cures=("lower-learning-rate", "schedule-learning-rate", "find-learning-rate"),
)  # fmt: skip
def prices_in_millions(sick: bool) -> Training:
    model = maxout(9, 1)
    data = computers().targets(lambda y: 2.2e-3 + 5.8e-4 * y) if sick else computers()
    return Training(model, adam(model, 3e-3), data, nn.MSELoss(), epochs=6)


class WrongAxis(Sets):
    """The first axis is averaged over, as if it were the words: it is the batch."""

    def pool(self, seen: Tensor, there: Tensor) -> Tensor:
        return seen.mean(0)[-1].expand(len(seen), -1)


@sick("TM305", "averaged over the batch instead of over the words", family="sets", data="bible",
      symptoms=("TM404", "TM406", "TM502", "TM203", "TM201"))  # fmt: skip
def wrong_axis(sick: bool) -> Training:
    model = WrongAxis() if sick else Sets()
    return Training(model, adam(model, 3e-3), verses(), epochs=6)


@sick("TM305", "a layer norm after the only output", family="glu", data="computers", metric=EXPLAINED,
      symptoms=("TM404", "TM406", "TM502", "TM203", "TM201"))  # fmt: skip
def norm_of_one_number(sick: bool) -> Training:
    model = nn.Sequential(GatedNet(9, 1, depth=3), nn.LayerNorm(1) if sick else nn.Identity())
    return Training(model, adam(model, 3e-3), computers(), nn.MSELoss(), epochs=5)


@sick("TM305", "capitals in the list of words, none in the text: every word is unknown", family="attention-pooling",
      data="bible", also=("TM406",), symptoms=("TM404", "TM502", "TM405", "TM203", "TM201"))  # fmt: skip
def every_word_unknown(sick: bool) -> Training:
    data = verses().inputs(lambda x: x.clamp_max(1)) if sick else verses()
    model = Pooled()
    return Training(model, adam(model, 3e-3), data, epochs=6)


@sick(
    "TM306", "model.train() before the loop only: from the second epoch on it trains as it was validated",
    family="mobilenet", data="letters", onset=0.2,
    symptoms=("TM404", "TM405", "TM403", "TM402", "TM401", "TM202", "TM502", "TM101", "TM601", "TM504"),
)  # fmt: skip
def train_before_the_loop(sick: bool) -> Training:
    def start_epoch(t: Training) -> None:
        if not sick or t.notes["steps"] == 0:
            t.model.train()

    model = mobilenet()
    return Training(model, momentum(model, 0.02), letters(), start_epoch=start_epoch, epochs=5, batch=32)


@sick("TM306", "sixteen batches of two add up, and batch norm sees two", family="glu", data="computers",
      metric=EXPLAINED, symptoms=("TM205", "TM504", "TM501", "TM403", "TM404", "TM502", "TM405"))  # fmt: skip
def two_by_sixteen(sick: bool) -> Training:
    model = nn.Sequential(GatedNet(9, 24, depth=2), nn.BatchNorm1d(24), nn.SiLU(), nn.Linear(24, 1))
    return Training(
        model, adam(model, 5e-3), computers().first(1_600), nn.MSELoss(), step=accumulating_step,
        epochs=2, batch=2 if sick else 32, parts=16 if sick else 1,
    )  # fmt: skip


@sick("TM306", "timed on random images in train mode, before each validation", family="densenet", data="letters",
      symptoms=("TM504", "TM501"))  # fmt: skip
def timed_in_train_mode(sick: bool) -> Training:
    def validate(t: Training) -> dict[str, Any]:
        with torch.no_grad():
            for _ in range(8 if sick else 0):
                t.model(torch.rand(64, 1, 16, 16))
        return validation(t)

    model = DenseNet(4, 3)
    return Training(model, adam(model, 5e-3), letters(), validate=validate, epochs=4)
