"""Tiny networks for every layer and coupling that Torch-Pruning prunes; sizes are pairwise different.

``NETWORKS`` holds those that are pruned, with what their pruner needs; ``REFUSED`` those that the host prunes wrongly,
with the error or warning that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim_adapters.torch_pruning import describe_layer, traceable

from .networks import CASES, Case


@dataclass(frozen=True)
class Network(Case):
    """A case whose inputs may be tokens.

    Attributes:
        vocabulary: Number of tokens; 0 where inputs are floating-point.
        spare: Names of further layers that are ignored.
        traced: Whether its pruner is made with ``traceable``.
        removed: Channels that go from each group in one local step, where that is not the host's number; why is
            said beside it.
    """

    vocabulary: int = 0
    spare: tuple[str, ...] = ()
    traced: bool = False

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


class Pooled(nn.Module):
    """Layers in order, a mean over positions, and a linear head."""

    def __init__(self, width: int, *layers: nn.Module) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(*layers), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(2).mean(2))


# Convolutions ------------------------------------------------------------------------------------------------


class DenselyConnected(nn.Module):
    """Every layer reads the features of all layers before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layers = nn.Conv2d(2, 5, 1), nn.ModuleList()
        for width, growth in ((5, 3), (8, 4), (12, 6)):
            self.layers.append(
                nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, growth, 3, padding=1, bias=False))
            )
        self.norm, self.head = nn.BatchNorm2d(18), nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.stem(x)
        for layer in self.layers:
            features = torch.cat([features, layer(features)], 1)
        return self.head(self.norm(features).relu().mean((2, 3)))


class Bottleneck(nn.Module):
    """A residual block with a projection on its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.narrow, self.middle, self.wide = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 5, 3, 2, 1), nn.Conv2d(5, 9, 1)
        self.shortcut, self.norm, self.head = nn.Conv2d(4, 9, 1, 2), nn.BatchNorm2d(9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.wide(self.middle(self.narrow(x).relu()).relu())
        return self.head((self.norm(y) + self.shortcut(x)).relu().mean((2, 3)))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze-excite of convolutions, projection, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand = nn.Conv2d(2, 5, 1), nn.Conv2d(5, 8, 1)
        self.depthwise, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)
        self.project, self.head = nn.Conv2d(8, 5, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        y = F.silu(self.norm(self.depthwise(F.relu6(self.expand(x)))))
        y = y * self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head((x + self.project(y)).mean((2, 3)))


class Inception(nn.Module):
    """Branches of different depth, one of them pooling, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.reduce = nn.Conv2d(2, 7, 1), nn.Conv2d(7, 4, 1), nn.Conv2d(7, 3, 1)
        self.three, self.pooled, self.mix = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(7, 2, 1), nn.Conv2d(11, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        three, pooled = self.three(self.reduce(x).relu()), self.pooled(F.max_pool2d(x, 3, 1, 1))
        return self.head(self.mix(torch.cat([self.one(x), three, pooled], 1).relu()).relu().mean((2, 3)))


class UNet(nn.Module):
    """Encoder and decoder with a concatenated skip and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 7, 3, padding=1)
        self.up, self.merge, self.head = nn.ConvTranspose2d(7, 4, 2, 2), nn.Conv2d(9, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x).relu()
        x = self.up(self.bottom(F.max_pool2d(skip, 2)).relu())
        return self.head(self.merge(torch.cat([skip, x], 1)).relu().mean((2, 3)))


class NestedConcatenation(nn.Module):
    """A concatenation of a concatenation, and one of the same tensor twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 4, 1), nn.Conv2d(2, 5, 1)
        self.mix, self.head = nn.Conv2d(12, 6, 1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.cat([self.a(x), self.b(x)], 1).relu()
        x = self.mix(torch.cat([inner, self.c(x).relu()], 1)).relu()
        return self.head(torch.cat([x, -x], 1).mean((2, 3)))


class ConcatenatedInput(nn.Module):
    """The network's input beside the channels of a layer, first or last."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.stem, self.mix, self.head, self.first = nn.Conv2d(2, 5, 1), nn.Conv2d(7, 4, 1), nn.Linear(4, 3), first

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        return self.head(self.mix(torch.cat([x, y] if self.first else [y, x], 1)).relu().mean((2, 3)))


class CrossStage(nn.Module):
    """Half of the channels pass by a block, the other half through it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(2, 9, 1), nn.Conv2d(5, 6, 3, padding=1)
        self.keep = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.mix, self.head = nn.Conv2d(10, 7, 1), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).relu().split([self.keep.in_channels, self.block.in_channels], 1)
        return self.head(self.mix(torch.cat([self.keep(a), self.block(b)], 1).relu()).relu().mean((2, 3)))


class ThreeParts(nn.Module):
    """A split into three parts, which are read out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 11, 1), nn.Linear(6, 3)
        self.a, self.b, self.c = nn.Conv2d(4, 6, 1), nn.Conv2d(2, 6, 1), nn.Conv2d(5, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        sizes = [layer.in_channels for layer in (self.a, self.b, self.c)]
        a, b, c = self.stem(x).relu().split(sizes, 1)
        return self.head((self.c(c) + self.a(a).relu() * self.b(b)).relu().mean((2, 3)))


class Gated(nn.Module):
    """A gated linear unit: one half of the channels multiplies the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(2, 10, 3), nn.Conv2d(5, 7, 1), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        return self.head(self.mix(a * b.sigmoid()).relu().mean((2, 3)))


class Halves(nn.Module):
    """Equal parts, each for a layer of its own: they stay equal only if the same channel goes from each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = (
            nn.Conv2d(2, 8, 3),
            nn.Conv2d(4, 5, 1),
            nn.Conv2d(4, 3, 1),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).relu().chunk(2, 1)
        return self.head(torch.cat([self.a(a).relu(), self.b(b).relu()], 1).mean((2, 3)))


class Sliced(nn.Module):
    """Parts that are taken by slices."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = (
            nn.Conv2d(2, 9, 3),
            nn.Conv2d(4, 7, 1),
            nn.Conv2d(5, 7, 1),
            nn.Linear(7, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x, n = self.stem(x).relu(), self.a.in_channels
        return self.head((self.a(x[:, :n]) * self.b(x[:, n:])).relu().mean((2, 3)))


class Product(nn.Module):
    """Two layers whose outputs are multiplied, and a maximum with a third."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = (
            nn.Conv2d(2, 6, 3),
            nn.Conv2d(2, 6, 3, bias=False),
            nn.Conv2d(2, 6, 3),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.a(x) * self.b(x)).maximum(self.c(x)).relu().mean((2, 3)))


class PixelShuffled(nn.Module):
    """Channels that become pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.mix, self.head = (
            nn.Conv2d(2, 5, 3, padding=1),
            nn.Conv2d(5, 12, 1),
            nn.Conv2d(3, 7, 2),
            nn.Linear(7, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.up(self.stem(x).relu()), 2).relu()
        return self.head(self.mix(x).relu().mean((2, 3)))


class ChannelShuffled(nn.Module):
    """ShuffleNet: channels change places between two grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = (
            nn.Conv2d(2, 6, 1),
            nn.Conv2d(6, 8, 1, groups=2),
            nn.Conv2d(8, 5, 3),
            nn.Linear(5, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.stem(x).relu()).relu()
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.b(x).relu().mean((2, 3)))


class Siamese(nn.Module):
    """One tower for both halves of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 6, 1))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.tower(x[:, :1]), self.tower(x[:, 1:])
        return self.head((a - b).abs().mean((2, 3)))


class ScaledChannels(nn.Module):
    """Bare parameters: a scale for each channel, and a map of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 7, 3), nn.Linear(7, 3)
        self.scale, self.positions = nn.Parameter(torch.rand(6, 1, 1)), nn.Parameter(torch.randn(1, 6, 4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.stem(x) * self.scale + self.positions).relu().mean((2, 3)))


class ConvNeXt(nn.Module):
    """Depthwise convolution, channels last for LayerNorm and a multilayer perceptron, layer scale, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(2, 6, 2), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 11), nn.Linear(11, 6)
        self.scale, self.head = nn.Parameter(torch.rand(6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


class FlattenedBesideTokens(nn.Module):
    """A flattened convolution in a network that also has a linear layer over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dense = nn.Conv2d(2, 5, 3), nn.Linear(30, 6)
        self.tokens, self.head = nn.Linear(2, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x.flatten(2).transpose(1, 2)).mean(1)
        return self.head(self.dense(self.stem(x).relu().flatten(1)).relu() + tokens)


# Tokens ------------------------------------------------------------------------------------------------------


class Unbound(nn.Module):
    """A fused layer of query, key and value as in timm: reshaped, permuted and unbound."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.project, self.head = (
            nn.Linear(3, 7),
            nn.Linear(7, 24),
            nn.Linear(8, 7),
            nn.Linear(7, 3),
        )
        self.num_heads = 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q @ k.transpose(2, 3)) * 0.5).softmax(-1) @ v
        return self.head((x + self.project(y.transpose(1, 2).reshape(n, t, -1))).mean(1))


class VisionTransformer(nn.Module):
    """Patches, class token, positions, layer scale, fused attention and a multilayer perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(2, 8, 2, 2), nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.norm, self.qkv, self.project = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.scale, self.norm2 = nn.Parameter(torch.rand(8)), nn.LayerNorm(8, bias=False)
        self.up, self.down, self.final = nn.Linear(8, 13), nn.Linear(13, 8), nn.LayerNorm(8)
        self.head, self.num_heads = nn.Linear(8, 3), 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q @ k.transpose(2, 3)) * 0.5).softmax(-1) @ v
        x = x + self.scale * self.project(y.transpose(1, 2).reshape(n, t, -1))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.final(x)[:, 0])


class WordPieces(nn.Module):
    """Token and position embeddings, a norm, and a residual perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(11, 6), nn.Embedding(5, 6)
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 9), nn.Linear(9, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        return self.head((x + self.down(F.gelu(self.up(self.norm(x))))).mean(1))


class TiedWords(nn.Module):
    """The embedding is the output layer too; the scores are those of the first three words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.up, self.down = nn.Embedding(11, 6), nn.Linear(6, 9), nn.Linear(9, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x)
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


class OnlyWords(nn.Module):
    """Embeddings whose channels go straight to a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.up, self.head = nn.Embedding(11, 6, padding_idx=0), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.words(x).mean(1)).relu())


class TorchAttention(nn.Module):
    """PyTorch's attention in a residual."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.embed, self.mix = nn.Linear(3, 8), nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.up, self.down, self.head = nn.Linear(8, 11), nn.Linear(11, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = x if self.mix.batch_first else x.transpose(0, 1)
        y = self.mix(y, y, y, need_weights=False)[0]
        x = x + (y if self.mix.batch_first else y.transpose(0, 1))
        return self.head((x + self.down(self.up(x).relu())).mean(1))


class TorchEncoder(nn.Module):
    """PyTorch's encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 11, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


class Mixer(nn.Module):
    """A layer over positions between two over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.over, self.back = nn.Linear(3, 7), nn.Linear(5, 9), nn.Linear(9, 5)
        self.up, self.head = nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.back(self.over(x.transpose(1, 2)).relu()).transpose(1, 2)
        return self.head(self.up(x).relu().mean(1))


class SplitTokens(nn.Module):
    """A gated unit over tokens, split along an axis that is counted from the front or from the back."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.up, self.down, self.head, self.axis = nn.Linear(3, 10), nn.Linear(5, 7), nn.Linear(7, 3), axis

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x).chunk(2, self.axis)
        return self.head(self.down(a * b.sigmoid()).relu().mean(1))


class ConcatenatedTokens(nn.Module):
    """Channels of tokens side by side, along an axis that is counted from the front or from the back."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.a, self.b, self.mix, self.head = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(9, 7), nn.Linear(7, 3)
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(torch.cat([self.a(x), self.b(x)], self.axis).relu()).relu().mean(1))


class MoreTokens(nn.Module):
    """Tokens of two layers one after the other: an axis that is not that of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mix, self.head = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(torch.cat([self.a(x), self.b(x)], 1).relu()).relu().mean(1))


class Recurrent(nn.Module):
    """A recurrent layer that reads the channels of a linear one."""

    def __init__(self, kind: type[nn.RNNBase], *, state: bool = False, **options: Any) -> None:
        super().__init__()
        self.stem, self.recurrent = nn.Linear(3, 7), kind(7, 5, **{"batch_first": True, **options})
        self.head, self.state = nn.Linear(5 * (1 + self.recurrent.bidirectional), 3), state

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x, hidden = self.recurrent(x if self.recurrent.batch_first else x.transpose(0, 1))
        if self.state:
            return self.head((hidden[0] if isinstance(hidden, tuple) else hidden)[-1])
        return self.head(x.mean(1 if self.recurrent.batch_first else 0))


# Layers of other packages --------------------------------------------------------------------------------------


class TransposedLinear(nn.Module):
    """A linear layer whose weight is (in, out)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.n_out = n_out
        self.weight, self.bias = nn.Parameter(torch.randn(n_in, n_out)), nn.Parameter(torch.randn(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class TransposedLinearPruner(tp.pruner.BasePruningFunc):
    def prune_out_channels(self, layer: Any, idxs: Any) -> Any:
        keep = [k for k in range(layer.n_out) if k not in set(idxs)]
        layer.weight = self._prune_parameter_and_grad(layer.weight, keep, 1)
        layer.bias = self._prune_parameter_and_grad(layer.bias, keep, 0)
        layer.n_out = len(keep)
        return layer

    def prune_in_channels(self, layer: Any, idxs: Any) -> Any:
        keep = [k for k in range(layer.weight.shape[0]) if k not in set(idxs)]
        layer.weight = self._prune_parameter_and_grad(layer.weight, keep, 0)
        return layer

    def get_out_channels(self, layer: Any) -> int:
        return layer.n_out

    def get_in_channels(self, layer: Any) -> int:
        return layer.weight.shape[0]


class OwnNorm(nn.Module):
    """A root-mean-square norm of one's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.gain


class OwnNormPruner(tp.pruner.BasePruningFunc):
    def prune_out_channels(self, layer: Any, idxs: Any) -> Any:
        keep = [k for k in range(len(layer.gain)) if k not in set(idxs)]
        layer.gain = self._prune_parameter_and_grad(layer.gain, keep, 0)
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Any) -> int:
        return len(layer.gain)

    get_in_channels = get_out_channels


describe_layer(TransposedLinear, input_parameters={"weight": 0}, output_parameters={"weight": 1, "bias": 0})
describe_layer(OwnNorm, output_parameters={"gain": 0})


class Customised(nn.Module):
    """Layers that the host prunes by pruners of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.up, self.down = (
            nn.Linear(3, 6),
            OwnNorm(6),
            TransposedLinear(6, 9),
            TransposedLinear(9, 6),
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.down(F.gelu(self.up(self.norm(x))))).mean(1))


class Normed(nn.Module):
    """Linear layers over tokens with a norm between them."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.embed, self.norm, self.up, self.head = nn.Linear(3, 10), norm, nn.Linear(10, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.norm(self.embed(x))).relu().mean(1))


def _halves(model: Any) -> dict[str, Any]:
    return {"out_channel_groups": {model.stem: 2}}


def _qkv(model: Any) -> dict[str, Any]:
    return {"num_heads": {model.qkv: 2}}


def _mha(name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda model: {"out_channel_groups": {model.get_submodule(name): 2}}


def _customised(model: Any) -> dict[str, Any]:
    return {
        "customized_pruners": {TransposedLinear: TransposedLinearPruner(), OwnNorm: OwnNormPruner()},
        "root_module_types": [nn.Linear, TransposedLinear],
    }


def _recurrent(kind: type[nn.RNNBase], **options: Any) -> Network:
    return Network(lambda: Recurrent(kind, **options), (5, 3), traced=True, spare=("recurrent",))


IMAGE = (2, 4, 5)
NETWORKS: dict[str, Network] = {
    "dense block": Network(DenselyConnected, IMAGE),
    "bottleneck": Network(Bottleneck, (2, 5, 6)),
    "inverted residual": Network(InvertedResidual, IMAGE),
    "inception": Network(Inception, IMAGE),
    "u-net": Network(UNet, (2, 4, 6)),
    "nested concatenation": Network(NestedConcatenation, IMAGE),
    "concatenated input, last": Network(lambda: ConcatenatedInput(first=False), IMAGE),
    "concatenated input, first": Network(lambda: ConcatenatedInput(first=True), IMAGE),
    "cross-stage": Network(CrossStage, IMAGE),
    "three parts": Network(ThreeParts, IMAGE),
    "gated": Network(Gated, IMAGE),
    "halves": Network(Halves, IMAGE, options=_halves),
    "halves, uneven": Network(Halves, IMAGE),
    "sliced": Network(Sliced, IMAGE),
    "product": Network(Product, IMAGE),
    "pixel shuffle": Network(PixelShuffled, (2, 4, 3)),
    "channel shuffle": Network(ChannelShuffled, IMAGE),
    "siamese": Network(Siamese, IMAGE),
    "scaled channels": Network(
        ScaledChannels, IMAGE, options=lambda model: {"unwrapped_parameters": [(model.scale, 0), (model.positions, 1)]}
    ),
    "scaled channels, default axis": Network(ScaledChannels, IMAGE),
    "convnext": Network(ConvNeXt, (2, 5, 4), exact=False),
    "flattened beside tokens": Network(FlattenedBesideTokens, (2, 4, 5)),
    "transposed": Network(
        lambda: Pooled(
            4,
            nn.ConvTranspose2d(2, 6, 3),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 5, 2, 2, bias=False),
            nn.Tanh(),
            nn.Conv2d(5, 4, 1),
        ),
        IMAGE,
    ),
    "transposed, grouped": Network(
        lambda: Pooled(
            5, nn.Conv2d(2, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 8, 2, 2, groups=2), nn.Tanh(), nn.Conv2d(8, 5, 1)
        ),
        IMAGE,
    ),
    "transposed, depthwise": Network(
        lambda: Pooled(
            5, nn.Conv2d(2, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 6, 2, 2, groups=6), nn.Tanh(), nn.Conv2d(6, 5, 1)
        ),
        IMAGE,
    ),
    "grouped twice": Network(
        lambda: Pooled(
            5,
            nn.Conv2d(2, 12, 1),
            nn.GroupNorm(4, 12),
            nn.ReLU(),
            nn.Conv2d(12, 6, 3, groups=2),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 8, 1, groups=2),
            nn.ReLU(),
            nn.Conv2d(8, 5, 1),
        ),
        IMAGE,
        exact=False,
    ),
    "grouped by three and two": Network(
        lambda: Pooled(
            5,
            nn.Conv2d(2, 12, 1),
            nn.ReLU(),
            nn.Conv2d(12, 6, 3, groups=3),
            nn.ReLU(),
            nn.Conv2d(6, 8, 1, groups=2),
            nn.ReLU(),
            nn.Conv2d(8, 5, 1),
        ),
        IMAGE,
    ),
    "depthwise with a multiplier": Network(
        lambda: Pooled(5, nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 1, groups=4), nn.ReLU(), nn.Conv2d(8, 5, 1)),
        IMAGE,
    ),
    "three-dimensional": Network(
        lambda: Pooled(
            4,
            nn.Conv3d(2, 6, 2),
            nn.BatchNorm3d(6),
            nn.ReLU(),
            nn.Conv3d(6, 5, 1),
            nn.PReLU(),
            nn.ConvTranspose3d(5, 4, 2),
        ),
        (2, 3, 4, 3),
    ),
    "one-dimensional, dilated": Network(
        lambda: Pooled(
            4,
            nn.Conv1d(2, 6, 3, dilation=2),
            nn.BatchNorm1d(6),
            nn.LeakyReLU(),
            nn.Conv1d(6, 6, 3, groups=6),
            nn.ELU(),
            nn.Conv1d(6, 4, 1),
        ),
        (2, 11),
    ),
    "flattened, one-dimensional": Network(
        lambda: nn.Sequential(
            nn.Conv1d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(35, 6), nn.ReLU(), nn.Linear(6, 3)
        ),
        (2, 9),
    ),
    "flattened, three-dimensional": Network(
        lambda: nn.Sequential(
            nn.Conv3d(2, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(60, 6), nn.ReLU(), nn.Linear(6, 3)
        ),
        (2, 3, 4, 3),
    ),
    "flattened, normed": Network(
        lambda: nn.Sequential(
            nn.Conv2d(2, 5, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.BatchNorm1d(30),
            nn.Linear(30, 6),
            nn.ReLU(),
            nn.Linear(6, 3),
        ),
        IMAGE,
    ),
    "normed perceptron": Network(
        lambda: nn.Sequential(
            nn.Linear(4, 7),
            nn.BatchNorm1d(7),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Linear(7, 5, bias=False),
            nn.SELU(),
            nn.Linear(5, 3),
        ),
        (4,),
    ),
    "instance norm": Network(
        lambda: Pooled(
            5,
            nn.Conv2d(2, 6, 3),
            nn.InstanceNorm2d(6, affine=True),
            nn.ReLU(),
            nn.Conv2d(6, 5, 1),
            nn.Tanh(),
            nn.InstanceNorm2d(5),
            nn.ReLU(),
            nn.Conv2d(5, 5, 1),
        ),
        IMAGE,
    ),
    "instance norm with statistics": Network(
        lambda: Pooled(
            5,
            nn.Conv2d(2, 6, 3),
            nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
            nn.ReLU(),
            nn.Conv2d(6, 5, 1),
        ),
        IMAGE,
    ),
    "one group of channels": Network(
        lambda: Pooled(5, nn.Conv2d(2, 6, 3), nn.GroupNorm(1, 6), nn.ReLU(), nn.Conv2d(6, 5, 1)), IMAGE, exact=False
    ),
    "a group for each channel": Network(
        lambda: Pooled(5, nn.Conv2d(2, 6, 3), nn.GroupNorm(6, 6), nn.ReLU(), nn.Conv2d(6, 5, 1)), IMAGE
    ),
    "layer norm over an image": Network(
        lambda: Pooled(5, nn.Conv2d(2, 6, 3), nn.LayerNorm((6, 2, 3)), nn.ReLU(), nn.Conv2d(6, 5, 1)),
        IMAGE,
        exact=False,
    ),
    "layer norm without parameters": Network(
        lambda: Normed(nn.LayerNorm(10, elementwise_affine=False)), (5, 3), exact=False
    ),
    "rms norm": Network(lambda: Normed(nn.RMSNorm(10)), (5, 3), exact=False),
    "rms norm without parameters": Network(
        lambda: Normed(nn.RMSNorm(10, elementwise_affine=False)), (5, 3), exact=False
    ),
    "local response norm": Network(
        lambda: Pooled(5, nn.Conv2d(2, 6, 3), nn.LocalResponseNorm(3), nn.ReLU(), nn.Conv2d(6, 5, 1)),
        IMAGE,
        exact=False,
    ),
    "weight norm": Network(
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 7)),
            nn.ReLU(),
            nn.Linear(7, 5),
            nn.ReLU(),
            nn.Linear(5, 3),
        ),
        (4,),
    ),
    "unbound": Network(Unbound, (5, 3), exact=False, options=_qkv),
    "vision transformer": Network(VisionTransformer, (2, 4, 4), exact=False, options=_qkv),
    "word pieces": Network(WordPieces, (5,), exact=False, vocabulary=11),
    "tied words": Network(TiedWords, (5,), vocabulary=11),
    "only words": Network(
        OnlyWords, (5,), vocabulary=11, options=lambda model: {"root_module_types": [nn.Linear, nn.Embedding]}
    ),
    "attention of torch": Network(lambda: TorchAttention(batch_first=True), (5, 3), exact=False, options=_mha("mix")),
    "attention of torch, time first": Network(
        lambda: TorchAttention(batch_first=False), (5, 3), exact=False, options=_mha("mix")
    ),
    "attention of torch, heads unsaid": Network(lambda: TorchAttention(batch_first=True), (5, 3), exact=False),
    "encoder of torch": Network(TorchEncoder, (5, 3), exact=False, options=_mha("layer.self_attn")),
    "mixer": Network(Mixer, (5, 3)),
    "split tokens, from the back": Network(lambda: SplitTokens(-1), (5, 3)),
    "split tokens, from the front": Network(lambda: SplitTokens(2), (5, 3)),
    "concatenated tokens, from the back": Network(lambda: ConcatenatedTokens(-1), (5, 3)),
    "concatenated tokens, from the front": Network(lambda: ConcatenatedTokens(2), (5, 3)),
    "more tokens": Network(MoreTokens, (5, 3)),
    "lstm": _recurrent(nn.LSTM),
    "lstm, both ways": _recurrent(nn.LSTM, bidirectional=True, num_layers=2),
    "lstm, time first": _recurrent(nn.LSTM, batch_first=False),
    "lstm, last state": _recurrent(nn.LSTM, state=True),
    "gru": _recurrent(nn.GRU),
    "elman": _recurrent(nn.RNN, num_layers=2),
    "customised": Network(Customised, (5, 3), exact=False, options=_customised),
    **{name: Network(**vars(case)) for name, case in CASES.items()},
}
