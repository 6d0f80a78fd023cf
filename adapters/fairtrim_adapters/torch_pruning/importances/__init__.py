"""Importances for the pruners of Torch-Pruning."""
