"""Each statistic against its plain computation, and samples against the whole."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainmedic
from trainmedic.history import History
from trainmedic.hooks.noise import NoiseScale
from trainmedic.hooks.parameters import Gradients, _equal_units, cosines, products
from trainmedic.hooks.reading import Reading
from trainmedic.hooks.sampling import SAMPLE, rows, stride, thinned


def last(history: History, statistic: str) -> dict[str, float]:
    return dict(history.layers(statistic).latest())


def watched(model: nn.Module, optimizer: torch.optim.Optimizer, **options: object) -> trainmedic.Medic:
    return trainmedic.watch(model, optimizer, settings={"every": 1}, **options)


# -- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(5_000,), (64, 64), (512, 512), (4_096, 300), (128, 64, 3, 3), (1, 20_000), (20_000, 1)]
)
def test_a_sample_is_small_spread_out_and_always_the_same(shape: tuple[int, ...]) -> None:
    places = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    part = thinned(places)
    assert len(part) == min(SAMPLE, places.numel()) or SAMPLE / 3 < len(part) <= SAMPLE
    assert torch.equal(part, thinned(places))
    if len(shape) > 1 and shape[-1] > 8:
        assert len({int(place) % shape[-1] for place in part}) > min(shape[-1], len(part)) * 0.9, "few columns"


def test_strides_are_not_in_step_with_rows() -> None:
    for elements in (10_000, 262_144, 1_048_576, 38_597_376):
        for width in (10, 64, 768, 1_000):
            every = stride(elements, SAMPLE, width)
            assert math.gcd(every, width) == 1
            assert elements / every <= SAMPLE + 1


@pytest.mark.parametrize("distribution", ["normal", "heavy", "sparse"])
def test_what_a_sample_tells_is_within_its_stated_error(distribution: str) -> None:
    """Three standard errors: 3 x 0.5 / sqrt(n) for a share, 3 / sqrt(2 n) for a spread of normal values."""
    torch.manual_seed(0)
    values = torch.randn(1_024, 1_024)
    if distribution == "heavy":
        values = values * torch.rand(1_024, 1).mul(4).exp()  # rows of very different scale
    if distribution == "sparse":
        values = values * (torch.rand(1_024, 1_024) < 0.1)
    part = thinned(values)
    n = len(part)
    zeros, share = float((values == 0).float().mean()), float((part == 0).float().mean())
    assert abs(zeros - share) < 3 * 0.5 / math.sqrt(n)
    kurtosis = float(values.pow(4).mean() / values.square().mean() ** 2)
    error = 3 * math.sqrt((kurtosis - 1) / (4 * n))  # of a standard deviation; 3 / sqrt(2 n) for normal values
    assert float(part.std() / values.std()) == pytest.approx(1, abs=error)


def test_samples_of_a_batch_keep_samples_and_outputs_apart() -> None:
    torch.manual_seed(0)
    values = torch.randn(256, 32, 16, 16) + 10 * torch.randn(1, 32, 1, 1)  # channels differ, samples hardly
    for given in (values, values.contiguous(memory_format=torch.channels_last)):
        part = rows(given, 16_384)
        assert part.numel() <= 16_384
        assert part.shape[0] >= 64
        assert float(part.std(0).mean()) == pytest.approx(float(values.std(0).mean()), rel=0.05)
        assert float(part.std()) == pytest.approx(float(values.std()), rel=0.15)
    assert not torch.equal(rows(values, 1_000, 0), rows(values, 1_000, 1)), "other steps look elsewhere"


def test_large_activations_are_measured_within_the_error_of_their_sample() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 32 * 32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(64, 3, 32, 32)
    full = model[1](model[0](x)).detach()
    with watched(model, optimizer) as medic:
        model(x).square().mean().backward()
        optimizer.step()
    history = medic.report().history
    assert last(history, "activation_max")["1"] == pytest.approx(float(full.max())), "extremes are not sampled"
    assert last(history, "activation_zeros")["1"] == pytest.approx(float((full == 0).float().mean()), abs=0.02)
    assert last(history, "activation_mean")["1"] == pytest.approx(float(full.mean()), rel=0.05)
    assert last(history, "activation_std")["1"] == pytest.approx(float(full.std()), rel=0.05)


def test_one_bad_element_of_a_million_is_seen() -> None:
    model = nn.Sequential(nn.Linear(1_000, 1_000), nn.Tanh(), nn.Linear(1_000, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with torch.no_grad():
        model[0].bias[777] = math.nan
    with watched(model, optimizer) as medic:
        model(torch.randn(1_000, 1_000))[:, 0].sum().backward()
        optimizer.step()
    assert last(medic.report().history, "activation_nonfinite") == {"0": 1.0, "1": 1.0, "2": 1.0}


# -- gradients, updates, weights -------------------------------------------------------------------------------------


def test_cosines_updates_and_mean_gradients_of_large_weights_are_near_the_full_values() -> None:
    torch.manual_seed(0)
    model = nn.Linear(400, 300)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with watched(model, optimizer) as medic:
        for _ in range(2):
            earlier = model.weight.grad.clone() if model.weight.grad is not None else None
            before = model.weight.detach().clone()
            optimizer.zero_grad()
            model(torch.randn(16, 400) + 0.5).square().mean().backward()
            optimizer.step()
    history, gradient = medic.report().history, model.weight.grad
    cosine = float(F.cosine_similarity(gradient.flatten(), earlier.flatten(), 0))
    moved = float((model.weight.detach() - before).norm() / before.norm())
    assert last(history, "gradient_cosine")["weight"] == pytest.approx(cosine, abs=0.05)
    assert last(history, "update_ratio")["weight"] == pytest.approx(moved, rel=0.05)
    assert last(history, "gradient_mean_abs")["weight"] == pytest.approx(float(gradient.abs().mean()), rel=0.05)
    assert last(history, "weight_std")["weight"] == pytest.approx(float(before.std()), rel=0.05)
    assert last(history, "gradient_norm")["weight"] == pytest.approx(float(gradient.norm()), rel=1e-5)


def test_the_cosine_of_vectors_large_and_small() -> None:
    torch.manual_seed(0)
    a = [torch.randn(1_000) * scale for scale in (1e-12, 1.0, 1e12)]
    b = [torch.randn(1_000) * scale + 0.5 * x for scale, x in zip((1e-12, 1.0, 1e12), a, strict=True)]
    pairs = [(x.double(), y.double()) for x, y in zip(a, b, strict=True)]
    expected = [float(x @ y / (x.norm() * y.norm())) for x, y in pairs]
    assert cosines(*products(a, b)).tolist() == pytest.approx(expected, abs=1e-5)


def test_cosines_need_two_steps_in_a_row() -> None:
    model = nn.Linear(4, 2)
    gradients = Gradients(list(model.named_parameters()))
    model(torch.randn(3, 4)).sum().backward()
    for full, expected in ((True, False), (True, True), (False, False), (True, False), (True, True)):
        reading = Reading()
        gradients.put(reading, None, full=full)
        gradients.step_ended()
        assert any(row.statistic == "gradient_cosine" for row in reading.read()) is expected


@pytest.mark.parametrize(
    ("weight", "share"),
    [
        (torch.zeros(8, 5), 1.0),
        (torch.full((8, 5), 0.3), 1.0),
        (torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), 0.0),
        (torch.cat([torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.ones(2, 5)]), 0.25),
        (torch.randn(64, 3, 3, 3, generator=torch.Generator().manual_seed(0)), 0.0),
        (1e-6 * torch.randn(4_096, 2_000, generator=torch.Generator().manual_seed(0)), 0.0),
        (torch.eye(16), 0.0),
    ],
)
def test_equal_units_are_counted(weight: Tensor, share: float) -> None:
    assert float(_equal_units(weight)) == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize(("limit", "expected"), [(1e9, 1.0), (0.5, 0.5), (None, 1.0)])
def test_clipping_is_noticed(limit: float | None, expected: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as medic:
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().sum().backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
        if limit is not None:
            nn.utils.clip_grad_norm_(model.parameters(), limit * norm)
        optimizer.step()
    assert medic.report().history.series("gradient/clipped").values[-1] == pytest.approx(expected, rel=1e-3)


def test_gradients_that_were_not_cleared_are_noticed() -> None:
    torch.manual_seed(0)
    carried = {}
    for where in ("never", "at the start", "before backward", "after the step", "accumulating"):
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        with watched(model, optimizer) as medic:
            for _ in range(10):
                if where == "at the start":
                    optimizer.zero_grad()
                for _ in range(3 if where == "accumulating" else 1):
                    loss = model(torch.randn(4, 8)).square().mean()
                    if where == "before backward":
                        optimizer.zero_grad(set_to_none=False)
                    loss.backward()
                optimizer.step()
                if where in ("after the step", "accumulating"):
                    optimizer.zero_grad()
        carried[where] = medic.report().history.series("gradient/carried").values.tolist()
    assert max(max(values) for where, values in carried.items() if where != "never") == 0
    assert carried["never"][0] == 0
    assert carried["never"][-1] > 0.7


def test_the_gradient_noise_scale_is_found_from_micro_batches() -> None:
    """Micro-batches whose gradient has a known mean G and covariance, of trace 12 |G|^2."""
    torch.manual_seed(0)
    truth = torch.randn(30)
    spread = math.sqrt(12 * float(truth.square().sum()) / 30)
    for divided in (4, 1):
        seen: dict[str, list[float]] = {"gradient/noise": [], "gradient/signal": []}
        for _ in range(3_000):
            noise, reading, total = NoiseScale(), Reading(), torch.zeros(30)
            parameter = nn.Parameter(torch.zeros(1))
            for _ in range(4):
                total += (truth + spread * torch.randn(30)) / divided
                noise.arrives(parameter, torch.ones(1), Reading())
                parameter.grad = torch.ones(1)
                noise.add(total.norm().reshape(1))
            noise.put(reading, {})
            for row in reading.read():
                seen[row.statistic] += row.values
        assert sum(seen["gradient/noise"]) / sum(seen["gradient/signal"]) == pytest.approx(12, rel=0.1)


def test_micro_batches_are_counted() -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as medic:
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(4):
                model(torch.randn(3, 4)).square().mean().backward()
            optimizer.step()
    history = medic.report().history
    assert history.facts["accumulation"] == 4
    assert len(history.series("gradient/noise").steps) == 3


# -- activations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["module", "function"])
@pytest.mark.parametrize(("scale", "low", "high"), [(0.5, 0.0, 0.05), (100.0, 0.7, 1.0)])
@pytest.mark.parametrize("kind", [torch.sigmoid, torch.tanh])
def test_saturated_units(kind, function: str, scale: float, low: float, high: float) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(16, 32), nn.Linear(32, 2)
            self.act = {torch.sigmoid: nn.Sigmoid, torch.tanh: nn.Tanh}[kind]()
            with torch.no_grad():
                self.first.bias.copy_(torch.where(torch.arange(32) % 2 == 0, 1.0, -1.0) * scale)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            return self.head(self.act(hidden) if function == "module" else kind(hidden))

    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(model, optimizer) as medic:
        model(torch.randn(64, 16)).sum().backward()
        optimizer.step()
    name = "act" if function == "module" else f"first:{kind.__name__}"
    history = medic.report().history
    assert low <= last(history, "saturated_units")[name] <= high
    assert history.architecture[name].activation == kind.__name__


def test_a_softmax_is_saturated_where_it_is_one_hot() -> None:
    shares = {}
    for scale in (0.1, 200.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 50), nn.Softmax(-1))
        with torch.no_grad():
            model[0].weight.mul_(scale)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with watched(model, optimizer) as medic:
            model(torch.randn(64, 8))[:, 0].sum().backward()
            optimizer.step()
        shares[scale] = last(medic.report().history, "saturated_outputs")["1"]
    assert shares[0.1] == 0
    assert shares[200.0] > 0.8


def test_outputs_that_do_not_depend_on_the_input() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    with torch.no_grad():
        model[1].weight.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(model, optimizer) as medic:
        model(torch.randn(64, 8)).square().sum().backward()
        optimizer.step()
    history = medic.report().history
    assert last(history, "activation_batch_std")["0"] > 0.1
    assert last(history, "activation_batch_std")["1"] == pytest.approx(0, abs=1e-6)
    assert history.series("output/batch_std").values[0] == pytest.approx(0, abs=1e-6)


def test_batch_norms() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=0.0), nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as medic:
        model[3].eval()
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(2, 3, 6, 6) + 5).square().mean().backward()
            optimizer.step()
    history = medic.report().history
    assert last(history, "batchnorm_training") == {"1": 1.0, "2": 1.0, "3": 0.0}
    assert last(history, "batchnorm_values") == {"1": 32.0, "2": 32.0, "3": 32.0}
    moved = last(history, "batchnorm_movement")
    assert moved["1"] > 0.01
    assert moved["2"] == moved["3"] == 0


def test_a_module_called_a_thousand_times_in_a_step_costs_a_few_measurements() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            for i in range(1_000):
                x = self.cell(x) * (0.0 if i < 3 else 1.0) + (7.0 if i == 2 else 0.0)
            return x

    model = Loop()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(model, optimizer) as medic:
        model(torch.randn(3, 4)).sum().backward()
        optimizer.step()
        assert medic._probe.activations._calls["cell"] == 0, "a new step counts anew"
    assert last(medic.report().history, "activation_max")["cell"] > 1


def test_what_several_calls_in_a_step_give_is_their_mean_and_the_largest_of_their_largest() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(model, optimizer) as medic:
        (model(torch.full((3, 2), 1.0)) + model(torch.full((3, 2), -5.0))).sum().backward()
        optimizer.step()
    history = medic.report().history
    assert last(history, "activation_mean")["0"] == -2.0
    assert last(history, "activation_max")["0"] == 5.0


def test_gradients_before_a_bad_step_are_kept_for_sixteen_steps() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with trainmedic.watch(model, optimizer, settings={"every": 1_000}) as medic:
        for i in range(60):
            optimizer.zero_grad()
            model(torch.randn(3, 4) * (math.nan if i == 50 else 1.0)).sum().backward()
            optimizer.step()
    table = medic.report().history.layers("gradient_norm")
    assert table.steps.tolist() == [*range(20), *range(34, 60)], "from step 50 on all weights are NaN"
    assert medic.history.series("gradient/nonfinite").values[50] == 2


@pytest.mark.parametrize("every", [1, 1_000])
def test_numbers_that_are_joined_and_sent_are_those_that_are_read_at_once(every: int, monkeypatch) -> None:
    """On a device they are joined and read a step later; the same way is taken here on the host."""

    def record() -> History:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3), nn.Sigmoid())
        optimizer = torch.optim.Adam(model.parameters(), torch.tensor(1e-3), capturable=False)
        with trainmedic.watch(model, optimizer, settings={"every": every}) as medic:
            for _ in range(25):
                optimizer.zero_grad()
                loss = model(torch.randn(6, 8)).square().mean()
                loss.backward()
                optimizer.step()
                medic.log(loss, twice=2 * loss.detach())
        return medic.report().history

    at_once = record()
    for module in ("trainmedic.hooks.reading", "trainmedic.logged"):
        monkeypatch.setattr(f"{module}.at_once", lambda tensor: False)
    sent = record()
    assert set(at_once.names()) == set(sent.names())
    for name in set(sent.names()) - {"time/step", "memory/host"}:
        assert at_once.series(name).steps.tolist() == sent.series(name).steps.tolist()
        assert at_once.series(name).values.tolist() == sent.series(name).values.tolist(), name
    for statistic in sent.statistics():
        assert at_once.layers(statistic).layers == sent.layers(statistic).layers
        assert np.array_equal(at_once.layers(statistic).values, sent.layers(statistic).values, equal_nan=True)
