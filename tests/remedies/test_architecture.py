"""Live models that compute something else from now on: activations, recurrent layers, inputs, dropout."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainmedic
from tests.remedies.patients import Patient, finding, patient
from trainmedic.history import History, Layer
from trainmedic.remedies.change import Change
from trainmedic.remedies.dropout import Dropout
from trainmedic.remedies.insert_residual import InsertResidual
from trainmedic.remedies.normalize_inputs import NormalizeInputs
from trainmedic.remedies.remedy import Refused, Remedy
from trainmedic.remedies.replace_activation import ReplaceActivation
from trainmedic.remedies.replace_recurrent import ReplaceRecurrent
from trainmedic.remedies.run import Run
from trainmedic.remedies.swap_optimizer import SwapOptimizer


def treat(remedy: Remedy, run: Run, illness: str, *where: str) -> tuple[Change, Any]:
    change = remedy.propose(finding(illness, *where), run)
    assert change is not None
    return change, remedy.apply(change, run)


def replay(change: Change, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    entry = {"finding": "f1", "code": "TM201", "illness": "vanishing-gradient", "step": 1, "outcome": "kept"}
    trainmedic.replay(
        model, optimizer, {"version": 1, "treatments": [{**entry, "change": change.model_dump(mode="json")}]}
    )


class Nested(nn.Module):
    """Blocks within blocks, a gate, and a sigmoid at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())
        self.body = nn.ModuleDict({"deep": nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Hardtanh())})
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 3), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.body["deep"](x * self.squeeze(x)))


class TestActivations:
    def test_hidden_ones_are_found_wherever_they_are_and_gates_and_ends_are_not(self) -> None:
        sick = patient("SGD", Nested, shape=(1, 6, 6))
        change, undo = treat(ReplaceActivation(), sick.run, "vanishing-gradient")
        assert set(change.target) == {"stem.1", "body.deep.1"}
        assert type(sick.model.stem[1]) is nn.LeakyReLU
        assert type(sick.model.squeeze[2]) is nn.Sigmoid
        assert type(sick.model.head[2]) is nn.Sigmoid
        sick.step()
        fresh = Nested()
        replay(change, fresh)
        fresh.load_state_dict(sick.model.state_dict())
        x = torch.randn(3, 1, 6, 6)
        assert torch.equal(fresh(x), sick.model(x))
        undo()
        assert type(sick.model.stem[1]) is nn.Tanh
        assert "negative_slope" not in vars(sick.model.stem[1])

    def test_the_module_that_the_user_holds_is_the_one_that_changes(self) -> None:
        sick = patient("SGD", lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))
        held = sick.model[1]
        treat(ReplaceActivation(), sick.run, "saturated-activation")
        assert held is sick.model[1]
        assert torch.equal(held(torch.tensor([-1.0, 2.0])), torch.tensor([-0.01, 2.0]))
        assert type(sick.average.module[1]) is nn.LeakyReLU

    def test_functions_are_refused(self) -> None:
        class Functional(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.two(torch.tanh(self.one(x)))

        sick = patient("SGD", Functional)
        with pytest.raises(Refused, match="one:tanh is called as a function"):
            ReplaceActivation().propose(finding("vanishing-gradient"), sick.run)

    def test_a_deep_net_of_sigmoids_learns(self) -> None:
        def loss(treated: bool) -> float:
            torch.manual_seed(0)
            layers = [each for _ in range(8) for each in (nn.Linear(16, 16), nn.Sigmoid())]
            model = nn.Sequential(nn.Linear(2, 16), nn.Sigmoid(), *layers, nn.Linear(16, 2))
            run = Run([model], [], chain_of(model))
            if treated:
                treat(ReplaceActivation(), run, "vanishing-gradient")
            return xor_loss(model)

        assert loss(False) > 0.6
        assert loss(True) < 0.2


def chain_of(model: nn.Sequential) -> History:
    """A history that knows the order of a plain chain."""
    kinds = {nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.ReLU: "relu"}
    history = History()
    for i, layer in enumerate(model):
        history.architecture[str(i)] = Layer(str(i), type(layer).__name__, i, (), True, kinds.get(type(layer)))
    return history


def xor_loss(model: nn.Module, steps: int = 200) -> float:
    of = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.rand(256, 2) * 2 - 1
    y = (x[:, 0] * x[:, 1] > 0).long()
    for _ in range(steps):
        of.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        of.step()
    return float(loss.detach())


class Reader(nn.Module):
    """Reads a sequence and answers at its end."""

    def __init__(self, kind: Any = nn.RNN, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(2, 12, batch_first=True, **options)
        self.head = nn.Linear(12 * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class TestRecurrent:
    @pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=str)
    def test_it_computes_what_a_gru_of_those_weights_does(self, options: Any) -> None:
        sick = patient("SGD", lambda: Reader(**options), shape=(5, 2))
        keys, weight = list(sick.model.state_dict()), sick.model.rnn.weight_ih_l0
        change, undo = treat(ReplaceRecurrent(), sick.run, "vanishing-gradient")
        rnn: Any = sick.model.rnn
        assert rnn.weight_ih_l0 is weight
        assert [key for key in sick.model.state_dict() if key in keys] == keys
        gru = nn.GRU(2, 12, batch_first=True, **options)
        for name, gate in rnn.medic_gates.items():
            gru.get_parameter(name).data = torch.cat([gate, rnn.get_parameter(name)]).detach()
        x, state = (
            torch.randn(4, 5, 2),
            torch.randn(2 * options.get("num_layers", 1) if options.get("bidirectional") else 1, 4, 12),
        )
        for mine, theirs in zip(rnn(x, state), gru(x, state), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-6)
        packed = nn.utils.rnn.pack_padded_sequence(x, [5, 3, 2, 2], batch_first=True)
        assert torch.allclose(rnn(packed)[0].data, gru(packed)[0].data, atol=1e-6)
        assert isinstance(rnn, nn.RNN)
        gates = [p.detach().clone() for p in rnn.medic_gates.values()]
        for _ in range(2):
            sick.step()
        assert not all(map(torch.equal, gates, rnn.medic_gates.values())), "the gates do not train"
        twin = pickle.loads(pickle.dumps(sick.model))
        assert torch.equal(twin(x), sick.model(x))
        assert torch.equal(copy.deepcopy(sick.model)(x), sick.model(x))
        fresh = Reader(**options)
        replay(change, fresh, torch.optim.SGD(fresh.parameters(), lr=0.1))
        fresh.load_state_dict(sick.model.state_dict())
        assert torch.equal(fresh(x), sick.model(x))
        undo()
        assert list(sick.model.state_dict()) == keys
        sick.step()

    def test_a_cell_computes_what_a_gru_cell_does(self) -> None:
        cell = nn.RNNCell(3, 4)
        of = torch.optim.SGD(cell.parameters(), lr=0.1)
        treat(ReplaceRecurrent(), Run([nn.ModuleDict({"cell": cell})], [of], History()), "vanishing-gradient")
        gru = nn.GRUCell(3, 4)
        for name, gate in cell.medic_gates.items():
            gru.get_parameter(name).data = torch.cat([gate, cell.get_parameter(name)]).detach()
        x, h = torch.randn(2, 3), torch.randn(2, 4)
        assert torch.allclose(cell(x, h), gru(x, h), atol=1e-6)
        assert torch.allclose(cell(x[0]), gru(x[0]), atol=1e-6)
        assert len(of.param_groups[0]["params"]) == 8

    def test_an_lstm_gets_an_open_forget_gate(self) -> None:
        sick = patient("Adam", lambda: Reader(nn.LSTM), shape=(5, 2))
        change, undo = treat(ReplaceRecurrent(), sick.run, "vanishing-gradient")
        assert change.after == {"rnn": "forget"}
        rnn: Any = sick.model.rnn
        total = (rnn.bias_ih_l0 + rnn.bias_hh_l0)[12:24]
        assert torch.equal(total, torch.ones(12))
        assert ReplaceRecurrent().propose(finding("vanishing-gradient"), sick.run) is None
        undo()
        assert not torch.equal((rnn.bias_ih_l0 + rnn.bias_hh_l0)[12:24], torch.ones(12))

    def test_other_models_and_optimizers(self) -> None:
        assert ReplaceRecurrent().propose(finding("vanishing-gradient"), patient("SGD").run) is None
        with pytest.raises(Refused, match="cannot join LBFGS"):
            ReplaceRecurrent().propose(finding("vanishing-gradient"), patient("LBFGS", Reader, shape=(5, 2)).run)

    def test_what_happened_long_ago_is_remembered(self) -> None:
        def accuracy(treated: bool) -> float:
            torch.manual_seed(1)
            model = Reader()
            of = torch.optim.Adam(model.parameters(), lr=0.02)
            if treated:
                treat(ReplaceRecurrent(), Run([model], [of], History()), "vanishing-gradient")
            for _ in range(120):
                x = torch.randn(64, 20, 2)
                y = (x[:, 0, 0] > 0).long()
                of.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                of.step()
            return float((model(x).argmax(1) == y).float().mean())

        assert accuracy(False) < 0.7
        assert accuracy(True) > 0.9


def input_run(model: nn.Module, name: str, **facts: Any) -> Run:
    of = torch.optim.SGD(model.parameters(), lr=0.05)
    return Run([model], [of], History.of(train_loss=[1.0], facts={"input_layer": name, **facts}))


class TestInputs:
    @pytest.mark.parametrize(
        ("layer", "shape"),
        [
            (lambda: nn.Linear(3, 4), (16, 3)),
            (lambda: nn.Linear(3, 4), (16, 5, 3)),
            (lambda: nn.Conv2d(3, 4, 3), (16, 3, 6, 6)),
            (lambda: nn.Conv1d(3, 4, 3), (16, 3, 6)),
            (lambda: nn.GRU(3, 4, batch_first=True), (16, 5, 3)),
        ],
        ids=["linear", "sequence", "2d", "1d", "recurrent"],
    )
    def test_each_feature_gets_mean_zero_and_deviation_one(self, layer: Any, shape: tuple[int, ...]) -> None:
        model = nn.ModuleDict({"first": layer()})
        run = input_run(model, "first")
        reference = copy.deepcopy(model["first"])
        _, undo = treat(NormalizeInputs(batches=3), run, "unnormalized-input", "input/feature_scale_max")
        axis = 1 if "Conv" in type(reference).__name__ else len(shape) - 1
        scale = torch.tensor([1000.0, 0.01, 1.0]).view([3 if i == axis else 1 for i in range(len(shape))])
        batches = [torch.randn(shape) * scale + 5 * scale for _ in range(3)]
        for batch in batches:
            model["first"](batch)
        with torch.no_grad():
            x = batches[0]
            others = [d for d in range(len(shape)) if d != axis]
            spread, mean = torch.var_mean(torch.cat(batches), others, correction=0, keepdim=True)
            first = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731
            expected = first(reference((x - mean) / spread.sqrt()))
            assert torch.allclose(first(model["first"](x)), expected, atol=1e-4)
        before = model["first"].medic_mean.clone()
        model["first"](batches[0] * 100)
        assert torch.equal(model["first"].medic_mean, before), "mean and deviation are fixed after three batches"
        undo()
        assert not list(model.buffers())

    def test_features_that_do_not_vary_are_centred_only(self) -> None:
        model = nn.ModuleDict({"first": nn.Linear(2, 2)})
        treat(NormalizeInputs(), input_run(model, "first"), "unnormalized-input", "input/std")
        x = torch.stack([torch.full((8,), 1e6), torch.arange(8.0)], 1)
        model["first"](x)
        out = model.eval()["first"](torch.tensor([[1e6 + 1, 3.5]]))
        assert torch.allclose(out, model["first"].weight[:, 0] + model["first"].bias, atol=1e-4)

    def test_a_checkpoint_of_it_loads_after_replay(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2))
        change, _ = treat(NormalizeInputs(batches=1), input_run(model, "0"), "unnormalized-input", "input/std")
        x = torch.randn(8, 2) * 100
        model(x)
        fresh = nn.Sequential(nn.Linear(2, 2))
        saved = copy.deepcopy(fresh.state_dict())
        replay(change, fresh)
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(fresh(x), model(x))
        model.load_state_dict(saved)

    def test_targets_and_tokens_are_left_alone(self) -> None:
        model = nn.Sequential(nn.Embedding(5, 2))
        run = input_run(model, "0")
        assert NormalizeInputs().propose(finding("unnormalized-input", "input/std"), run) is None
        run = input_run(nn.Sequential(nn.Linear(2, 2)), "0")
        assert NormalizeInputs().propose(finding("unnormalized-input", "target/std"), run) is None
        assert NormalizeInputs().propose(finding("not-learning", "train/loss"), run) is None

    def test_raw_features_are_learnt(self) -> None:
        def loss(treated: bool) -> float:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
            run = input_run(model, "0")
            if treated:
                treat(NormalizeInputs(), run, "unnormalized-input", "input/feature_scale_max")
            x = torch.randn(256, 3)
            y = x[:, :1] * x[:, 1:2]
            raw = x * torch.tensor([1000.0, 0.01, 50.0]) + torch.tensor([5000.0, 0.0, 0.0])
            for _ in range(300):
                run.optimizers[0].zero_grad()
                F.mse_loss(model(raw), y).backward()
                run.optimizers[0].step()
            return float(F.mse_loss(model(raw), y).detach())

        assert loss(False) > 0.8
        assert loss(True) < 0.3


class TestDropout:
    def test_hidden_linear_layers_drop_in_training_only(self) -> None:
        sick = patient("SGD")
        x = torch.randn(4, 6)
        keys, before = list(sick.model.state_dict()), sick.model.eval()(x)
        change, undo = treat(Dropout(), sick.run, "overfitting")
        assert change.target == ("2", "4")
        assert torch.equal(sick.model(x), before)
        assert list(sick.model.state_dict()) == keys
        sick.model.train()
        assert not torch.equal(sick.model(x), sick.model(x))
        fresh = patient("SGD").model
        replay(change, fresh)
        torch.manual_seed(3)
        out = fresh(x)
        fresh.load_state_dict(sick.model.state_dict())
        torch.manual_seed(3)
        assert out.shape == sick.model(x).shape
        undo()
        assert torch.equal(sick.model(x), before)

    def test_layers_that_are_there_drop_more(self) -> None:
        build = lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3), nn.Dropout(0.7))  # noqa: E731
        sick = patient("SGD", build)
        change, undo = treat(Dropout(), sick.run, "overfitting")
        assert change.target == ("2",)
        assert [sick.model[i].p for i in (2, 4)] == [0.5, 0.7]
        assert Dropout().propose(finding("overfitting"), sick.run) is None
        undo()
        assert sick.model[2].p == 0.1


class TestOptimizer:
    @pytest.mark.parametrize("schedule", [torch.optim.lr_scheduler.StepLR, None], ids=["StepLR", "none"])
    def test_it_steps_as_adamw_does_and_stays_the_object(self, schedule: Any) -> None:
        sick: Patient = patient("SGD", schedule=lambda o: schedule(o, 3, 0.5) if schedule else None)
        held, groups = sick.optimizer, list(sick.optimizer.param_groups)
        twin = copy.deepcopy(sick.model)
        change, undo = treat(SwapOptimizer(), sick.run, "slow-convergence")
        assert type(held) is torch.optim.AdamW
        assert held.param_groups[0] is groups[0]
        rate = held.param_groups[0]["lr"]
        other = torch.optim.AdamW(twin.parameters(), lr=rate, weight_decay=0.0)
        calls = []
        handle = held.register_step_pre_hook(lambda *_: calls.append(1))
        x = torch.randn(8, 6)
        for model, of in ((sick.model, held), (twin, other)):
            of.zero_grad()
            model(x).square().sum().backward()
            of.step()
        assert calls == [1]
        handle.remove()
        for mine, theirs in zip(sick.model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(mine, theirs)
        for _ in range(4):
            sick.step()
        if schedule:
            assert held.param_groups[0]["lr"] < rate
        fresh = patient("SGD").model
        of = torch.optim.SGD(fresh.parameters(), lr=0.05, momentum=0.9, nesterov=True)
        replay(change, fresh, of)
        of.load_state_dict(held.state_dict())
        undo()
        assert type(held) is torch.optim.SGD
        sick.step()

    def test_states_of_the_old_one_do_not_fit_the_new_one(self) -> None:
        sick = patient("SGD")
        assert sick.run.healthy is not None
        assert sick.run.healthy.fits(sick.run)
        _, undo = treat(SwapOptimizer(), sick.run, "slow-convergence")
        assert not sick.run.healthy.fits(sick.run)
        undo()
        assert sick.run.healthy.fits(sick.run)

    def test_what_it_is_not_for(self) -> None:
        assert SwapOptimizer().propose(finding("slow-convergence"), patient("AdamW").run) is None
        cycle = lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, 50)  # noqa: E731
        with pytest.raises(Refused, match="OneCycleLR moves the momentum"):
            SwapOptimizer().propose(finding("slow-convergence"), patient("SGD", schedule=cycle).run)

    def test_gradients_that_differ_by_orders_are_followed(self) -> None:
        def loss(treated: bool) -> float:
            weight = nn.Parameter(torch.ones(4))
            of = torch.optim.SGD([weight], lr=1e-4)
            if treated:
                treat(SwapOptimizer(rate=0.02), Run([], [of], History()), "slow-convergence")
            scale = torch.tensor([1e4, 1e2, 1.0, 1e-2])
            for _ in range(200):
                of.zero_grad()
                (scale * weight.square()).sum().backward()
                of.step()
            return float(weight.detach().abs().max())

        assert loss(False) > 0.9
        assert loss(True) < 0.1


class TestResidual:
    def test_ways_lead_around_what_keeps_the_shape_in_nested_containers(self) -> None:
        class Deep(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                inner = nn.Sequential(
                    *(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1)),
                    *(nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Tanh()),
                )
                self.parts = nn.ModuleList([nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh()), inner])
                self.head = nn.Linear(4, 3)

            def forward(self, x: Tensor) -> Tensor:
                for part in self.parts:
                    x = part(x)
                return self.head(x.mean((2, 3)))

        sick = patient("SGD", Deep, shape=(1, 8, 8))
        keys = list(sick.model.state_dict())
        change, undo = treat(InsertResidual(), sick.run, "vanishing-gradient")
        assert change.after["skips"] == {"parts.1": [["0", "2"], ["3", "4"]]}
        assert list(sick.model.state_dict()) == keys
        x = torch.randn(2, 4, 8, 8)
        inner: Any = sick.model.eval().parts[1]
        first = x + torch.tanh(inner[1](inner[0](x))) / 2**0.5
        second = first + torch.tanh(inner[3](first)) / 2**0.5
        rest = inner[8](inner[7](inner[6](inner[5](second))))
        assert torch.allclose(inner(x), rest, atol=1e-6)
        fresh = Deep().eval()
        replay(change, fresh)
        fresh.load_state_dict(sick.model.state_dict())
        image = torch.randn(2, 1, 8, 8)
        assert torch.equal(fresh(image), sick.model(image))
        assert torch.equal(pickle.loads(pickle.dumps(inner))(x), inner(x))
        undo()
        assert type(inner) is nn.Sequential
        assert "medic_skips" not in vars(inner)

    def test_what_has_no_such_layers_is_refused_or_left_alone(self) -> None:
        with pytest.raises(Refused, match=r"0 layer\(s\) of an nn.Sequential keep the shape"):
            InsertResidual().propose(
                finding("vanishing-gradient"),
                Run([nn.Sequential(*[nn.Linear(n, n + 1) for n in range(2, 7)])], [], History()),
            )
        shallow = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        assert InsertResidual().propose(finding("vanishing-gradient"), Run([shallow], [], History())) is None

    def test_a_deep_stack_learns(self) -> None:
        def loss(treated: bool) -> float:
            torch.manual_seed(0)
            layers = [each for _ in range(12) for each in (nn.Linear(16, 16), nn.Tanh())]
            model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), *layers, nn.Linear(16, 2))
            for layer in model[::2]:
                layer.weight.data *= 0.5
            if treated:
                treat(InsertResidual(), Run([model], [], History()), "vanishing-gradient")
            return xor_loss(model, 100)

        assert loss(False) > 0.6
        assert loss(True) < 0.2
