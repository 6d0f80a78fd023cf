"""Transformers of Hugging Face for Torch-Pruning: what its pruner must be told, and the sizes that it leaves behind.

``transformers`` is not imported: everything is read from the modules and from ``config``. For a BERT classifier::

    options = pruning_options(model, prune=["intermediate", "heads"])
    pruner = tp.pruner.BasePruner(model, example_inputs(model), importance=importance, pruning_ratio=0.25, **options)
    importance.fit(pruner, loader)
    pruner.step()
    update_sizes(model, pruner)

``docs/huggingface.md`` has a complete one, what is covered, and the limits.
"""

from __future__ import annotations

from .labels import next_token_labels
from .language_comparison import LanguageComparison, compare_language_models
from .options import example_inputs, pruning_options
from .parts import Part
from .sizes import update_sizes
from .stereotypes import CrowSPair, StereoSetContext, crows_pairs, sentence_pairs, stereo_set
from .texts import text_loader

__all__ = [
    "CrowSPair",
    "LanguageComparison",
    "Part",
    "StereoSetContext",
    "compare_language_models",
    "crows_pairs",
    "example_inputs",
    "next_token_labels",
    "pruning_options",
    "sentence_pairs",
    "stereo_set",
    "text_loader",
    "update_sizes",
]
