"""Refit what reads a removed channel: no labels, no training."""

from .refit import LayerRefit, Reconstruction, reconstruct
from .readers import Reader

__all__ = ["LayerRefit", "Reader", "Reconstruction", "reconstruct"]
