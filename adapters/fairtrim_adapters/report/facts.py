"""What each criterion and post-processor does, to whom, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fairtrim_adapters.sweep.named_methods import parse_named
from fairtrim_adapters.torch_pruning import IMPORTANCES

from .contents import Method

__all__ = ["CRITERION_FACTS", "POST_PROCESSOR_FACTS", "method_of"]


class _Facts(NamedTuple):
    does: str
    source: str
    link: str
    standing: str


_FAIRPRUNE = ("FairPrune: Wu, Zeng, Xu, Shi, Hu, MICCAI 2022", "https://arxiv.org/abs/2203.02110")
_DENP = ("DENP: Hong, Kim, Joo, Han, Shin, Wald, Lee, IEEE TIP 2026", "https://doi.org/10.1109/TIP.2026.3687070")
_DCWP = ("DCWP: Park, Lee, Lee, Ye, CVPR 2023", "https://arxiv.org/abs/2210.05247")
_SAVANI = ("Savani, White, Govindarajulu, NeurIPS 2020", "https://arxiv.org/abs/2006.08564")
_MARCINKEVICS = ("Marcinkevics, Ozkan, Vogt, MLHC 2022", "")
_HOST = ("Torch-Pruning", "https://github.com/VainF/Torch-Pruning")

CRITERION_FACTS: dict[str, _Facts] = {
    "worst-group": _Facts(
        "removes first what raises the loss of the most hurt sensitive group least", "fairtrim", "", "ours"
    ),
    "tail-risk": _Facts(
        "removes first what raises the loss of the worst-off share α of the sensitive groups least",
        "fairtrim",
        "",
        "ours",
    ),
    "mean-damage": _Facts(
        "removes first what raises the loss of everybody least on average; blind to who is hurt",
        "fairtrim",
        "",
        "ours",
    ),
    "group-saliency": _Facts(
        "removes first what hurts the unprivileged little and the privileged much: harm to the privileged counts in "
        "favour, so a gap may close by levelling down",
        *_FAIRPRUNE,
        "published for weights; for channels ours",
    ),
    "share-balanced": _Facts(
        "keeps the share that each sensitive group has in a layer's importance",
        "FairGRAPE: Lin, Kim, Joo, ECCV 2022",
        "",
        "published for weights; for channels ours",
    ),
    "accumulated-confidence": _Facts(
        "removes first what the mined bias-conflicting samples need least, and the others most",
        *_DENP,
        "reconstruction: the idea is published, the formulas are not",
    ),
    "contrastive": _Facts(
        "removes first what a contrastive loss on the mined bias-conflicting samples needs least",
        *_DCWP,
        "published for weights; for channels ours",
    ),
    "random": _Facts("removes channels at random; looks at nobody", *_HOST, "baseline"),
    "magnitude": _Facts("removes channels of small weights first; looks at no data", *_HOST, "published"),
    "taylor": _Facts(
        "removes first what changes everybody's loss least, to first order and weight by weight", *_HOST, "published"
    ),
}
"""By the names of ``IMPORTANCES`` and of Torch-Pruning's own criteria."""

POST_PROCESSOR_FACTS: dict[str, _Facts] = {
    "parity-fine-tuning": _Facts(
        "edits the output layer, or all layers, under a penalty on the bias between sensitive groups",
        "fairtrim",
        "",
        "ours",
    ),
    "threshold-selection": _Facts(
        "moves the threshold that all people share until the bias is within its bound", "", "", "baseline"
    ),
    "random-perturbation": _Facts(
        "multiplies every weight by noise, many times, and keeps the best within the bound on the bias",
        *_SAVANI,
        "published",
    ),
    "layerwise-optimization": _Facts(
        "searches one weight tensor at a time for performance within the bound on the bias",
        *_SAVANI,
        "published with boosted trees; CMA-ES is ours",
    ),
    "adversarial-fine-tuning": _Facts(
        "trains all layers against a critic that predicts a batch's bias",
        *_SAVANI,
        "published; the critic's size and its weight are ours",
    ),
    "bias-gradient-descent": _Facts(
        "moves all layers down the bias itself while the performance stays above a floor",
        *_MARCINKEVICS,
        "published; optimizer and step are ours",
    ),
    "counterfactual-unlearning": _Facts(
        "lessens how much predictions change when an attribute is flipped, from a few pairs",
        "FMD: Chen and others, NeurIPS 2023",
        "https://arxiv.org/abs/2310.12560",
        "form 'published' as published; consistency is ours",
    ),
}
"""By the names of ``POST_PROCESSORS``."""


def _told_by(name: str) -> _Facts:
    """What a criterion says of itself."""
    described = vars(IMPORTANCES[name]) if name in IMPORTANCES else {}
    if "does" not in described:
        return _Facts("not described here", "", "", "")
    return _Facts(described["does"], described.get("source", ""), described.get("link", ""), described["standing"])


def method_of(kind: str, text: str, settings: Mapping[str, Any] | None = None) -> Method:
    """What is known about a criterion or a post-processor.

    Args:
        kind: ``criterion`` or ``post-processor``.
        text: Its name, with settings if need be: ``worst-group:selection=single``.
        settings: Further ones; those of a post-processor tell its method even if its name doesn't.

    Returns:
        The facts; one that is not known says so.

    Example:
        >>> method = method_of("criterion", "worst-group:selection=single")
        >>> method.standing, method.settings
        ('ours', {'selection': 'single'})
        >>> method_of("criterion", "my own").does
        'not described here'
    """
    known = CRITERION_FACTS if kind == "criterion" else POST_PROCESSOR_FACTS
    name, separator, _ = text.partition(":")
    own: dict[str, Any] = {}
    if separator and (name.strip() in known or (kind == "criterion" and name.strip() in IMPORTANCES)):
        name, own = parse_named(text)
    facts = known.get(name.strip()) or _told_by(name.strip() if kind == "criterion" else "")
    every = {**dict(settings or {}), **own}
    return Method(text, kind, *facts, {key: str(value) for key, value in every.items()})
