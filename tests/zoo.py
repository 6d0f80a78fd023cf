"""Tiny networks for every layer and coupling that Torch-Pruning prunes; sizes are pairwise different.

``NETWORKS`` are pruned whole. Of those in ``LEFT`` one dependency group is left as it is, with a warning, because gates
can't describe it or Torch-Pruning prunes it wrongly; so it is with those in ``LEFT_ON_TRIAL``, where only a look at the
network tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch_pruning as tp
from torch import Tensor, nn

from fairtrim_adapters.torch_pruning import traceable
from tests import zoo_images as images
from tests import zoo_tokens as tokens
from tests.networks import CASES, SHARED_KEYS, Case


@dataclass(frozen=True)
class Network(Case):
    """A case whose inputs may be tokens.

    Attributes:
        vocabulary: Number of tokens; 0 where inputs are floating-point.
        spare: Names of further layers that are ignored.
        traced: Whether its pruner is made with ``traceable``.
        message: What the warning or the error says.
        alone: What Torch-Pruning does without fairtrim: it is right, can't make a pruner ("traces wrongly"), its
            network does not run after one or two steps ("fails", "fails later"), or is another one ("is wrong").
    """

    vocabulary: int = 0
    spare: tuple[str, ...] = ()
    traced: bool = False
    message: str = ""
    alone: Literal["", "traces wrongly", "fails", "fails later", "is wrong"] = ""

    def pruner(self, model: nn.Module, importance: Any = None, **options: Any) -> tp.pruner.BasePruner:
        arguments = {
            "importance": importance,
            "ignored_layers": [self.head(model), *(model.get_submodule(name) for name in self.spare)],
            "pruning_ratio": 0.4,
            "in_channel_groups": {},
            "out_channel_groups": {},
            "output_transform": self.transform,
            **self.options(model),
            **options,
        }
        example = self.batch(2)[0]
        if not self.traced:
            return tp.pruner.BasePruner(model, example, **arguments)
        with traceable(model) as pruners:
            return tp.pruner.BasePruner(model, example, customized_pruners=pruners, **arguments)

    def batch(self, n_samples: int, n_classes: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
        x, y = super().batch(n_samples, n_classes, seed)
        return (x.abs() * 7 % self.vocabulary).long() if self.vocabulary else x, y


def _groups_of(layer: str, number: int) -> Callable[[Any], dict[str, Any]]:
    return lambda model: {"out_channel_groups": {model.get_submodule(layer): number}}


def _heads(model: Any) -> dict[str, Any]:
    return {"num_heads": {model.qkv: 2}}


def _separate(model: Any) -> dict[str, Any]:
    return {"num_heads": dict.fromkeys((model.query, model.key, model.value), 2)}


def _decoder(model: Any) -> dict[str, Any]:
    return {"out_channel_groups": dict.fromkeys((model.layer.self_attn, model.layer.multihead_attn), 2)}


def _customised(model: Any) -> dict[str, Any]:
    pruners = {tokens.TransposedLinear: tokens.TransposedLinearPruner(), tokens.OwnNorm: tokens.OwnNormPruner()}
    return {"customized_pruners": pruners, "root_module_types": [nn.Linear, tokens.TransposedLinear]}


def _axes(model: Any) -> dict[str, Any]:
    return {"unwrapped_parameters": [(model.scale, 0), (model.positions, 1)]}


def _embeddings(model: Any) -> dict[str, Any]:
    return {"root_module_types": [nn.Linear, nn.Embedding]}


def _recurrent(kind: type[nn.RNNBase], **options: Any) -> Network:
    make = lambda: tokens.Recurrent(kind, **options)  # noqa: E731
    return Network(make, (5, 3), traced=True, spare=("recurrent",), alone="traces wrongly")


def _pooled(*layers: Callable[[], nn.Module], shape: tuple[int, ...] = (2, 4, 5), **options: Any) -> Network:
    """Layers, a mean over positions, and a linear head; the last layer has 5 outputs."""
    return Network(lambda: images.Pooled(5, *(make() for make in layers)), shape, **options)


def _layer(kind: type[nn.Module], *arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: kind(*arguments, **options)


def _chain(*layers: Callable[[], nn.Module], shape: tuple[int, ...], **options: Any) -> Network:
    return Network(lambda: nn.Sequential(*(make() for make in layers)), shape, **options)


def _normed(norm: Callable[[], nn.Module], **options: Any) -> Network:
    return Network(lambda: tokens.Normed(norm()), TOKENS, exact=False, **options)


IMAGE, TOKENS = (2, 4, 5), (5, 3)
L, C1, C2, C3 = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d
T2, T3 = nn.ConvTranspose2d, nn.ConvTranspose3d

NETWORKS: dict[str, Network] = {
    # Couplings
    "dense block": Network(images.DenselyConnected, IMAGE),
    "bottleneck": Network(images.Bottleneck, (2, 5, 6)),
    "inverted residual": Network(images.InvertedResidual, IMAGE),
    "inception": Network(images.Inception, IMAGE),
    "u-net": Network(images.UNet, (2, 4, 6)),
    "nested concatenation": Network(images.NestedConcatenation, IMAGE),
    "concatenated input, last": Network(lambda: images.ConcatenatedInput(first=False), IMAGE),
    "concatenated input, first": Network(lambda: images.ConcatenatedInput(first=True), IMAGE, alone="is wrong"),
    "concatenated input, between": Network(images.InputBetween, IMAGE, alone="fails"),
    "cross-stage": Network(images.CrossStage, IMAGE),
    "three parts": Network(images.ThreeParts, IMAGE, alone="fails"),
    "gated": Network(images.Gated, IMAGE, options=_groups_of("stem", 2), alone="fails later"),
    "halves": Network(images.Halves, IMAGE, options=_groups_of("stem", 2), alone="fails later"),
    "sliced": Network(images.Sliced, IMAGE),
    "product": Network(images.Product, IMAGE),
    "siamese": Network(images.Siamese, IMAGE),
    "scaled channels": Network(images.ScaledChannels, IMAGE, options=_axes),
    "convnext": Network(images.ConvNeXt, (2, 5, 4), exact=False),
    "upsampled": Network(images.Upsampled, IMAGE),
    "stacked": Network(images.Stacked, IMAGE),
    "windows": Network(images.Windows, (2, 4, 6), exact=False),
    "flattened beside tokens": Network(images.FlattenedBesideTokens, IMAGE, alone="fails"),
    # Layers
    "transposed": _pooled(
        _layer(T2, 2, 6, 3), nn.ReLU, _layer(T2, 6, 4, 2, 2, bias=False), nn.Tanh, _layer(C2, 4, 5, 1)
    ),
    "transposed, grouped": _pooled(
        _layer(C2, 2, 6, 3), nn.ReLU, _layer(T2, 6, 8, 2, 2, groups=2), nn.Tanh, _layer(C2, 8, 5, 1), alone="fails"
    ),
    "transposed, depthwise": _pooled(
        _layer(C2, 2, 6, 3), nn.ReLU, _layer(T2, 6, 6, 2, 2, groups=6), nn.Tanh, _layer(C2, 6, 5, 1)
    ),
    "grouped twice": _pooled(
        _layer(C2, 2, 12, 1),
        _layer(nn.GroupNorm, 4, 12),
        nn.ReLU,
        _layer(C2, 12, 14, 3, groups=2),
        _layer(nn.BatchNorm2d, 14),
        _layer(C2, 14, 10, 1, groups=2),
        nn.ReLU,
        _layer(C2, 10, 5, 1),
        exact=False,
    ),
    "three-dimensional": _pooled(
        _layer(C3, 2, 6, 2),
        _layer(nn.BatchNorm3d, 6),
        nn.ReLU,
        _layer(C3, 6, 4, 1),
        nn.PReLU,
        _layer(T3, 4, 5, 2),
        shape=(2, 3, 4, 3),
    ),
    "one-dimensional, dilated": _pooled(
        _layer(C1, 2, 6, 3, dilation=2),
        _layer(nn.BatchNorm1d, 6),
        nn.LeakyReLU,
        _layer(C1, 6, 6, 3, groups=6),
        nn.ELU,
        _layer(C1, 6, 5, 1),
        shape=(2, 11),
    ),
    "flattened, one-dimensional": _chain(
        _layer(C1, 2, 5, 3), nn.ReLU, nn.Flatten, _layer(L, 35, 6), nn.ReLU, _layer(L, 6, 3), shape=(2, 9)
    ),
    "flattened, three-dimensional": _chain(
        _layer(C3, 2, 5, 2), nn.ReLU, nn.Flatten, _layer(L, 60, 6), nn.ReLU, _layer(L, 6, 3), shape=(2, 3, 4, 3)
    ),
    "flattened, normed": _chain(
        _layer(C2, 2, 5, 3),
        nn.ReLU,
        nn.Flatten,
        _layer(nn.BatchNorm1d, 30),
        _layer(L, 30, 6),
        nn.ReLU,
        _layer(L, 6, 3),
        shape=IMAGE,
    ),
    "normed perceptron": _chain(
        _layer(L, 4, 7),
        _layer(nn.BatchNorm1d, 7),
        nn.GELU,
        nn.Dropout,
        _layer(L, 7, 5, bias=False),
        nn.SELU,
        _layer(L, 5, 3),
        shape=(4,),
    ),
    "instance norm": _pooled(
        _layer(C2, 2, 6, 3),
        _layer(nn.InstanceNorm2d, 6, affine=True),
        nn.ReLU,
        _layer(C2, 6, 4, 1),
        nn.Tanh,
        _layer(nn.InstanceNorm2d, 4),
        nn.ReLU,
        _layer(C2, 4, 5, 1),
    ),
    "instance norm with statistics": _pooled(
        _layer(C2, 2, 6, 3),
        _layer(nn.InstanceNorm2d, 6, affine=True, track_running_stats=True),
        nn.ReLU,
        _layer(C2, 6, 5, 1),
        alone="fails",
    ),
    "one group of channels": _pooled(
        _layer(C2, 2, 6, 3), _layer(nn.GroupNorm, 1, 6), nn.ReLU, _layer(C2, 6, 5, 1), exact=False
    ),
    "local response norm": _pooled(
        _layer(C2, 2, 6, 3), _layer(nn.LocalResponseNorm, 3), nn.ReLU, _layer(C2, 6, 5, 1), exact=False
    ),
    "layer norm": _normed(_layer(nn.LayerNorm, 10)),
    "layer norm without parameters": _normed(_layer(nn.LayerNorm, 10, elementwise_affine=False)),
    "rms norm": _normed(_layer(nn.RMSNorm, 10), alone="fails"),
    "rms norm, traced": _normed(_layer(nn.RMSNorm, 10), traced=True, alone="fails"),
    "rms norm without parameters": _normed(
        _layer(nn.RMSNorm, 10, elementwise_affine=False), traced=True, alone="fails"
    ),
    # Tokens
    "unbound": Network(tokens.Unbound, TOKENS, options=_heads),
    "vision transformer": Network(tokens.VisionTransformer, (2, 4, 4), exact=False, options=_heads),
    "word pieces": Network(tokens.WordPieces, (5,), exact=False, vocabulary=11),
    "tied words": Network(tokens.TiedWords, (5,), vocabulary=11),
    "only words": Network(tokens.OnlyWords, (5,), vocabulary=11, options=_embeddings),
    "attention of torch": Network(
        lambda: tokens.TorchAttention(batch_first=True), TOKENS, exact=False, options=_groups_of("mix", 2)
    ),
    "attention of torch, time first": Network(
        lambda: tokens.TorchAttention(batch_first=False), TOKENS, exact=False, options=_groups_of("mix", 2)
    ),
    "encoder of torch": Network(tokens.TorchEncoder, TOKENS, exact=False, options=_groups_of("layer.self_attn", 2)),
    "cross-attention of torch": Network(tokens.CrossAttention, TOKENS, exact=False, options=_groups_of("mix", 2)),
    "decoder of torch": Network(tokens.TorchDecoder, TOKENS, exact=False, options=_decoder),
    "fused kernel": Network(tokens.FusedKernel, TOKENS, options=_separate),
    "bag of words": Network(tokens.BagOfWords, (5,), vocabulary=11),
    "split tokens, from the back": Network(
        lambda: tokens.SplitTokens(-1), TOKENS, options=_groups_of("up", 2), alone="fails later"
    ),
    "split tokens, from the front": Network(
        lambda: tokens.SplitTokens(2), TOKENS, options=_groups_of("up", 2), alone="fails"
    ),
    "concatenated tokens, from the back": Network(lambda: tokens.ConcatenatedTokens(-1), TOKENS),
    "concatenated tokens, from the front": Network(lambda: tokens.ConcatenatedTokens(2), TOKENS, alone="fails"),
    "more tokens": Network(tokens.MoreTokens, TOKENS),
    "lstm": _recurrent(nn.LSTM),
    "lstm, both ways": _recurrent(nn.LSTM, bidirectional=True, num_layers=2),
    "lstm, time first": _recurrent(nn.LSTM, batch_first=False),
    "lstm, last state": _recurrent(nn.LSTM, state=True),
    "gru": _recurrent(nn.GRU),
    "elman": _recurrent(nn.RNN, num_layers=2),
    "customised": Network(tokens.Customised, TOKENS, exact=False, options=_customised),
}

LEFT: dict[str, Network] = {
    "halves, uneven": Network(
        images.Halves, IMAGE, message=r"stem: chunk\(\) .* out_channel_groups=\{model.stem: 2\}", alone="fails"
    ),
    "gated, unsaid": Network(images.Gated, IMAGE, message=r"stem: chunk\(\).*model.stem: 2", alone="fails later"),
    "pixel shuffle": Network(
        images.PixelShuffled,
        (2, 4, 3),
        message="up: Torch-Pruning maps channel 11 to 'mix', which has 3",
        alone="fails",
    ),
    "mixer": Network(
        tokens.Mixer, TOKENS, message="embed: Torch-Pruning maps channel 6 to 'over', which has 5 inputs", alone="fails"
    ),
    "scaled channels, axis unsaid": Network(
        images.ScaledChannels,
        IMAGE,
        message="stem: .* axis 3 of the parameter 'positions'",
        alone="fails",
    ),
    "grouped by three and two": _pooled(
        _layer(C2, 2, 12, 1),
        nn.ReLU,
        _layer(C2, 12, 6, 3, groups=3),
        nn.ReLU,
        _layer(C2, 6, 8, 1, groups=2),
        nn.ReLU,
        _layer(C2, 8, 5, 1),
        message="'body.4' has 2 convolution groups",
        alone="fails",
    ),
    "one output for each group": _pooled(
        _layer(C2, 2, 9, 1),
        nn.ReLU,
        _layer(C2, 9, 3, 3, groups=3),
        nn.ReLU,
        _layer(C2, 3, 5, 1),
        message="takes it for a depthwise",
        alone="fails",
    ),
    "layer norm over an image": _pooled(
        _layer(C2, 2, 6, 3),
        _layer(nn.LayerNorm, (6, 2, 3)),
        nn.ReLU,
        _layer(C2, 6, 5, 1),
        exact=False,
        message="'body.1' normalises 3 axes",
        alone="fails",
    ),
    "weight norm": _chain(
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 7)),
        nn.ReLU,
        _layer(L, 7, 5),
        nn.ReLU,
        _layer(L, 5, 3),
        shape=(4,),
        message="remove_parametrizations",
        alone="fails",
    ),
    "attention of torch, heads unsaid": Network(
        lambda: tokens.TorchAttention(batch_first=True),
        TOKENS,
        exact=False,
        alone="fails later",
        message=r"'mix' has 2 heads, .* out_channel_groups=\{model.mix: 2\}",
    ),
    "cross-attention of torch, another width": Network(
        lambda: tokens.CrossAttention(6), TOKENS, exact=False, options=_groups_of("mix", 2), message="b: .*'mix'"
    ),
    "bare matrix": Network(
        tokens.BareMatrix, TOKENS, message="embed: Torch-Pruning maps 6 channels to the 9 inputs of 'up'", alone="fails"
    ),
    "flattened tokens": Network(
        tokens.FlattenedTokens,
        TOKENS,
        message="embed: Torch-Pruning maps 6 channels to the 30 inputs of",
        alone="fails",
    ),
    "shared keys": Network(**{**vars(SHARED_KEYS), "message": "heads share keys and values"}),
    "lstm, not ignored": Network(
        lambda: tokens.Recurrent(nn.LSTM),
        TOKENS,
        traced=True,
        alone="traces wrongly",
        message="'recurrent' feeds its outputs back",
    ),
}

# All channels of a group would go as one: Torch-Pruning skips it.
SKIPPED: dict[str, Network] = {
    "a group for each channel": _pooled(
        _layer(C2, 2, 6, 3), _layer(nn.GroupNorm, 6, 6), nn.ReLU, _layer(C2, 6, 7, 1), nn.ReLU, _layer(C2, 7, 5, 1)
    ),
    "depthwise with a multiplier": _pooled(
        _layer(C2, 2, 4, 3), nn.ReLU, _layer(C2, 4, 8, 1, groups=4), nn.ReLU, _layer(C2, 8, 5, 1)
    ),
}

LEFT_ON_TRIAL: dict[str, Network] = {
    "concatenated input, on both sides": Network(
        images.InputOnBothSides, IMAGE, message="channels of 'stem' to the wrong inputs of 'mix'", alone="is wrong"
    ),
    "channel shuffle": Network(
        images.ChannelShuffled, IMAGE, message="channels of 'a' to the wrong inputs of 'b'", alone="is wrong"
    ),
    "merged patches": Network(
        images.MergedPatches, (2, 4, 6), message="channels of 'stem' to the wrong inputs of 'reduce'", alone="fails"
    ),
    "flattened tokens beside others": Network(
        tokens.FlattenedBesideOthers, TOKENS, message="channels of .* to the wrong inputs of 'dense'", alone="fails"
    ),
    "rms norm without parameters, not traced": _normed(
        _layer(nn.RMSNorm, 10, elementwise_affine=False), message="traceable", alone="fails"
    ),
}


REFUSED: dict[str, Network] = {
    "customised, not described": Network(
        tokens.Undescribed,
        TOKENS,
        message=r"describe_layer\(type, channel_axis",
        options=lambda model: {"customized_pruners": {tokens.Plain: tokens.TransposedLinearPruner()}},
    ),
}

ALL = {**NETWORKS, **{name: Network(**vars(case)) for name, case in CASES.items()}}
