"""Which layer computes something else: dumps of every named value, and their comparison."""
