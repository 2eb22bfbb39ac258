"""Quantiles, intervals, ratios and trends. Knows nothing of campaigns."""
