"""A trained network repaired."""

from .adversarial_fine_tuning import AdversarialFineTuning
from .bias_gradient_descent import BiasGradientDescent
from .layerwise_optimization import LayerwiseOptimization
from .parity_fine_tuning import ParityFineTuning
from .post_processor import POST_PROCESSORS, PostProcessor
from .random_perturbation import RandomPerturbation
from .repaired_network import OperatingPoint, Repair
from .threshold_selection import ThresholdSelection

__all__ = [
    "POST_PROCESSORS",
    "AdversarialFineTuning",
    "BiasGradientDescent",
    "LayerwiseOptimization",
    "OperatingPoint",
    "ParityFineTuning",
    "PostProcessor",
    "RandomPerturbation",
    "Repair",
    "ThresholdSelection",
]
