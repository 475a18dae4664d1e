"""Judge: a ``History`` goes in, ``Findings`` come out. One illness, one file, in ``rules/``. Imports no torch."""

from trainmedic.diagnose.finding import Evidence, Finding, Severity, number_to_json
from trainmedic.diagnose.rule import Root, Rule, sections
from trainmedic.diagnose.suppression import Suppression

__all__ = ["Evidence", "Finding", "Root", "Rule", "Severity", "Suppression", "number_to_json", "sections"]
