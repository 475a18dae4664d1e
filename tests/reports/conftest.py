"""A report with something of everything in it, and names that would like to do harm."""

import math

import pytest

from trainmedic.diagnose import Evidence, Finding, Severity
from trainmedic.diagnose.judge import NotChecked
from trainmedic.history import History
from trainmedic.remedies.change import Change, Treatment
from trainmedic.reports.report import Report

HOSTILE = "<script>alert(1)</script>[red]x[/red]\x1b[31mRED\x07 **bold** `code` | [link](http://x) \u202e\n# head"


def make_change(name: str = "fc1") -> Change:
    return Change(
        remedy="clip-gradients",
        target=(name,),
        before=None,
        after={"max_norm": math.inf, "of": [math.nan, 1]},
        summary="clipped the gradients to norm 1",
        code="torch.nn.utils.clip_grad_norm_(\n    model.parameters(), 1.0)\n```",
    )


def make_treatment(name: str = "fc1") -> Treatment:
    return Treatment(
        finding="f1",
        code="TM202",
        illness="exploding-gradient",
        change=make_change(name),
        step=60,
        decided_at=120,
        control=(Evidence(name="train/loss", value=math.nan),),
        treated=(Evidence(name="train/loss", value=0.25),),
        outcome="kept",
        reason="the loss went on falling",
    )


def make_report(name: str = "fc1") -> Report:
    root = Finding(
        id="f1",
        code="TM202",
        name="exploding-gradient",
        severity=Severity.ERROR,
        step=41,
        detected_at=57,
        where=tuple(f"{name}.{i}" for i in range(10)),
        message=f"the gradient of {name} grew from 1.2 to inf",
        evidence=(
            Evidence(name="gradient norm", value=math.inf, limit=1000.0),
            Evidence(name="loss", value=math.nan, unit="nats"),
        ),
        advice=f"lower the learning rate; else look at {name}",
        remedies=("clip-gradients", "lower-learning-rate"),
        confidence=0.9,
    )
    symptom = Finding(
        id="f2",
        code="TM101",
        name="non-finite",
        severity=Severity.ERROR,
        step=66,
        detected_at=66,
        where=("train/loss",),
        message="the loss is NaN from step 66 on",
        explained_by="f1",
    )
    history = History.of(train_loss=[1.0, 0.5, math.nan])
    history.add_series(name, [0, 1], [1.0, 2.0])
    history.facts["names"] = {"train/loss": name}
    return Report(
        history=history,
        findings=(root, symptom),
        checked=("TM101", "TM202"),
        not_checked=(
            NotChecked("TM301", "dead-relu", "no activations in this history"),
            NotChecked("TM302", "saturated-activation", "no activations in this history"),
        ),
        treatments=(make_treatment(name),),
        advised=(("f1", make_change(name)),),
        refused=(("insert-batchnorm", "the model is compiled"),),
        cost={"seconds": 1.25, "share": 0.008, "measured": 812, "steps": 900},
        notes=("writing stopped: OSError: No space left on device",),
        path=f"runs/{name}",
    )


@pytest.fixture
def report() -> Report:
    return make_report()


@pytest.fixture
def hostile_report() -> Report:
    return make_report(HOSTILE)


@pytest.fixture
def treatment() -> Treatment:
    return make_treatment()


@pytest.fixture
def calm_report() -> Report:
    history = History.of(train_loss=[3.0, 2.0, 1.0])
    cost = {"seconds": 1.25, "share": 0.008, "measured": 3, "steps": 3}
    return Report(history, checked=("TM101", "TM202"), cost=cost, path="runs/calm")
