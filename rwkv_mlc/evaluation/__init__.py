"""How good a model is, whatever runs it: a task asks a ``Scorer`` for log-probabilities and makes ``Metric`` of them, whose
intervals and differences come from the same resampling."""
