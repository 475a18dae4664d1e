"""What a log's own names mean. A name that is not known for sure stays as it is: never guessed into a wrong role."""

import re
from collections.abc import Iterable, Mapping, Sequence

TRAIN = ("train", "training")
VALIDATION = ("val", "valid", "validation", "eval", "evaluation", "dev")
EVALUATION = re.compile(rf"(?:{'|'.join(VALIDATION)})(?![a-z])", re.IGNORECASE)
STEPS = (
    *("step", "global_step", "trainer/global_step", "train/global_step", "_step", "current_steps", "global_steps"),
    *("iteration", "iterations", "iter", "iters", "it", "num_updates", "update", "updates", "batch"),
)
EPOCHS = ("epoch", "epochs")

ACCURACY = (
    *("acc", "accuracy", "acc1", "acc@1", "acc_1", "acc_top1", "top1", "top_1", "top1_acc", "top1_accuracy", "prec@1"),
    *("accuracy_top1", "binary_accuracy", "categorical_accuracy", "sparse_categorical_accuracy", "multiclass_accuracy"),
)
LOSSES = (
    "total_loss",
    "loss_total",
    "loss/total",
    "lm_loss",
    "avg_loss",
    "loss_avg",
    "mean_loss",
    "loss_mean",
)
METRICS = {**dict.fromkeys(ACCURACY, "accuracy"), "ppl": "perplexity", "err": "error", "error_rate": "error"}
ROLE_BEHIND = ("loss", "error", "err", "perplexity", "ppl", "mse", "mae", "rmse", "f1", "auc", *ACCURACY)
BEHIND = "|".join(map(re.escape, ROLE_BEHIND))
"""Metrics that a role may stand behind: ``loss/train``. Elsewhere ``train`` at the end says something else."""

BEFORE = r"(?:(?:train|training|optim|optimizer|opt|charts|schedule)[/_.])?"
RATES = re.compile(rf"{BEFORE}(?:lr|learning_rate)(?:-\w+)?(?:(?:/pg|/group_?|_group_?|_pg)(\d+))?")
NORMS = re.compile(
    rf"{BEFORE}(?:total_|global_|l2_)?(?:grad|gradient)_?norm(?:[_/](?:total|global))?|gnorm|train_gnorm"
    r"|grad(?:_2(?:\.0)?)_norm_total|gradient/norm|l2_norm/grad/global"
)
SCALES = re.compile(rf"{BEFORE}(?:loss_scale|grad_scale)|amp/scale|scaler/scale")
LAYERS = (
    (re.compile(r"(?:train[/_])?grad_2(?:\.0)?_norm/(.+)|l2_norm/grad/(?!global$)(.+)"), "gradient_norm"),
    (re.compile(r"l2_norm/param/(?!global$)(.+)"), "weight_norm"),
)
"""Norms of single parameters, as Lightning's ``grad_norm`` and Composer's monitor name them."""
SPELT_OUT = {
    "loss_metrics/global_avg_loss": "train/loss",  # torchtitan
    "train/samples/train_loss": "train/loss",  # DeepSpeed
    "train/samples/lr": "optimizer/learning_rate",
    "train/samples/loss_scale": "optimizer/loss_scale",
    "lm_loss_validation": "validation/loss",  # Megatron
}
TIMES = (("time", "data_time"), ("iter_time", "data_time"), ("batch_time", "data_time"))
"""What a step takes and what of it is spent on loading, in seconds, where both are told under such names."""


def step_column(names: Iterable[str]) -> str | None:
    """The column that counts steps, or else epochs, if there is one."""
    by_lower = {name.strip().lower(): name for name in reversed(list(names))}
    return next((by_lower[known] for known in (*STEPS, *EPOCHS) if known in by_lower), None)


def counts_epochs(name: str) -> bool:
    """Whether a column found by :func:`step_column` counts epochs."""
    return name.strip().lower() in EPOCHS


def layer_of(name: str) -> tuple[str, str] | None:
    """(statistic, layer) for a name that tells of one layer, else ``None``."""
    for known, statistic in LAYERS:
        found = known.fullmatch(name)
        if found:
            return statistic, next(group for group in found.groups() if group)
    return None


def evaluation_sets(names: Iterable[str]) -> list[str]:
    """Names of evaluation sets: Hugging Face's Trainer writes a runtime for each. Longest first."""
    found = {match[1] for name in set(names) if (match := re.fullmatch(r"eval[_/](.+)_runtime", name))}
    return sorted(found, key=lambda name: (-len(name), name))


def canonical(names: Sequence[str], counts: Mapping[str, int] | None = None) -> dict[str, str]:
    """What each name that is known stands for, ``{name in the log: name of our series}``.

    Each of our series is given once, to the name that says it best; names that are not in the result stay as they are.
    ``counts`` says how many values stand under each name: a single one, as in the summary of a run, comes last.
    """
    known = _Names(names)
    claims: list[tuple[bool, int, int, str, str]] = []
    for place, name in enumerate(names):
        meaning = known.meaning(name)
        if meaning is not None:
            claims.append((counts is not None and counts.get(name) == 1, meaning[0], place, name, meaning[1]))
    if not any(series.startswith("validation/") for *_, series in claims):
        claims += _tested(names, counts)
    taken: dict[str, str] = {}
    unclaimed = set(names)
    for *_, name, series in sorted(claims):
        if name not in taken and series not in taken.values() and (series == name or series not in unclaimed):
            taken[name] = series
            unclaimed.discard(name)
    return taken


def _tested(names: Sequence[str], counts: Mapping[str, int] | None) -> list[tuple[bool, int, int, str, str]]:
    """Where nothing else is: what is measured on the test set all along the training is a validation."""
    found = [(place, name, re.fullmatch(r"test[/_](.+)", _snake(name))) for place, name in enumerate(names)]
    return [
        (False, 3, place, name, f"validation/{_metric(match[1])}")
        for place, name, match in found
        if match and counts is not None and counts.get(name, 0) > 2
    ]


class _Names:
    """The names of one log: what one means may depend on the others."""

    def __init__(self, names: Sequence[str]) -> None:
        self.all = {_snake(name) for name in names}
        self.sets = evaluation_sets(names)
        self.times = next((pair for pair in TIMES if self.all.issuperset(pair)), None)

    def meaning(self, name: str) -> tuple[int, str] | None:
        """(0 for sure to 3, our series) for one of the names."""
        lower = _snake(name)
        rate = RATES.fullmatch(lower)
        if rate:
            group = int(rate[1] or 0)
            return 1, "optimizer/learning_rate" + (f"/{group}" if group else "")
        if NORMS.fullmatch(lower):
            return 1, "gradient/norm"
        if SCALES.fullmatch(lower):
            return 1, "optimizer/loss_scale"
        if lower in SPELT_OUT:
            return 1, SPELT_OUT[lower]
        if self.times and lower in self.times:
            return 1, ("time/step", "time/data")[self.times.index(lower)]
        return self._by_role(lower) or self._bare(lower)

    def _by_role(self, lower: str) -> tuple[int, str] | None:
        """Names that say what they are of: ``val_loss``, ``loss/train``, ``eval/set/loss``."""
        plain = re.sub(r"^(?:avg|mean|average)_|^metrics/", "", lower)
        for words, role in ((TRAIN, "train"), (VALIDATION, "validation")):
            alternatives = "|".join(words)
            first = re.fullmatch(rf"(?:{alternatives})[/_.-](.+)", plain)
            last = re.fullmatch(rf"({BEHIND})[/_.-](?:{alternatives})(?:/total)?", plain)
            found = first or last
            if found:
                sure, metric = self._averaged(self._of_set(found[1]), role)
                return sure + (plain != lower), f"{role}/{metric}"
        return None

    def _of_set(self, metric: str) -> str:
        """``hard_set_loss`` as ``hard_set/loss`` where ``hard_set`` is an evaluation set."""
        for name in self.sets:
            if metric.startswith(f"{name.lower()}_"):
                return f"{name}/{metric[len(name) + 1 :]}"
        return metric

    def _averaged(self, metric: str, role: str) -> tuple[int, str]:
        """Lightning adds ``_step`` and ``_epoch`` where it logs both: of training each step says more, of validation
        the mean over the epoch."""
        for suffix, best_for in (("_step", "train"), ("_epoch", "validation")):
            plain = metric.removesuffix(suffix)
            if plain != metric and plain in ("loss", *ACCURACY):
                return (1 if role == best_for else 2), _metric(plain)
        return (1, "loss") if metric in LOSSES else (0, _metric(metric))

    def _bare(self, lower: str) -> tuple[int, str] | None:
        """Names without a role: the loss is that of training; others only beside one of validation, as in Keras."""
        if lower in ("loss", "loss_step", "loss_epoch") or lower in LOSSES:
            return 2 + (lower != "loss"), "train/loss"
        paired = not self.all.isdisjoint((f"val_{lower}", f"val/{lower}"))
        like_keras = {"loss", "val_loss"} <= self.all
        if paired and (lower in ACCURACY or like_keras) and lower not in (*STEPS, *EPOCHS):
            return 2, f"train/{_metric(lower)}"
        return None


def _metric(metric: str) -> str:
    *place, last = metric.split("/")
    return "/".join([*place, METRICS.get(last, last)])


def _snake(name: str) -> str:
    """``trainLoss``, ``Train Loss`` and ``grad-norm`` as ``train_loss`` and ``grad_norm``."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", name.strip())
    lower = re.sub(r"\s+", "_", spaced).lower()
    return re.sub(r"^(grad|learning|loss|lm)-(?=[a-z])", r"\1_", lower)
