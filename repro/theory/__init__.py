"""Models without data: CPython's rule, ranks in lock-step, advice. Numbers in, numbers out."""
