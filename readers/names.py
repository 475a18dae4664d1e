"""What a log's own names mean. A name that is not known for sure stays as it is: never guessed into a wrong role."""

import re
from collections.abc import Iterable, Sequence

TRAIN = ("train", "training")
VALIDATION = ("val", "valid", "validation", "eval", "evaluation", "dev")
EVALUATION = re.compile(rf"(?:{'|'.join(VALIDATION)})(?![a-z])", re.IGNORECASE)
ACCURACY = ("acc", "accuracy")
STEPS = (
    *("step", "global_step", "trainer/global_step", "train/global_step", "_step", "current_steps", "global_steps"),
    *("iteration", "iterations", "iter", "iters", "it", "num_updates", "update", "updates", "batch"),
)
EPOCHS = ("epoch", "epochs")

RATES = re.compile(r"(?:train/|train_)?(?:lr|learning_rate)(?:-\w+)?(?:/pg(\d+))?")
NORMS = re.compile(
    r"(?:train/|train_)?(?:total_|global_)?(?:grad|gradient)_?norm(?:_total)?|grad(?:_2(?:\.0)?)_norm_total|gradient/norm"
)
SCALES = ("loss_scale", "train/loss_scale", "grad_scale", "optimizer/loss_scale")


def step_column(names: Iterable[str]) -> str | None:
    """The column that counts steps, or else epochs, if there is one."""
    by_lower = {name.strip().lower(): name for name in reversed(list(names))}
    return next((by_lower[known] for known in (*STEPS, *EPOCHS) if known in by_lower), None)


def counts_epochs(name: str) -> bool:
    """Whether a column found by :func:`step_column` counts epochs."""
    return name.strip().lower() in EPOCHS


def canonical(names: Sequence[str]) -> dict[str, str]:
    """What each name that is known stands for, ``{name in the log: name of our series}``.

    Each of our series is given once, to the name that says it best; names that are not in the result stay as they are.
    """
    claims: list[tuple[int, int, str, str]] = []
    for place, name in enumerate(names):
        meaning = _meaning(name, names)
        if meaning is not None:
            claims.append((meaning[0], place, name, meaning[1]))
    taken: dict[str, str] = {}
    unclaimed = set(names)
    for _, _, name, series in sorted(claims):
        if series not in taken.values() and (series == name or series not in unclaimed):
            taken[name] = series
            unclaimed.discard(name)
    return taken


def _meaning(name: str, among: Sequence[str]) -> tuple[int, str] | None:
    """(0 for sure to 3, our series) for one name among all the names of the log."""
    lower = _snake(name)
    rate = RATES.fullmatch(lower)
    if rate or lower == "optimizer/learning_rate":
        group = int(rate[1] or 0) if rate else 0
        return 1, "optimizer/learning_rate" + (f"/{group}" if group else "")
    if NORMS.fullmatch(lower):
        return 1, "gradient/norm"
    if lower in SCALES:
        return 1, "optimizer/loss_scale"
    return _by_role(lower) or _bare(lower, among)


def _by_role(lower: str) -> tuple[int, str] | None:
    """Names that say whether they are of training or of validation: ``val_loss``, ``loss/train``, ``eval/set/loss``."""
    for words, role in ((TRAIN, "train"), (VALIDATION, "validation")):
        alternatives = "|".join(words)
        first = re.fullmatch(rf"(?:{alternatives})[/_.-](.+)", lower)
        last = re.fullmatch(rf"(loss|acc|accuracy)[/_.-](?:{alternatives})", lower)
        found = first or last
        if found:
            sure, metric = _averaged(found[1], role)
            return sure, f"{role}/{metric}"
    return None


def _averaged(metric: str, role: str) -> tuple[int, str]:
    """Lightning adds ``_step`` and ``_epoch`` where it logs both: of training each step says more, of validation the
    mean over the epoch."""
    for suffix, best_for in (("_step", "train"), ("_epoch", "validation")):
        plain = metric.removesuffix(suffix)
        if plain != metric and plain in ("loss", *ACCURACY):
            return (1 if role == best_for else 2), _metric(plain)
    return 0, _metric(metric)


def _bare(lower: str, among: Sequence[str]) -> tuple[int, str] | None:
    """Names without a role: the loss is that of training; accuracy only beside one of validation, as in Keras."""
    if lower in ("loss", "loss_step", "loss_epoch", "total_loss"):
        return 2 + (lower != "loss"), "train/loss"
    paired = any(_snake(other) in (f"val_{lower}", f"val/{lower}") for other in among)
    if lower in ACCURACY and paired:
        return 2, "train/accuracy"
    return None


def _metric(metric: str) -> str:
    return "accuracy" if metric in ACCURACY else metric


def _snake(name: str) -> str:
    """``trainLoss`` and ``Train Loss`` as ``train_loss``."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", name.strip())
    return re.sub(r"\s+", "_", spaced).lower()
