"""Reads recorded runs back: one run directory, one campaign, one process's recording."""

from repro.dataset.campaign import Campaign, in_window, is_campaign, load, subset, under_load
from repro.dataset.run import DatasetError

__all__ = ["Campaign", "DatasetError", "in_window", "is_campaign", "load", "subset", "under_load"]
