"""Figures of scores, labels and groups."""
