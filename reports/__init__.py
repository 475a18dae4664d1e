"""Show: ``History``, ``Findings`` and ``Treatments`` go in; terminal, TensorBoard and JSON come out."""
