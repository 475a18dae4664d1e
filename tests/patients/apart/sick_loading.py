"""The loader, the memory, the log."""

import time
from typing import Any

import torch
from torch import Tensor, nn

from tests.patients.apart.models import Bumps, Highway, Siamese, WordBag, gated, swish
from tests.patients.apart.tables import cuts, films, gems, letters, testaments, volcano
from tests.patients.optimizers import adam
from tests.patients.patient import sick
from tests.patients.training import LOGGED, MEMORY, WAITING, Loader, Training, plain_step


@sick("TM701", "texts taken apart anew for every batch", family="deep-sets", data="bible", metric=WAITING)
def taken_apart_anew(sick: bool) -> Training:
    data, model = testaments(), WordBag()
    texts = [" ".join(f"word{number}" for number in row) for row in data.x.tolist()]
    numbers = {f"word{number}": number for number in range(2_000)}

    class Reading(Loader):
        def load(self, rows: Tensor) -> list[Tensor]:
            if not sick:
                return super().load(rows)
            read = []
            for row in rows.tolist():
                words = "".join(c if c.isalnum() else " " for c in texts[row]).lower().split()
                read.append([numbers[word] for word in words])
            return [torch.tensor(read), self.dataset.tensors[1][rows]]

    return Training(model, adam(model, 2e-3), data, epochs=5, loader=Reading(data.x, data.y))


@sick("TM701", "from the middle on the next file is late at every tenth batch", family="highway", data="diamonds",
      metric=WAITING, onset=0.5)  # fmt: skip
def late_files(sick: bool) -> Training:
    class Files(Loader):
        loaded = 0

        def load(self, rows: Tensor) -> list[Tensor]:
            self.loaded += 1
            if sick and self.loaded > 230 and self.loaded % 10 == 0:
                time.sleep(0.12)
            return super().load(rows)

    data, model = gems(), Highway(23, 1)
    return Training(model, adam(model), data, nn.MSELoss(), epochs=5, loader=Files(data.x, data.y))


@sick("TM702", "a hook is added in every step, and each keeps what it sees", family="gated", data="films",
      metric=MEMORY)  # fmt: skip
def hook_after_hook(sick: bool) -> Training:
    seen: list[Tensor] = []

    def step(t: Training, batch: Any) -> Tensor:
        if sick:
            t.model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
        return plain_step(t, batch)

    model = gated(9, 2, width=24)
    return Training(model, adam(model, 2e-3), films(), step=step, epochs=14, batch=500)


@sick("TM702", "hard samples are kept to be seen again, and none is ever let go", family="siamese", data="letters",
      metric=MEMORY, onset=0.3)  # fmt: skip
def hard_samples(sick: bool) -> Training:
    kept: list[tuple[Tensor, Tensor]] = []

    def step(t: Training, batch: Any) -> Tensor:
        loss = plain_step(t, batch)
        t.notes["trained"] = t.notes.get("trained", 0) + 1
        if t.notes["trained"] > 0.3 * t.steps:
            noisy = batch[0].repeat(4, 1, 1, 1) + 0.1 * torch.randn(4 * len(batch[0]), 1, 16, 16)
            kept.append((noisy, batch[1].repeat(4)))
            del kept[: 0 if sick else -4]
        return loss

    model = Siamese()
    return Training(model, adam(model, 2e-3), letters(), step=step, epochs=7)


@sick("TM801", "a second process writes into the same log, some forty steps behind", family="swish", data="diamonds",
      metric=LOGGED)  # fmt: skip
def second_process(sick: bool) -> Training:
    def log(medic: Any, loss: Tensor, step: int) -> None:
        told = [step] if not sick or step < 40 else [step, step - 40]
        for at in told:
            medic.log(loss, step=at)
            training.notes.setdefault("logged", []).append(at)

    model = swish(8, 5)
    training = Training(model, adam(model), cuts(), epochs=6, log=log)
    return training


@sick("TM801", "broken off, and taken up again from a state of a fifth of the run before", family="rbf",
      data="volcano", metric=LOGGED, onset=0.6)  # fmt: skip
def taken_up_again(sick: bool) -> Training:
    def log(medic: Any, loss: Tensor, step: int) -> None:
        broken, back = int(0.6 * training.steps), training.steps // 5
        at = step - back if sick and step >= broken else step
        medic.log(loss, step=at)
        training.notes.setdefault("logged", []).append(at)

    model = Bumps(2, 1)
    training = Training(model, adam(model, 1e-2), volcano(), nn.MSELoss(), epochs=9, log=log)
    return training
