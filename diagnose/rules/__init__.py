"""One file, one rule. Adding a file here adds the rule: the package is walked, there is no second list."""
