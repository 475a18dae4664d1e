"""A watched run computes the same numbers, and nothing of the watching stays behind."""

import copy
import io
import pickle
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import trainmedic
from tests.hooks.networks import KINDS, batch


def train(kind: str, steps: int, *, watched: bool) -> dict[str, Any]:
    """Train one kind of model and return everything that watching could have touched."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = KINDS[kind].model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    criterion = nn.CrossEntropyLoss()
    medic = trainmedic.watch(model, optimizer, loss_fn=criterion, settings={}) if watched else None
    losses = []
    for step in range(steps):
        x, y = batch(kind)
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if medic:
            medic.log(loss)
            if step % 50 == 0:
                medic.log_validation(loss)
    if medic:
        medic.report()
        medic.close()
    return {
        "losses": losses,
        "parameters": [parameter.detach() for parameter in model.state_dict().values()],
        "optimizer": [value for state in optimizer.state.values() for value in state.values()],
        "rng": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),
    }


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_bit_identical_to_an_unwatched_run(kind: str) -> None:
    bare, watched = train(kind, 200, watched=False), train(kind, 200, watched=True)
    for what in bare:
        assert equal(bare[what], watched[what]), what


def hooks_of(thing: Any) -> Iterator[str]:
    """Names of all hook registries of an object that are not empty."""
    for name, value in vars(thing).items():
        if "hook" in name and isinstance(value, dict) and value:
            yield name


def all_hooks(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    found = [f"{type(m).__name__}.{name}" for m in model.modules() for name in hooks_of(m)]
    found += [f"optimizer.{name}" for name in hooks_of(optimizer)]
    found += [n for n, p in model.named_parameters() if p._post_accumulate_grad_hooks or p._backward_hooks]
    registries = vars(nn.modules.module)
    found += [name for name in registries if name.startswith("_global") and name.endswith("hooks") and registries[name]]
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [0, 1, 30])
def test_close_leaves_no_hook(kind: str, steps: int) -> None:
    model = KINDS[kind].model()
    optimizer = torch.optim.Adam(model.parameters())
    scaler = torch.amp.GradScaler("cpu")
    with trainmedic.watch(model, optimizer, scaler=scaler, settings={}):
        assert all_hooks(model, optimizer)
        for _ in range(steps):
            x, y = batch(kind)
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert all_hooks(model, optimizer) == []
    assert "step" not in vars(scaler)


def test_close_frees_what_was_kept() -> None:
    model = KINDS["mlp"].model()
    optimizer = torch.optim.Adam(model.parameters())
    medic = trainmedic.watch(model, optimizer, settings={})
    for x, y in medic.batches([batch("mlp") for _ in range(5)]):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    medic.close()
    probe = medic._probe
    assert medic._keeping.examples == []
    assert not probe._backward._handles
    assert not probe._pending
    assert probe.activations._silence == {}


@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_a_watched_model_are_ordinary(kind: str) -> None:
    model = KINDS[kind].model()
    optimizer = torch.optim.Adam(model.parameters())
    keys = list(model.state_dict())
    with trainmedic.watch(model, optimizer, settings={}) as medic:
        x, y = batch(kind)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        copies = [
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.load(buffer, weights_only=False),
        ]
        assert list(model.state_dict()) == keys
        for made in copies:
            own = torch.optim.SGD(made.parameters(), lr=0.1)
            assert [hook for hook in all_hooks(made, own) if not hook.startswith("_global")] == []
            nn.functional.cross_entropy(made(x), y).backward()
            own.step()
        copied = copy.deepcopy(optimizer)
        assert list(hooks_of(copied)) == []
        assert medic._probe.step == 1, "training a copy is no step of the watched run"
