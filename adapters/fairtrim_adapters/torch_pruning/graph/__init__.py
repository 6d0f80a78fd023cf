"""Torch-Pruning's dependency graph, corrected, and the plan of a step."""
