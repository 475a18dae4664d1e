"""Objectives, gradients and data that are others from now on; and the weights that are shown."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.remedies.patients import finding, patient, perceptron
from trainmedic.history import History, Layer
from trainmedic.remedies.augment_inputs import AugmentInputs
from trainmedic.remedies.average_weights import AverageWeights
from trainmedic.remedies.change import Change
from trainmedic.remedies.l1 import L1
from trainmedic.remedies.label_smoothing import LabelSmoothing
from trainmedic.remedies.remedy import Refused, Remedy
from trainmedic.remedies.rescale_loss import RescaleLoss
from trainmedic.remedies.reweight_classes import ReweightClasses
from trainmedic.remedies.run import Run


def treat(remedy: Remedy, run: Run, illness: str, *where: str) -> tuple[Change, Any]:
    change = remedy.propose(finding(illness, *where), run)
    assert change is not None
    return change, remedy.apply(change, run)


def run_with(loss_fn: Any, **history: Any) -> Run:
    model = nn.Linear(3, 3)
    return Run([model], [torch.optim.SGD(model.parameters(), lr=0.1)], History.of(**history), loss_fn=loss_fn)


class TestLabelSmoothing:
    def test_training_is_smoothed_and_validation_is_not(self) -> None:
        criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
        run = run_with(criterion)
        _, undo = treat(LabelSmoothing(), run, "overfitting")
        x, y = torch.randn(8, 3, requires_grad=True), torch.randint(0, 3, (8,))
        plain = F.cross_entropy(x, y, weight=criterion.weight)
        smooth = F.cross_entropy(x, y, weight=criterion.weight, label_smoothing=0.1)
        (expected,) = torch.autograd.grad(smooth, x)
        for each in (criterion, pickle.loads(pickle.dumps(criterion)), copy.deepcopy(criterion)):
            loss = each(input=x, target=y)
            assert torch.equal(loss, plain)
            assert torch.allclose(torch.autograd.grad(loss, x)[0], expected)
        with torch.no_grad():
            assert torch.equal(criterion(x, y), plain)
        assert LabelSmoothing().propose(finding("overfitting"), run) is None
        undo()
        assert type(criterion) is nn.CrossEntropyLoss
        assert set(vars(criterion)) == set(vars(nn.CrossEntropyLoss()))

    def test_functions_are_refused_and_other_losses_are_left_alone(self) -> None:
        with pytest.raises(Refused, match="is a function"):
            LabelSmoothing().propose(finding("overfitting"), run_with(F.cross_entropy))
        with pytest.raises(Refused, match="pass it as loss_fn"):
            LabelSmoothing().propose(finding("overfitting"), run_with(None, facts={"loss": "CrossEntropyLoss"}))
        assert LabelSmoothing().propose(finding("overfitting"), run_with(nn.MSELoss())) is None
        assert LabelSmoothing().propose(finding("overfitting"), run_with(None, facts={"loss": "MSELoss"})) is None


SHARES = {"0__label_share": [0.9] * 5, "1__label_share": [0.09] * 5, "2__label_share": [0.01] * 5}


class TestReweightClasses:
    def test_classes_weigh_the_inverse_of_their_share_in_training_only(self) -> None:
        criterion = nn.CrossEntropyLoss()
        run = run_with(criterion, **SHARES)
        change, undo = treat(ReweightClasses(), run, "class-imbalance")
        weights = torch.tensor(change.after)
        inverse = torch.tensor([1 / 0.9, 1 / 0.09, 1 / 0.01])
        assert torch.allclose(weights, inverse / inverse.mean())
        x, y = torch.randn(8, 3, requires_grad=True), torch.randint(0, 3, (8,))
        loss, weighted = criterion(x, y), F.cross_entropy(x, y, weight=weights)
        assert torch.equal(loss, F.cross_entropy(x, y))
        assert torch.allclose(*(torch.autograd.grad(each, x)[0] for each in (loss, weighted)))
        with torch.no_grad():
            assert torch.equal(criterion(x, y), F.cross_entropy(x, y))
        assert criterion.state_dict() == {}
        undo()
        assert criterion.weight is None
        assert type(criterion) is nn.CrossEntropyLoss

    def test_a_rare_yes_weighs_more(self) -> None:
        criterion = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0]))
        run = run_with(criterion, target_mean=[0.1] * 5, target_binary=[1.0] * 5)
        change, _ = treat(ReweightClasses(), run, "class-imbalance")
        assert change.after == pytest.approx([9.0])
        x, y = torch.randn(8, requires_grad=True), torch.ones(8)
        weighted = F.binary_cross_entropy_with_logits(x, y, pos_weight=torch.tensor([18.0]))
        assert torch.allclose(*(torch.autograd.grad(each, x)[0] for each in (criterion(x, y), weighted)))

    def test_even_and_unknown_shares_are_left_alone(self) -> None:
        even = {f"{i}__label_share": [1 / 3] * 5 for i in range(3)}
        assert ReweightClasses().propose(finding("class-imbalance"), run_with(nn.CrossEntropyLoss(), **even)) is None
        assert ReweightClasses().propose(finding("class-imbalance"), run_with(nn.CrossEntropyLoss())) is None
        with pytest.raises(Refused, match="is a function"):
            ReweightClasses().propose(finding("class-imbalance"), run_with(F.cross_entropy, **SHARES))

    def test_a_rare_class_is_found_again(self) -> None:
        def recall(treated: bool) -> float:
            torch.manual_seed(0)
            model, criterion = nn.Linear(2, 2), nn.CrossEntropyLoss()
            of = torch.optim.SGD(model.parameters(), lr=0.1)
            shares = {"0__label_share": [0.97] * 5, "1__label_share": [0.03] * 5}
            run = Run([model], [of], History.of(**shares), loss_fn=criterion)
            if treated:
                treat(ReweightClasses(), run, "class-imbalance")
            y = (torch.rand(1000) < 0.03).long()
            x = torch.randn(1000, 2) + 1.5 * y[:, None]
            for _ in range(200):
                of.zero_grad()
                criterion(model(x), y).backward()
                of.step()
            return float((model(x).argmax(1)[y == 1] == 1).float().mean())

        assert recall(False) < 0.3
        assert recall(True) > 0.7


class TestGradients:
    def test_l1_adds_its_own_gradient_for_matrices(self) -> None:
        layer = nn.Linear(3, 3)
        of = torch.optim.SGD(layer.parameters(), lr=0.1)
        run = Run([layer], [of], History.of(weight__gradient_mean_abs=[0.02] * 5))
        change, _ = treat(L1(), run, "overfitting")
        assert change.after["strength"] == pytest.approx(0.002)
        x = torch.randn(4, 3)
        (layer(x).sum() + 0.002 * layer.weight.abs().sum()).backward()
        expected = [p.grad.clone() for p in layer.parameters()]
        layer.zero_grad()
        layer(x).sum().backward()
        run.guards[0](of)
        for parameter, gradient in zip(layer.parameters(), expected, strict=True):
            assert torch.allclose(parameter.grad, gradient)
        with pytest.raises(Refused, match="LBFGS"):
            L1().propose(finding("overfitting"), patient("LBFGS").run)

    def test_weights_that_say_nothing_go_to_zero(self) -> None:
        def noise(treated: bool) -> float:
            torch.manual_seed(0)
            model = nn.Linear(40, 1)
            of = torch.optim.SGD(model.parameters(), lr=0.02)
            run = Run([model], [of], History())
            if treated:
                treat(L1(strength=0.2), run, "overfitting")
            x = torch.randn(60, 40)
            y = 3 * x[:, :1] + 0.5 * torch.randn(60, 1)
            for _ in range(400):
                of.zero_grad()
                F.mse_loss(model(x), y).backward()
                for guard in run.guards:
                    guard(of)
                of.step()
            new = torch.randn(500, 40)
            return float(F.mse_loss(model(new), 3 * new[:, :1]).detach())

        assert noise(True) < 0.6 * noise(False)

    def test_a_sum_over_the_batch_becomes_a_mean(self) -> None:
        run = run_with(nn.MSELoss(reduction="sum"), facts={"batch_size": 32})
        change, _ = treat(RescaleLoss(), run, "exploding-gradient")
        assert change.after == {"factor": 1 / 32}
        (of,) = run.optimizers
        weight = of.param_groups[0]["params"][0]
        weight.grad = torch.full_like(weight, 64.0)
        run.guards[0](of)
        assert torch.equal(weight.grad, torch.full_like(weight, 2.0))

    def test_what_eps_swallows_grows(self) -> None:
        run = run_with(None, weight__gradient_mean_abs=[1e-11] * 5)
        run.optimizers = [torch.optim.Adam(run.models[0].parameters(), lr=1e-3)]
        change, _ = treat(RescaleLoss(), run, "learning-rate-too-low")
        assert change.after["factor"] == pytest.approx(1e6)

        def moved(treated: bool) -> float:
            weight = nn.Parameter(torch.ones(4))
            of = torch.optim.Adam([weight], lr=0.01)
            for _ in range(50):
                weight.grad = torch.full((4,), 1e-11)
                if treated:
                    run.guards[0](of)
                of.step()
            return float((1 - weight.detach()).abs().max())

        assert moved(False) < 0.01 < 0.4 < moved(True)

    def test_gradients_that_fit_are_left_alone(self) -> None:
        usual = run_with(nn.MSELoss(), facts={"batch_size": 32}, weight__gradient_mean_abs=[1e-3] * 5)
        for illness in RescaleLoss.treats:
            assert RescaleLoss().propose(finding(illness), usual) is None
        summed = run_with(nn.MSELoss(reduction="sum"), facts={"batch_size": 32})
        summed.optimizers = [torch.optim.Adam(summed.models[0].parameters())]
        assert RescaleLoss().propose(finding("exploding-gradient"), summed) is None


class TestAugment:
    def test_images_move_by_whole_pixels_each_its_own_way(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(64, 2))
        model[0].weight.data.fill_(1.0)
        run = Run([model], [], History.of(facts={"input_layer": "0"}))
        run.history.architecture = {"0": Layer("0", "Conv2d", 0, (1, 8, 8)), "2": Layer("2", "Linear", 1, (2,))}
        change, undo = treat(AugmentInputs(), run, "overfitting")
        assert change.after["shift"] == 1
        images = torch.rand(32, 1, 8, 8)
        out = model[0](images).detach()
        padded = F.pad(images, [1, 1, 1, 1])
        moves = set()
        for image, frame in zip(out, padded, strict=True):
            found = [(i, j) for i in range(3) for j in range(3) if torch.equal(image, frame[:, i : i + 8, j : j + 8])]
            assert found
            moves.add(found[0])
        assert len(moves) > 4
        assert torch.equal(model.eval()[0](images), images)
        undo()
        assert torch.equal(model.train()[0](images), images)

    def test_features_get_noise_of_their_own_size(self) -> None:
        model = nn.Sequential(nn.Linear(6, 6))
        model[0].weight.data = torch.eye(6)
        model[0].bias.data.zero_()
        treat(AugmentInputs(), Run([model], [], History.of(facts={"input_layer": "0"})), "overfitting")
        x = torch.randn(4000, 6) * torch.tensor([1.0, 10.0, 100.0, 1.0, 1.0, 1.0])
        noise = (model[0](x) - x).detach().std(0)
        assert torch.allclose(noise, 0.1 * x.std(0), rtol=0.1)

    def test_tasks_whose_answer_is_a_place_are_left_alone(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1))
        run = Run([model], [], History.of(facts={"input_layer": "0"}))
        run.history.architecture = {"0": Layer("0", "Conv2d", 0, (4, 8, 8)), "1": Layer("1", "Conv2d", 1, (2, 8, 8))}
        assert AugmentInputs().propose(finding("overfitting"), run) is None


class TestAverage:
    def test_the_average_is_shown_in_evaluation_and_training_does_not_notice(self) -> None:
        def weights(treated: bool) -> tuple[list[torch.Tensor], Any]:
            sick = patient("SGD")
            if treated:
                treat(AverageWeights(), sick.run, "noisy-gradient")
            for _ in range(6):
                sick.step()
                sick.model.eval()
                sick.model(torch.ones(2, 6))
                sick.model.train()
            return [p.detach().clone() for p in sick.model.parameters()], sick

        plain, _ = weights(False)
        treated, sick = weights(True)
        assert all(map(torch.equal, plain, treated))
        sick.model.eval()
        shown = [p.detach().clone() for p in sick.model.parameters()]
        assert not any(map(torch.equal, treated, shown))
        twin = pickle.loads(pickle.dumps(sick.model))
        twin.train()
        assert all(map(torch.equal, treated, twin.parameters()))
        assert all(map(torch.equal, shown, sick.model.parameters())), "copies have an average of their own"
        sick.model.train()
        assert all(map(torch.equal, treated, sick.model.parameters()))

    def test_it_is_the_average_that_it_says(self) -> None:
        model = nn.Linear(1, 1, bias=False)
        of = torch.optim.SGD(model.parameters(), lr=1.0)
        run = Run([model], [of], History.of(facts={"total_steps": 200}))
        change, undo = treat(AverageWeights(), run, "noisy-gradient")
        assert change.after == {"decay": 0.9}
        average = float(model.weight.detach())
        for n in range(1, 30):
            now = float(model.weight.detach())
            decay = min(0.9, (1 + n) / (10 + n))
            average = decay * average + (1 - decay) * now
            model.weight.grad = torch.ones(1, 1)
            run.guards[0](of)
            of.step()
        raw = model.weight.detach().clone()
        model.eval()
        assert float(model.weight.detach()) == pytest.approx(average, rel=1e-5)
        undo()
        assert torch.equal(model.weight, raw)
        assert type(model) is nn.Linear

    def test_a_state_put_back_in_evaluation_stays(self) -> None:
        model = nn.Linear(1, 1, bias=False)
        of = torch.optim.SGD(model.parameters(), lr=1.0)
        run = Run([model], [of], History())
        treat(AverageWeights(), run, "noisy-gradient")
        model.weight.grad = torch.ones(1, 1)
        run.guards[0](of)
        of.step()
        model.eval()
        model.load_state_dict({"weight": torch.full((1, 1), 7.0)})
        model.train()
        assert float(model.weight.detach()) == 7.0

    def test_what_cannot_be_shown_is_refused(self) -> None:
        model = perceptron()
        run = Run([model], [], History.of(facts={"trains_in_eval_mode": True}))
        with pytest.raises(Refused, match="evaluation mode"):
            AverageWeights().propose(finding("noisy-gradient"), run)

    def test_noise_is_averaged_out(self) -> None:
        torch.manual_seed(0)
        model = nn.Linear(10, 1, bias=False)
        of = torch.optim.SGD(model.parameters(), lr=0.1)
        run = Run([model], [of], History.of(facts={"total_steps": 1000}))
        treat(AverageWeights(), run, "noisy-gradient")
        for _ in range(400):
            model.weight.grad = model.weight.detach() + torch.randn(1, 10)
            run.guards[0](of)
            of.step()
        raw = float(model.weight.detach().square().sum())
        model.eval()
        assert float(model.weight.detach().square().sum()) < 0.3 * raw
