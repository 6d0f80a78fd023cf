"""Importances for the pruners of Torch-Pruning: a file each, found by their ``name``."""
