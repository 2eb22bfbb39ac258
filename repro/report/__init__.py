"""Figures, tables, notebooks and pages for people."""
