"""The catalogue for people: rules and remedies from their own docstrings and fields."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainmedic.errors import UsageError, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel

    from trainmedic.diagnose import Rule
    from trainmedic.remedies.remedy import Remedy

WIDTH = 100
BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))


def rules() -> list[dict[str, Any]]:
    """Every rule, by code, as plain values."""
    from trainmedic.diagnose.judge import catalogue

    return [_rule(rule) for rule in catalogue()]


def remedies() -> list[dict[str, Any]]:
    """Every remedy, by name, as plain values."""
    from trainmedic.remedies.remedy import pharmacy

    return [_remedy(remedy) for remedy in pharmacy()]


def find(name: str) -> dict[str, Any]:
    """The rule with this code or name, or the remedy with this name; ``UsageError`` with the nearest otherwise."""
    wanted = name.strip().lower()
    entries: list[dict[str, Any]] = []
    for kind in (rules, remedies):
        entries += kind()
        for entry in entries:
            if wanted in (entry.get("code", "").lower(), entry["name"]):
                return entry
    known = [word for entry in entries for word in (entry.get("code"), entry["name"]) if word]
    hint = nearest(name, known)
    raise UsageError(f"no rule or remedy {name!r}{hint} (see: trainmedic rules, trainmedic remedies)")


def overview(entries: Sequence[Mapping[str, Any]]) -> str:
    """One line for each rule or remedy."""
    labels = [f"{entry['code']}  {entry['name']}" if "code" in entry else str(entry["name"]) for entry in entries]
    kinds = [str(entry.get("severity") or entry.get("safety")) for entry in entries]
    wide, kind_wide = max(map(len, labels), default=0), max(map(len, kinds), default=0)
    indent = " " * (wide + kind_wide + 4)
    return "\n".join(
        textwrap.fill(
            f"{label:<{wide}}  {kind:<{kind_wide}}  {_first_sentence(entry['sections'].get('What it is', ''))}",
            WIDTH,
            subsequent_indent=indent,
        )
        for label, kind, entry in zip(labels, kinds, entries, strict=True)
    )


def page(entry: Mapping[str, Any]) -> str:
    """All there is to know about one rule or remedy."""
    title = f"{entry['code']} {entry['name']}" if "code" in entry else str(entry["name"])
    kind = f"rule, {entry['severity']}" if "code" in entry else f"remedy, {entry['safety']}"
    parts = [f"{title} ({kind})"]
    parts += [_paragraph(heading, text) for heading, text in entry["sections"].items() if heading != "Remedies"]
    named = (("needs", "Needs"), ("remedies", "Remedies"), ("explains", "Explains"), ("treats", "Treats"))
    parts += [_paragraph(heading, _in_words(entry[key])) for key, heading in named if entry.get(key)]
    if entry["fields"]:
        parts.append("\n".join(["Thresholds:" if "code" in entry else "Constants:", *map(_field, entry["fields"])]))
    return "\n\n".join(parts)


def _rule(rule: "type[Rule]") -> dict[str, Any]:
    return {
        "code": rule.code,
        "name": rule.name,
        "severity": str(rule.severity),
        "root": rule.root.name.lower().replace("_", " "),
        "needs": list(rule.needs),
        "remedies": list(rule.remedies),
        "explains": list(rule.explains),
        "advice": rule.advice,
        "fields": _fields(rule),
        "sections": rule.sections(),
    }


def _remedy(remedy: "type[Remedy]") -> dict[str, Any]:
    return {
        "name": remedy.name,
        "safety": str(remedy.safety),
        "treats": list(remedy.treats),
        "fields": _fields(remedy),
        "sections": remedy.sections(),
    }


def _fields(model: "type[BaseModel]") -> list[dict[str, Any]]:
    """Name, default, range, unit and meaning of every field, as pydantic knows them."""
    fields = []
    for name, field in model.model_fields.items():
        bounds = [f"{sign} {getattr(one, key)}" for one in field.metadata for key, sign in BOUNDS if hasattr(one, key)]
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        fields.append(
            {
                "name": name,
                "default": field.default,
                "range": " and ".join(bounds),
                "unit": extra.get("unit", ""),
                "description": field.description or "",
            }
        )
    return fields


def _field(field: Mapping[str, Any]) -> str:
    unit = f" {field['unit']}" if field["unit"] else ""
    within = f" ({field['range']})" if field["range"] else ""
    text = f"{field['name']} = {field['default']}{unit}{within}  {field['description']}".rstrip()
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="      ")


def _paragraph(heading: str, text: str) -> str:
    return textwrap.fill(f"{heading}: {text}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _in_words(names: Iterable[str]) -> str:
    return ", ".join(name.replace("|", " or ") for name in names)


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".")
