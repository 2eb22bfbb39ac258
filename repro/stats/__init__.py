"""Quantiles, intervals and ratios. Knows nothing of campaigns."""
