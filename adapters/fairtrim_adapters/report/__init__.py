"""One self-contained report of networks compared on the same people: HTML, Markdown for a model card, JSON.

Example:
    >>> import torch
    >>> from torch import nn
    >>> people = [(torch.eye(4), torch.tensor([0, 1, 0, 1]), ["a", "a", "b", "b"])]
    >>> networks = {"dense": nn.Linear(4, 2), "pruned": nn.Linear(4, 2)}
    >>> report = report_networks(networks, {"test": people}, latency_rounds=0, pictures=False, progress=False)
    >>> report.to_markdown().splitlines()[0]
    '## Compressed networks by sensitive group'
    >>> "Latency: no network was timed." in report.not_measured[0]
    True
"""

from __future__ import annotations

from .document import Report
from .from_language_models import report_language_models
from .from_networks import report_networks
from .from_sweep import report_sweep

__all__ = ["Report", "report_language_models", "report_networks", "report_sweep"]
