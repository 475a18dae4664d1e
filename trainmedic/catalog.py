"""The catalogue for people: rules and remedies from their own docstrings and fields.

Their files are parsed, not imported: with dozens of rules the imports (numpy, pydantic, and every rule's example
histories) would take longer than a command line may take to answer. A test holds this against the classes themselves.
"""

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainmedic.errors import UsageError, nearest

WIDTH = 100
BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
HEADINGS = (
    "Why it is bad",
    "Usual causes",
    "Formula",
    "Remedies",
    "Safety",
    "Works when",
    "Does not help",
    "Known limits",
    "Source",
)


def rules() -> list[dict[str, Any]]:
    """Every rule, by code, as plain values."""
    return sorted(map(_rule, _classes("diagnose", "rules", marked_by="code")), key=lambda entry: str(entry["code"]))


def remedies() -> list[dict[str, Any]]:
    """Every remedy, by name, as plain values."""
    return sorted(map(_remedy, _classes("remedies", marked_by="treats")), key=lambda entry: str(entry["name"]))


def find(name: str) -> dict[str, Any]:
    """The rule with this code or name, or the remedy with this name; ``UsageError`` with the nearest otherwise."""
    wanted = name.strip().lower()
    entries = [*rules(), *remedies()]
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


def _classes(package: str, folder: str = "", *, marked_by: str) -> Iterator[tuple[ast.ClassDef, dict[str, Any]]]:
    """The classes in a folder that set ``marked_by``, each with the plain values of its class variables."""
    spec = find_spec(f"trainmedic.{package}")
    for home in spec.submodule_search_locations or () if spec else ():
        for file in sorted(Path(home, folder).glob("[!_]*.py")):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    values = {name: _plain(value) for name, value, shared in _assignments(node) if shared}
                    if marked_by in values:
                        yield node, values


def _assignments(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr, bool]]:
    """(name, value, whether it is a class variable) of every annotated assignment in the body of a class."""
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.value is not None:
            yield part.target.id, part.value, "ClassVar" in ast.unparse(part.annotation)


def _rule(parsed: tuple[ast.ClassDef, dict[str, Any]]) -> dict[str, Any]:
    node, values = parsed
    return {
        "code": values["code"],
        "name": _name(node),
        "severity": values.get("severity", "error"),
        "root": values["root"].replace("_", " "),
        "needs": list(values["needs"]),
        "remedies": list(values.get("remedies", ())),
        "explains": list(values.get("explains", ())),
        "advice": values["advice"],
        "fields": _fields(node),
        "sections": sections(ast.get_docstring(node) or ""),
    }


def _remedy(parsed: tuple[ast.ClassDef, dict[str, Any]]) -> dict[str, Any]:
    node, values = parsed
    return {
        "name": _name(node),
        "safety": values["safety"],
        "treats": list(values["treats"]),
        "fields": _fields(node),
        "sections": sections(ast.get_docstring(node) or ""),
    }


def _name(node: ast.ClassDef) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", node.name).lower()


def _fields(node: ast.ClassDef) -> list[dict[str, Any]]:
    """Name, default, range and meaning of every field: ``name: type = Field(default, gt=0, description="...")``."""
    fields = []
    for name, value, shared in _assignments(node):
        if shared or name.startswith("_"):
            continue
        given = {key.arg: _plain(key.value) for key in value.keywords} if isinstance(value, ast.Call) else {}
        default = _plain(value.args[0]) if isinstance(value, ast.Call) and value.args else given.get("default")
        fields.append(
            {
                "name": name,
                "default": default if isinstance(value, ast.Call) else _plain(value),
                "range": " and ".join(f"{sign} {given[bound]}" for bound, sign in BOUNDS if bound in given),
                "description": given.get("description", ""),
            }
        )
    return fields


def _plain(value: ast.expr) -> Any:
    """A literal as it is, a member of an enumeration by its name in lower case, anything else as its source text."""
    if isinstance(value, ast.Attribute):
        return value.attr.lower()
    try:
        return ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value)


def sections(docstring: str) -> dict[str, str]:
    """A docstring by its headings; what stands before the first one is ``What it is``."""
    found: dict[str, str] = {}
    heading = "What it is"
    for line in docstring.strip().splitlines():
        for known in HEADINGS:
            if line.strip().startswith(known + ":"):
                heading, line = known, line.strip().removeprefix(known + ":")
        if line.strip():
            found[heading] = f"{found.get(heading, '')} {line.strip()}".strip()
    return found


def _field(field: Mapping[str, Any]) -> str:
    within = f" ({field['range']})" if field["range"] else ""
    text = f"{field['name']} = {field['default']}{within}  {field['description']}".rstrip()
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="      ")


def _paragraph(heading: str, text: str) -> str:
    return textwrap.fill(f"{heading}: {text}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _in_words(names: Iterable[str]) -> str:
    return ", ".join(name.replace("|", " or ") for name in names)


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".")
