"""How a trial is put in words, and that a file keeps all of it."""

import math

from trainmedic.diagnose import Evidence
from trainmedic.history import History
from trainmedic.remedies.change import Change, Rival, Treatment
from trainmedic.reports.report import Report
from trainmedic.reports.tensorboard import treatment_markdown
from trainmedic.reports.wording import columns, lost, tried

LOWER = Change(remedy="lower-learning-rate", summary="learning rate lowered from 0.1 to 0.03", code="pass")
CLIP = Change(remedy="clip-gradients", after={"limit": math.inf}, summary="gradients <clipped>", code="pass")
CONTROLLED = Treatment(
    finding="f1",
    code="TM601",
    illness="learning-rate-too-high",
    change=LOWER,
    step=400,
    decided_at=400,
    trial="controlled",
    outcome="kept",
    reason="the loss is lower with it than without",
    control=(Evidence(name="loss after 30 steps", value=2.0), Evidence(name="loss after 90 steps", value=1.9)),
    treated=(Evidence(name="loss after 30 steps", value=1.5), Evidence(name="loss after 90 steps", value=0.9)),
    horizons=(30, 90),
    judged_on="training data set apart",
    batches=10,
    effect=0.526,
    least_effect=0.05,
    p_value=0.0003,
    extra_steps=310,
    rivals=(Rival(change=CLIP, reason="no difference", effect=math.nan, treated=(Evidence(name="x", value=2.0),)),),
)


def test_a_controlled_trial_tells_its_numbers() -> None:
    assert columns(CONTROLLED) == ("without", "with")
    assert tried(CONTROLLED) == (
        "compared after 30 and 90 steps, on 10 batches of training data set apart, "
        "loss lower by 53 % (5 % needed), p = 0.0003, 310 extra steps"
    )
    assert lost(CONTROLLED) == [("gradients <clipped>", "no difference")]


def test_a_sequential_one_says_why_there_was_no_control() -> None:
    sequential = CONTROLLED.model_copy(update={"trial": "sequential", "uncontrolled": "no batch was\x1b[2J kept"})
    assert tried(sequential) == "no control: no batch was\\x1b[2J kept"
    assert tried(sequential.model_copy(update={"uncontrolled": ""})) == ""


def test_every_report_shows_what_was_tried_and_lost() -> None:
    report = Report(history=History(), treatments=(CONTROLLED,))
    assert "gradients <clipped>: no difference" in " ".join(report.to_text(width=200).split())
    assert "310 extra steps" in " ".join(report.to_text(width=200).split())
    assert "**Lost:** gradients &lt;clipped&gt;: no difference" in treatment_markdown(CONTROLLED)


def test_the_document_keeps_all_of_it() -> None:
    report = Report(history=History(), treatments=(CONTROLLED,))
    run = report.run_dict()
    again = Report.from_dict(run, History()).treatments[0]
    assert again.rivals[0].effect is not None
    assert math.isnan(again.rivals[0].effect)
    assert run["treatments"][0]["rivals"][0]["change"]["after"] == {"limit": "Infinity"}
    kept = {"rivals", "change"}
    assert again.model_dump(exclude=kept) == CONTROLLED.model_dump(exclude=kept)
