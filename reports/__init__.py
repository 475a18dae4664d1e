"""Show: ``History``, ``Findings`` and ``Treatments`` go in; a page, TensorBoard, text and JSON come out."""
