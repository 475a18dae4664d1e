"""Runs of every kind: measured, or told why not, and never disturbed."""

import dataclasses
import functools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import trainmedic
from trainmedic.history import History

ROOT = Path(__file__).parents[2]


def train(
    model: nn.Module,
    loss: Callable[[], Tensor],
    *,
    steps: int = 30,
    every: int | None = 1,
    watch: bool = True,
    make: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.Adam(p, 1e-3),
    logdir: Path | None = None,
) -> tuple[list[Tensor], History | None, tuple[str, ...]]:
    """Parameters after some steps, what was recorded, and the notes of the report."""
    torch.manual_seed(1)
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    options = {"settings": {"every": every} if every else {}, "logdir": logdir}
    medic = trainmedic.watch(model, optimizer, **options) if watch else None
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        if medic:
            medic.log(value)
    if medic:
        medic.close()
    after = [p.detach().clone() for p in model.parameters()]
    report = medic.report() if medic else None
    return (after, report.history, report.notes) if report else (after, None, ())


Watch = Callable[[Any, Any], Any]


class Unwatched:
    """Stands where a medic would."""

    def __init__(self, *_: object) -> None:
        self.log = self.log_validation = lambda *_: None

    def __enter__(self) -> "Unwatched":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@dataclasses.dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


class HuggingFaceStyle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, *, input_ids: Tensor, labels: Tensor | None = None) -> Output:
        logits = self.head(torch.tanh(self.block(self.embed(input_ids).mean(1))))
        return Output(None if labels is None else F.cross_entropy(logits, labels), logits)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu_(self.act(self.conv(x)) + 1).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.rnn, self.head = kind(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.rnn(x)[0][:, -1])}


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.body, self.head = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, self.first(x), use_reentrant=self.reentrant))


class Scores(NamedTuple):
    scores: Tensor
    hidden: Tensor


class SeveralCalls(nn.Module):
    """One cell that runs three times, and a tuple that comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.act, self.head = nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Scores:
        for _ in range(3):
            x = self.act(self.cell(x))
        return Scores(self.head(x), x)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x)[0].mean(1))


class Tied(nn.Module):
    def __init__(self, *, sparse: bool = False) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8, sparse=sparse), nn.Linear(8, 20, bias=False)
        if not sparse:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x).mean(1))[:, :3]


def cases() -> dict[str, tuple[nn.Module, Callable[[nn.Module], Callable[[], Tensor]]]]:
    labels = torch.randint(0, 3, (6,))
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3))
    mixed = nn.Sequential(nn.Linear(8, 3))
    mixed.register_buffer("phase", torch.zeros(4, dtype=torch.complex64))
    mixed.register_buffer("count", torch.zeros(4, dtype=torch.int64))

    def of(make_input: Callable[[], Tensor]) -> Callable[[nn.Module], Callable[[], Tensor]]:
        return lambda model: lambda: F.cross_entropy(model(make_input()), labels)

    def autocast(model: nn.Module) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return F.cross_entropy(model(torch.randn(6, 8)), labels)

        return loss

    def functional(model: nn.Module) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            weights = {name: 2 * p for name, p in model.named_parameters()}
            return F.cross_entropy(torch.func.functional_call(model, weights, torch.randn(6, 8)), labels)

        return loss

    def vmapped(model: nn.Module) -> Callable[[], Tensor]:
        return lambda: F.cross_entropy(torch.func.vmap(model, randomness="different")(torch.randn(6, 8)), labels)

    def huggingface(model: nn.Module) -> Callable[[], Tensor]:
        return lambda: model(input_ids=torch.randint(0, 20, (6, 5)), labels=labels).loss

    def penalised(model: nn.Module) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            x = torch.randn(6, 8, requires_grad=True)
            value = F.cross_entropy(model(x), labels)
            (slope,) = torch.autograd.grad(value, x, create_graph=True)
            return value + slope.square().sum()

        return loss

    wide = lambda: torch.randn(6, 8)  # noqa: E731
    image = lambda: torch.randn(6, 3, 8, 8)  # noqa: E731
    series = lambda: torch.randn(6, 5, 4)  # noqa: E731
    series_of_8 = lambda: torch.randn(6, 5, 8)  # noqa: E731
    words = lambda: torch.randint(0, 20, (6, 4))  # noqa: E731
    dictionary = lambda model: lambda: F.cross_entropy(model(series())["logits"], labels)  # noqa: E731
    return {
        "dropout": (plain, of(wide)),
        "several calls, a tuple": (SeveralCalls(), lambda m: lambda: F.cross_entropy(m(wide()).scores, labels)),
        "attention": (Attending(), of(series_of_8)),
        "tied": (Tied(), of(words)),
        "sparse": (Tied(sparse=True), of(words)),
        "frozen": (nn.Sequential(nn.Linear(8, 8).requires_grad_(False), nn.ReLU(), nn.Linear(8, 3)), of(wide)),
        "complex weights": (
            nn.Linear(8, 3, dtype=torch.complex64),
            lambda m: lambda: F.cross_entropy(m(torch.randn(6, 8, dtype=torch.complex64)).abs(), labels),
        ),
        "bfloat16": (
            nn.Linear(8, 3).bfloat16(),
            lambda m: lambda: F.cross_entropy(m(wide().bfloat16()).float(), labels),
        ),
        "dataclass, keywords": (HuggingFaceStyle(), huggingface),
        "in place": (InPlace(), of(image)),
        "lstm": (Recurrent(nn.LSTM), dictionary),
        "gru": (Recurrent(nn.GRU), dictionary),
        "transformer": (
            nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)),
            of(lambda: torch.randn(6, 5, 8)),
        ),
        "checkpoint": (Checkpointed(False), of(wide)),
        "checkpoint, reentrant": (Checkpointed(True), of(wide)),
        "weight norm": (normed, of(wide)),
        "spectral norm": (spectral, of(wide)),
        "other buffers": (mixed, of(wide)),
        "bfloat16 autocast": (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), autocast),
        "functional_call": (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), functional),
        "vmap": (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), vmapped),
        "gradient penalty": (nn.Sequential(nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 3)), penalised),
        "channels last": (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).to(
                memory_format=torch.channels_last
            ),
            of(lambda: torch.randn(6, 3, 8, 8).contiguous(memory_format=torch.channels_last)),
        ),
    }


UNSEEN = {
    "vmap": "activations inside vmap or grad: single values",
    "complex weights": "activations that are complex: their statistics",
}


@pytest.mark.parametrize("every", [1, 1_000])
@pytest.mark.parametrize("name", list(cases()))
def test_it_is_measured_and_bit_for_bit_undisturbed(name: str, every: int, tmp_path: Path) -> None:
    results = []
    logdir = tmp_path if every == 1 else None  # with histograms
    for watch in (False, True):
        torch.manual_seed(0)
        model, make_loss = cases()[name]
        make = (lambda p: torch.optim.SGD(p, 0.1)) if name == "sparse" else (lambda p: torch.optim.Adam(p, 1e-3))
        results.append(train(model, make_loss(model), watch=watch, every=every, make=make, logdir=logdir))
    (bare, *_), (watched, history, notes) = results
    assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))
    assert history is not None
    assert len(history.series("gradient/norm").steps) == 30
    assert (history.series("gradient/norm").values > 0).all()
    assert len(history.layers("update_ratio").steps) == (30 if every == 1 else 20)
    if logdir is not None:
        written = next(logdir.glob("events.*")).read_bytes()
        assert b"weights/" in written
        assert b"gradients/" in written
    if name in UNSEEN:
        assert "activation_std" not in history
        assert any(UNSEEN[name] in note for note in notes)
    else:
        assert len(history.layers("activation_std").steps) == (30 if every == 1 else 20)


def accumulating(steps: Callable[[], Watch]) -> list[nn.Module]:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with steps()(model, optimizer) as medic:
        for _ in range(25):
            optimizer.zero_grad()
            for _ in range(3):
                loss = model(torch.randn(6, 8)).square().mean() / 3
                loss.backward()
                medic.log(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
    return [model]


def closures(steps: Callable[[], Watch]) -> list[nn.Module]:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=3)
    with steps()(model, optimizer) as medic:
        for _ in range(25):
            x = torch.randn(6, 8)

            def closure(x: Tensor = x) -> Tensor:
                optimizer.zero_grad()
                loss = (model(x) - x[:, :3]).square().mean()
                loss.backward()
                return loss

            medic.log(optimizer.step(closure))
    return [model]


def adversaries(steps: Callable[[], Watch]) -> list[nn.Module]:
    critic = nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(), nn.Linear(8, 1))
    maker = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
    optimizers = [torch.optim.Adam(model.parameters(), 1e-2) for model in (critic, maker)]
    with steps()([critic, maker], optimizers) as medic:
        for _ in range(25):
            fake = maker(torch.randn(6, 4))
            optimizers[0].zero_grad()
            loss = critic(fake.detach()).mean() - critic(torch.randn(6, 8)).mean()
            loss.backward()
            optimizers[0].step()
            optimizers[1].zero_grad()
            (-critic(fake).mean()).backward()
            optimizers[1].step()
            medic.log(loss)
    return [critic, maker]


def evaluating(steps: Callable[[], Watch]) -> list[nn.Module]:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with steps()(model, optimizer) as medic:
        for step in range(25):
            optimizer.zero_grad()
            loss = model(torch.randn(6, 8)).square().mean()
            loss.backward()
            optimizer.step()
            medic.log(loss)
            if step % 5 == 0:
                model.eval()
                with torch.no_grad():
                    medic.log_validation(model(torch.randn(6, 8)).square().mean())
                model.train()
    return [model]


@pytest.mark.parametrize("every", [1, 1_000])
@pytest.mark.parametrize("loop", [accumulating, closures, adversaries, evaluating])
def test_loops_of_all_kinds_are_bit_for_bit_undisturbed(loop, every: int, tmp_path: Path) -> None:
    trained = []
    options = {"settings": {"every": every}, "logdir": tmp_path if every == 1 else None}  # with histograms
    for watch in (lambda: Unwatched, lambda: functools.partial(trainmedic.watch, **options)):
        torch.manual_seed(0)
        trained.append([value for model in loop(watch) for value in model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


def test_a_recomputation_is_not_a_second_call() -> None:
    for reentrant in (False, True):
        torch.manual_seed(0)
        model = Checkpointed(reentrant)
        _, history, _ = train(model, lambda m=model: m(torch.randn(6, 8)).square().mean(), steps=3)
        assert dict(history.layers("dead_samples").latest())["body.1"] == 18


def test_fp16_with_a_scaler_is_measured_without_the_scale() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with trainmedic.watch(model, optimizer, scaler=scaler, settings={"every": 1}) as medic:
        for _ in range(5):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = F.cross_entropy(model(torch.randn(6, 8)), torch.randint(0, 3, (6,)))
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            plain = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]))
            scaler.step(optimizer)
            scaler.update()
            medic.log(loss)
    history = medic.report().history
    assert history.series("gradient/norm").values[-1] == pytest.approx(plain, rel=1e-3)
    assert history.series("gradient/clipped").values.tolist() == pytest.approx([1.0] * 5, rel=1e-3)


def test_attention_that_takes_the_fast_path_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    taken = []
    fused = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *a, **k: taken.append(1) or fused(*a, **k))
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2)
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(4, 5, 8)
    with torch.no_grad():
        bare = model.eval()(x)
    with trainmedic.watch(model, optimizer, settings={"every": 1}) as medic:
        model.eval()
        with torch.no_grad():
            assert torch.equal(model(x), bare)
        assert len(taken) == 4, "two layers, without the medic and with it"
        model.train()
        model(x).square().mean().backward()
        optimizer.step()
    assert any("self_attn" in name for name in medic.report().history.layers("activation_std").layers)


def test_a_deep_model_costs_time_and_memory_in_proportion() -> None:
    class Deep(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + 0.01 * layer(x)
            return x

    seconds = {}
    for depth in (500, 2_000):
        model = Deep(depth)
        start = time.perf_counter()
        _, history, _ = train(model, lambda m=model: m(torch.randn(2, 4)).square().mean(), steps=2)
        seconds[depth] = time.perf_counter() - start
        assert len(history.layers("activation_std").layers) == depth
        assert len(history.layers("gradient_norm").layers) == 2 * depth
    assert seconds[2_000] < 12 * seconds[500], "not quadratic"


def test_a_long_recording_stays_small_in_memory_and_comes_back_from_its_file() -> None:
    """The whole process is measured; a million steps are ``python benchmarks/recording.py``."""
    # tables hold 1,024 rows and series 16,384 values before they are thinned: this fills both
    command = [sys.executable, "benchmarks/recording.py", "--steps", "20000", "--every", "12"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ)
    megabytes = float(re.search(r"memory ([0-9.]+) MB", answer.stdout)[1])
    assert 10 < megabytes < 100
    assert "loaded as it was saved" in answer.stdout


def test_watching_begins_and_ends_in_the_middle_of_a_run() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(6, 8)), torch.randint(0, 3, (6,))).backward()
        optimizer.step()

    step()
    for _ in range(2):
        x = model(torch.randn(6, 8))  # a forward pass before watching begins, whose backward pass comes after
        medic = trainmedic.watch(model, optimizer, settings={"every": 1})
        x.sum().backward()
        optimizer.step()
        for _ in range(5):
            step()
        y = model(torch.randn(6, 8)).sum()
        medic.close()
        y.backward()
        optimizer.step()
        assert medic.report().history.series("gradient/norm").steps.tolist() == list(range(6))
    step()
