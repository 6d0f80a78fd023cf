"""Convolutional networks of the zoo, one for each coupling of channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Pooled(nn.Module):
    """Layers in order, a mean over positions, and a linear head."""

    def __init__(self, width: int, *layers: nn.Module) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(*layers), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(2).mean(2))


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


class InputBetween(nn.Module):
    """The network's input between the channels of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mix, self.head = (
            nn.Conv2d(2, 5, 1),
            nn.Conv2d(2, 4, 1),
            nn.Conv2d(11, 6, 1),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(torch.cat([self.a(x).relu(), x, self.b(x).relu()], 1)).relu().mean((2, 3)))


class InputOnBothSides(nn.Module):
    """The network's input before and behind the channels of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(2, 5, 1), nn.Conv2d(9, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(torch.cat([x, self.stem(x).relu(), x], 1)).relu().mean((2, 3)))


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


class Upsampled(nn.Module):
    """Channels that are resized and pooled by their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.stem(x).relu(), scale_factor=2, mode="bilinear")
        return self.head(self.mix(x).relu().amax((2, 3)))


class Stacked(nn.Module):
    """Two layers whose outputs are stacked along a new axis and weighed against each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mix = nn.Conv2d(2, 6, 1), nn.Conv2d(2, 6, 1), nn.Conv2d(6, 5, 3)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        stacked = torch.stack([self.a(x), self.b(x)], 1)
        return self.head(self.mix((stacked * stacked.softmax(1)).sum(1)).relu().mean((2, 3)))


class Windows(nn.Module):
    """Swin: shifted windows of an image as tokens, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 1), nn.LayerNorm(6)
        self.up, self.down, self.head = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        y = torch.roll(x, (1, 1), (1, 2)).view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
        y = self.down(self.up(self.norm(y.reshape(-1, 4, c))).relu()).view(n, h // 2, w // 2, 2, 2, c)
        return self.head((x + y.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)).mean((1, 2)))


class MergedPatches(nn.Module):
    """Swin: the channels of four neighbours side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.reduce, self.head = nn.Conv2d(2, 6, 1), nn.Linear(24, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.head(self.reduce(x).relu().mean((1, 2)))


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
