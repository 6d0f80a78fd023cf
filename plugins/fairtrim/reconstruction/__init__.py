"""Refit what reads a removed channel: no labels, no training."""

from .readers import Reader
from .refit import LayerRefit, Reconstruction, reconstruct

__all__ = ["LayerRefit", "Reader", "Reconstruction", "reconstruct"]
