"""Bias unlearned from a trained network."""
