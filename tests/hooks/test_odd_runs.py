"""What users do and nobody expects: each of these once broke a run, or was recorded wrongly."""

import contextlib
import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainmedic
from trainmedic.errors import UsageError
from trainmedic.history import History


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))


def batch(n: int = 16) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 12), torch.randint(0, 4, (n,))


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        x, y = batch()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def watched(model, optimizer, **options) -> trainmedic.Medic:
    settings = {"every": 1, "dead_after": 16, **options.pop("settings", {})}
    return trainmedic.watch(model, optimizer, settings=settings, on_finding=lambda finding: None, **options)


def norm(parameters: Iterator[nn.Parameter]) -> float:
    return float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def last(history: History, statistic: str) -> dict[str, float]:
    return dict(history.layers(statistic).latest())


# -- parameters come and go ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 10])
def test_layers_are_frozen_and_thawed_in_the_middle(every: int) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, settings={"every": every}) as medic:
        loop(model, optimizer, 25)
        model[0].requires_grad_(False)
        loop(model, optimizer, 25)
        assert not medic._probe.architecture["0.weight"].trainable
        model[0].requires_grad_(True)
        loop(model, optimizer, 25)
    assert len(medic.report().history.series("gradient/norm").steps) == 75
    assert medic._probe.architecture["0.weight"].trainable


def test_a_group_is_added_later() -> None:
    model = mlp()
    model[2].requires_grad_(False)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with watched(model, optimizer) as medic:
        loop(model, optimizer, 3)
        model[2].requires_grad_(True)
        optimizer.add_param_group({"params": model[2].parameters()})
        loop(model, optimizer, 3)
        assert medic._probe.observed["not_in_optimizer"] == []
    history = medic.report().history
    assert last(history, "update_ratio")["2.weight"] > 0
    assert history.architecture["2.weight"].trainable


def test_a_layer_is_replaced() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as medic:
        loop(model, optimizer, 3)
        model[2] = nn.Linear(32, 4)
        optimizer.param_groups[0]["params"] = list(model.parameters())
        loop(model, optimizer, 3)
    assert medic.report().history.series("gradient/norm").values[-1] == pytest.approx(norm(model.parameters()))


def test_a_trunk_that_two_models_share_counts_once() -> None:
    trunk = nn.Linear(12, 8)
    first, second = nn.Sequential(trunk, nn.Linear(8, 4)), nn.Sequential(trunk, nn.Linear(8, 1))
    own = list({id(p): p for m in (first, second) for p in m.parameters()}.values())
    optimizer = torch.optim.SGD(own, lr=0.1)
    with watched([first, second], optimizer) as medic:
        x, y = batch()
        (F.cross_entropy(first(x), y) + second(x).square().mean()).backward()
        expected = norm(own)
        optimizer.step()
    assert medic.report().history.series("gradient/norm").values[0] == pytest.approx(expected)


def test_a_submodule_may_be_called_module() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.fc = nn.Sequential(), nn.Linear(8, 4)
            self.module.add_module("fc", nn.Linear(12, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.module(x))

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as medic:
        loop(model, optimizer, 1)
    history = medic.report().history
    assert set(history.layers("gradient_norm").layers) == {"module.fc.weight", "module.fc.bias", "fc.weight", "fc.bias"}


def test_lazy_layers_are_one_clear_error() -> None:
    model = nn.Sequential(nn.LazyLinear(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="run it once on a batch"):
        trainmedic.watch(model, optimizer)


# -- optimizers and scalers ------------------------------------------------------------------------------------------


def test_an_optimizer_that_calls_its_parent_takes_one_step() -> None:
    class Mine(torch.optim.Adam):
        def step(self, closure=None):
            return super().step(closure)

    model = mlp()
    torch.optim.Adam(nn.Linear(2, 2).parameters())  # from now on torch hooks both methods
    optimizer = Mine(model.parameters())
    with watched(model, optimizer) as medic:
        loop(model, optimizer, 10)
    assert medic.report().history.series("gradient/norm").steps.tolist() == list(range(10))


def test_a_step_that_raises_does_not_confuse_the_count() -> None:
    class Fails(torch.optim.SGD):
        fails = True

        def step(self, closure=None):
            if self.fails:
                raise RuntimeError("once")
            return super().step(closure)

    model = mlp()
    optimizer = Fails(model.parameters(), lr=0.1)
    with watched(model, optimizer) as medic:
        with pytest.raises(RuntimeError, match="once"):
            loop(model, optimizer, 1)
        Fails.fails = False
        loop(model, optimizer, 5)
    assert medic.report().history.series("gradient/norm").steps.tolist() == list(range(5))


def test_a_rate_that_is_none() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as medic:
        optimizer.param_groups.append({**optimizer.param_groups[0], "params": [], "lr": None})
        loop(model, optimizer, 3)
    assert len(medic.report().history.series("gradient/norm").steps) == 3


def test_a_scaler_with_a_fused_optimizer() -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watched(model, optimizer, scaler=scaler) as medic:
        for i in range(4):
            x, y = batch()
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y) * (torch.inf if i == 1 else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
    history = medic.report().history
    assert history.series("optimizer/skipped").values.tolist() == [0, 1, 0, 0]
    assert history.series("gradient/clipped").values.tolist() == pytest.approx([1.0] * 3)


def test_scalers_are_left_as_they_were() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    medic = watched(model, optimizer, scaler=scaler)
    assert "step" not in {k for k, v in vars(copy.deepcopy(scaler)).items() if hasattr(v, "_watch")}
    assert pickle.loads(pickle.dumps(scaler)).get_scale() == scaler.get_scale()
    other = watched(model, torch.optim.SGD(model.parameters(), lr=0.1), scaler=scaler)
    medic.close()
    assert "step" in vars(scaler), "the second one still looks"
    other.close()
    loop(model, optimizer, 1)
    mine = lambda *args: None  # noqa: E731
    scaler.step = mine
    watched(model, optimizer, scaler=scaler).close()
    assert scaler.step is mine


def test_each_optimizer_counts_the_gradients_that_it_stepped_with() -> None:
    """A GAN that clears both gradients at the top: the critic's own are those of its own pass."""
    for order in ("critic first", "generator first"):
        torch.manual_seed(0)
        generator, critic = nn.Linear(3, 12), nn.Linear(12, 1)
        optimizers = {m: torch.optim.SGD(m.parameters(), lr=0.01) for m in (generator, critic)}
        models = [critic, generator] if order == "critic first" else [generator, critic]
        expected: dict[str, list[float]] = {"critic": [], "generator": []}
        with watched(models, [optimizers[m] for m in models]) as medic:
            for _ in range(5):
                for optimizer in optimizers.values():
                    optimizer.zero_grad()
                fake = generator(torch.randn(8, 3))
                (critic(fake.detach()).mean() - critic(torch.randn(8, 12)).mean()).backward()
                expected["critic"].append(float(critic.weight.grad.norm()))
                optimizers[critic].step()
                (-critic(fake).mean()).backward()
                expected["generator"].append(float(generator.weight.grad.norm()))
                optimizers[generator].step()
        table = medic.report().history.layers("gradient_norm")
        for name, model in (("critic", critic), ("generator", generator)):
            seen = table.column(f"{models.index(model)}.weight").values.tolist()
            wanted = expected[name][: len(seen)]
            assert seen == pytest.approx(wanted, rel=1e-4), (order, name)
            assert len(seen) >= 4


def test_closures_and_second_looks_are_no_micro_batches() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as medic:
        for _ in range(3):
            x, y = batch()
            for _ in range(2):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert medic.report().history.facts["accumulation"] == 1
    assert "gradient/noise" not in medic.history


def test_a_compiled_optimizer_step_is_counted_and_compiled_once() -> None:
    from torch._dynamo.testing import CompileCounter

    counts = []
    for watch in (False, True):
        torch._dynamo.reset()
        model, counter = mlp(), CompileCounter()
        optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01))
        medic = watched(model, optimizer) if watch else None
        step = torch.compile(lambda o=optimizer: o.step(), backend=counter)
        for _ in range(12):
            x, y = batch()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            step()
        counts.append(counter.frame_count)
    torch._dynamo.reset()
    medic.close()
    assert counts[0] == counts[1]
    assert medic.report().history.series("gradient/norm").steps.tolist() == list(range(11)), "its last end is not seen"


def test_compiled_autograd_does_not_break() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        watched(model, optimizer, settings={"every": 3}) as medic,
        torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")),
    ):
        loop(model, optimizer, 12)
    assert len(medic.report().history.series("gradient/norm").steps) == 12
    torch._dynamo.reset()


# -- closing, forking, copying ---------------------------------------------------------------------------------------


def test_closing_from_within_a_step() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e4)
    box: list[trainmedic.Medic] = []
    medic = trainmedic.watch(model, optimizer, on_finding=lambda finding: box[0].close(), settings={"every": 1})
    box.append(medic)
    optimizer.register_step_post_hook(lambda *_: None)
    for _ in range(60):
        x, y = batch()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(100 * x), y)
        loss.backward()
        optimizer.step()
        medic.log(loss)
    assert medic._closed
    assert not medic._probe._handles


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_leaves_the_files_alone(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    medic = watched(model, optimizer, logdir=tmp_path)
    loop(model, optimizer, 5)
    medic._writing._background.finish()  # what this process itself is still to write is no doing of its copy
    before = sorted(path.name for path in tmp_path.iterdir())
    child = os.fork()
    if child == 0:
        medic.close()
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    medic.close()
    assert (tmp_path / "history.npz").exists()


def test_a_closed_medic_keeps_no_parameter_alive_by_its_probe() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    medic = watched(model, optimizer)
    loop(model, optimizer, 3)
    medic.close()
    probe = medic._probe
    assert not probe._backward._parameters
    assert not probe._fixed
    assert probe._noise._last is None
    assert not probe._gradients.named


@pytest.mark.filterwarnings("error")
def test_a_watched_model_is_sent_to_another_process_without_a_warning() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer):
        loop(model, optimizer, 1)
        ForkingPickler.dumps(model)


# -- odd values ------------------------------------------------------------------------------------------------------


def test_a_logged_tensor_may_be_changed_afterwards() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    running = torch.zeros(())
    with watched(model, optimizer) as medic:
        for i in range(5):
            loop(model, optimizer, 1)
            running += i
            medic.log(running)
            running.zero_()
    assert medic.report().history.series("train/loss").values.tolist() == [0, 1, 2, 3, 4]


def test_no_step_is_lost_where_the_interval_changes() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trainmedic.watch(model, optimizer, on_finding=lambda finding: None) as medic:
        medic._schedule.spent = 1e3
        loop(model, optimizer, 900)
    steps = set(medic.report().history.layers("weight_norm").steps.tolist())
    assert len(medic._schedule.changes) > 2
    assert {at for at, _ in medic._schedule.changes} <= steps


def test_gradients_that_are_all_zero_were_not_clipped_by_nan() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as medic:
        (0 * model(torch.randn(3, 12))).sum().backward()
        optimizer.step()
    assert "gradient/clipped" not in medic.report().history


@dataclass(slots=True)
class Slots:
    logits: Tensor


def test_outputs_with_slots_and_empty_batches() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Slots:
            return Slots(self.fc(x))

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    criterion = nn.CrossEntropyLoss(reduction="sum")
    with watched(model, optimizer, settings={"activation_sample": 64}) as medic:
        for n in (64, 0, 64, 64, 64, 64, 64):
            x, y = batch(n)
            optimizer.zero_grad()
            criterion(model(x).logits, y).backward()
            optimizer.step()
    assert not [note for note in medic.report().notes if "failed" in note]
    assert len(medic.history.series("output/accuracy").steps) == 6


def test_tensors_that_cannot_be_looked_at() -> None:
    model = mlp()
    model.register_parameter("elsewhere", nn.Parameter(torch.zeros(3, device="meta"), requires_grad=False))
    model.add_module("same", nn.Identity())
    optimizer = torch.optim.SGD([*model[0].parameters(), *model[2].parameters()], lr=0.1)
    with torch.inference_mode():
        fixed = torch.randn(4, 4)
    with watched(model, optimizer) as medic:
        model.same(fixed)
        x, y = batch()
        F.cross_entropy(model[2](model[1](model[0](x))), y).backward()
        optimizer.step()
    assert not [note for note in medic.report().notes if "failed" in note]


def test_an_adversarial_pass_in_evaluation_mode_does_not_make_evaluation_training() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as medic:
        loop(model, optimizer, 2)
        model.eval()
        x, y = batch()
        F.cross_entropy(model(x.requires_grad_()), y).backward()
        model.train()
        loop(model, optimizer, 2)
        model.eval()
        model(1e6 * torch.randn(4, 12))
        model.train()
        loop(model, optimizer, 1)
    assert medic.report().history.layers("activation_max").values.max() < 1e4


# -- units, classes --------------------------------------------------------------------------------------------------


def test_one_rectifier_at_two_places_has_the_units_of_each() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head, self.relu = nn.Linear(12, 6), nn.Linear(12, 10), nn.Linear(16, 4), nn.ReLU()
            nn.init.constant_(self.a.bias, -100)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([self.relu(self.a(x)), self.relu(self.b(x))], 1))

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(model, optimizer, settings={"dead_after": 100}) as medic:
        loop(model, optimizer, 10)
    assert last(medic.report().history, "dead_units_lasting")["relu"] == 1.0
    assert last(medic.history, "dead_samples")["relu"] == 160


def test_flat_parts_of_other_activations() -> None:
    shares = {}
    for name, head in {
        "softmax": nn.Softmax(dim=1),
        "wide": nn.Hardtanh(-5, 5),
        "narrow": nn.Hardtanh(-0.1, 0.1),
    }.items():
        model = nn.Sequential(nn.Conv2d(3, 8, 1), head)
        nn.init.constant_(model[0].bias, 3.0)
        with torch.no_grad():
            model[0].bias[2] = 500.0 if name == "softmax" else 3.0
            model[0].weight.mul_(0.1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with watched(model, optimizer) as medic:
            model(torch.randn(4, 3, 5, 5)).sum().backward()
            optimizer.step()
        shares[name] = last(medic.report().history, "saturated_outputs")["1"]
    assert shares == {"softmax": 1.0, "wide": 0.0, "narrow": 1.0}


def test_labels_beside_an_autoencoder_are_not_its_targets() -> None:
    torch.manual_seed(0)
    model = nn.Linear(12, 12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as medic:
        for x, _ in medic.batches([batch() for _ in range(6)]):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), x)
            loss.backward()
            optimizer.step()
            medic.log(loss)
    history = medic.report().history
    assert len(history.series("output/std").steps) == 6
    assert len(history.series("output/accuracy").steps) if "output/accuracy" in history else True
    late = history.series("output/accuracy").steps.tolist() if "output/accuracy" in history else []
    assert all(step == 0 for step in late), "only before the loss was known"


def test_of_two_criteria_in_a_step_the_first_counts() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    main, extra = nn.CrossEntropyLoss(), nn.MSELoss()
    with watched(model, optimizer) as medic:
        x, y = batch()
        output = model(x)
        (main(output, y) + extra(1e3 * output, torch.zeros_like(output))).backward()
        optimizer.step()
    history = medic.report().history
    assert history.facts["loss"] == "CrossEntropyLoss"
    assert history.series("output/max").values[0] < 1e2


def test_a_criterion_inside_the_model_is_seen() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.criterion = nn.Linear(12, 4), nn.CrossEntropyLoss()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.criterion(self.fc(x), y)

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as medic:
        model(*batch()).backward()
        optimizer.step()
    assert medic.report().history.facts["loss"] == "CrossEntropyLoss"
    assert "output/accuracy" in medic.history


def test_the_order_of_layers_under_reentrant_checkpointing() -> None:
    from torch.utils.checkpoint import checkpoint

    model = nn.Sequential(*(nn.Linear(12, 12) for _ in range(4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as medic:
        for _ in range(3):
            x = torch.randn(6, 12, requires_grad=True)
            for layer in model[:3]:
                x = checkpoint(layer, x, use_reentrant=True).tanh()
            optimizer.zero_grad()
            model[3](x).square().mean().backward()
            optimizer.step()
    history = medic.report().history
    assert [history.architecture[str(i)].order for i in range(4)] == [0, 1, 2, 3]
    assert history.facts["accumulation"] == 1


def test_an_optimizer_has_one_medic_at_a_time_and_a_model_may_have_several() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    body, head = (torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2))
    first = trainmedic.watch(model, body, settings={"every": 1})
    with pytest.raises(UsageError, match=r"SGD\) is watched already: call close\(\) on that medic first"):
        trainmedic.watch(model, [head, body])
    second = trainmedic.watch(model, head, settings={"every": 1})
    for _ in range(5):
        for optimizer in (body, head):
            model.zero_grad()
            model(torch.randn(6, 4)).square().mean().backward()
            optimizer.step()
    for medic in (first, second):
        medic.close()
        history = medic.report().history
        assert history.series("gradient/norm").steps.tolist() == list(range(5))
    assert set(first.report().history.layers("update_ratio").layers) == {"0.weight", "0.bias"}
    with trainmedic.watch(model, body):
        pass


def test_gradients_that_are_used_and_cleared_on_the_way_are_said_not_to_be_measured() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    inner = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def take(parameter: Tensor) -> None:
        inner[parameter].step()
        inner[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(take)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trainmedic.watch(model, optimizer, settings={"every": 1}) as medic:
        for _ in range(3):
            model(torch.randn(6, 4)).square().mean().backward()
            optimizer.step()
    assert "gradient/norm" not in medic.report().history
    assert "not measured: gradients: a backward pass leaves none" in " ".join(medic.report().notes)


def test_interrupts_and_errors_of_the_user_go_their_way() -> None:
    """Whatever breaks out of a step, and wherever, the next one is measured, and nothing is disturbed."""

    def run(watch: bool) -> tuple[list[Tensor], int]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        calls = Counter[str]()

        def breaks(where: str, every: int, error: type[BaseException]) -> Callable[..., None]:
            def hook(*_: object) -> None:
                calls[where] += 1
                if calls[where] % every == 0:
                    raise error

            return hook

        model[1].register_forward_hook(breaks("forward", 7, KeyboardInterrupt))
        model[0].weight.register_hook(breaks("backward", 5, KeyboardInterrupt))
        optimizer.register_step_pre_hook(breaks("before the step", 4, ValueError))
        optimizer.register_step_post_hook(breaks("after the step", 3, ValueError))
        medic = trainmedic.watch(model, optimizer, settings={"every": 2}) if watch else None
        for _ in range(60):
            with contextlib.suppress(KeyboardInterrupt, ValueError):
                optimizer.zero_grad()
                model(torch.randn(6, 4)).square().mean().backward()
                optimizer.step()
        if medic:
            medic.close()
            assert not [note for note in medic.report().notes if "stopped" in note]
        return [p.detach().clone() for p in model.parameters()], medic.report().cost["steps"] if medic else 0

    (bare, _), (watched, steps) = run(watch=False), run(watch=True)
    assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))
    assert 0 < steps < 60


def test_two_runs_in_two_threads() -> None:
    def run(seed: int, watch: bool) -> tuple[nn.Module, trainmedic.Medic | None]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, trainmedic.watch(model, optimizer, settings={"every": 1}) if watch else None

    def train(model: nn.Module, medic: trainmedic.Medic | None) -> None:
        optimizer = medic._probe.optimizers[0] if medic else torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(30):
            optimizer.zero_grad()
            loss = model(torch.ones(6, 4)).square().mean()
            loss.backward()
            optimizer.step()
            if medic:
                medic.log(loss)

    watched = [run(seed, watch=True) for seed in (0, 1)]
    threads = [threading.Thread(target=train, args=pair) for pair in watched]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, (model, medic) in enumerate(watched):
        assert medic is not None
        medic.close()
        bare, _ = run(seed, watch=False)
        train(bare, None)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), bare.parameters(), strict=True))
        assert len(medic.report().history.layers("activation_std").steps) == 30
        assert set(medic.report().history.layers("activation_std").layers) == {"0", "1", "2"}


class Simulated(torch.utils.data.Dataset):
    """Samples that the watched model itself has a part in, in worker processes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Tensor:
        self.model(torch.ones(2, 4)).sum().backward()
        return torch.ones(4) * index


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_workers_of_a_loader_that_run_the_watched_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(Simulated(model), 4, num_workers=1, multiprocessing_context="fork")
    with trainmedic.watch(model, optimizer, settings={"every": 1}, logdir=tmp_path) as medic:
        for _ in range(2):
            for x in medic.batches(loader):
                optimizer.zero_grad()
                loss = model(x).square().mean()
                loss.backward()
                optimizer.step()
                medic.log(loss)
    assert medic.report().cost["steps"] == 12
    assert not [note for note in medic.report().notes if "stopped" in note]
    assert len(trainmedic.read(tmp_path)) == 1


KILLED = """
import sys, torch, trainmedic
from torch import nn
from trainmedic.writing import Writing

Writing.EVERY, Writing.SHARE, save = 0.02, 1.0, Writing._save

def told(self, history):
    save(self, history)
    print(history.last_step, flush=True)

Writing._save = told
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
medic = trainmedic.watch(model, optimizer, settings={"every": 5}, logdir=sys.argv[1])
while True:
    optimizer.zero_grad()
    loss = model(torch.randn(6, 4)).square().mean()
    loss.backward()
    optimizer.step()
    medic.log(loss)
"""


def test_a_killed_run_loses_what_was_not_written_yet_and_no_file(tmp_path: Path) -> None:
    for after in (0.0, 0.5):
        folder = tmp_path / str(after)
        writer = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(5)]  # it has saved a few times
        time.sleep(after)
        writer.kill()
        rest, _ = writer.communicate()
        told += [int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n")]
        assert writer.returncode == -signal.SIGKILL
        history = History.load(folder / "history.npz")
        assert history.last_step >= told[-1]
        steps, losses = history.series("train/loss")
        assert np.isfinite(losses).all()
        assert (np.diff(steps) > 0).all()
        (read,) = trainmedic.read(folder)
        assert read.last_step >= told[-1]
