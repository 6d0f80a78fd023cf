"""ResNet-50 and ViT-B/16, written plainly, and noise for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import ChannelGroup, ChannelPlace

Batches = list[tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Sizes:
    """How large networks and data are.

    Attributes:
        pixels: Width and height of an image.
        batch: Images a batch.
        batches: How many batches.
        repetitions: Pairs of runs, after one that is not counted.
        width: Channels of ResNet's first stage.
        blocks: Of each of its stages.
        hidden: Width of the ViT.
        layers: Of the ViT.
        patch: Width of a patch.
    """

    pixels: int = 224
    batch: int = 128
    batches: int = 4
    repetitions: int = 3
    width: int = 64
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    hidden: int = 768
    layers: int = 12
    patch: int = 16


FULL = Sizes()
SMALL = Sizes(pixels=32, batch=4, batches=1, repetitions=1, width=4, blocks=(1, 1), hidden=8, layers=1, patch=8)


class Bottleneck(nn.Module):
    """A residual block of ResNet-50.

    Args:
        inputs: Channels that come in.
        width: Of the inner layers; a quarter of what goes out.
        stride: Of the middle one.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.reduce, self.middle = convolution(inputs, width, 1), convolution(width, width, 3, stride)
        self.widen = convolution(width, outputs, 1)
        shortcut = stride != 1 or inputs != outputs
        self.shortcut = convolution(inputs, outputs, 1, stride) if shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.widen(F.relu(self.middle(F.relu(self.reduce(x)))))
        return F.relu(inner + self.shortcut(x))


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


def resnet50(n_classes: int, sizes: Sizes) -> nn.Sequential:
    """ResNet-50 with random weights, the same on every machine; BatchNorm knows four images of noise.

    Args:
        n_classes: K.
        sizes: Width and depth.

    Returns:
        The network on the CPU, in eval mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = [convolution(3, sizes.width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        channels = sizes.width
        for stage, repeats in enumerate(sizes.blocks):
            width = sizes.width * 2**stage
            for repeat in range(repeats):
                layers.append(Bottleneck(channels, width, 2 if stage and not repeat else 1))
                channels = 4 * width
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_classes))
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model.train()(torch.randn(4, 3, 64, 64))
        return model.eval()


class Layer(nn.Module):
    """A layer of a ViT, whose attention is torch's.

    Args:
        hidden: Its width.
        heads: Of the attention.
    """

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm, self.norm2 = heads, nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.project = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1)
        x = x + self.project(y)
        return x + self.down(F.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """ViT-B/16.

    Args:
        n_classes: K.
        sizes: Width, depth, patches.
    """

    def __init__(self, n_classes: int, sizes: Sizes) -> None:
        super().__init__()
        hidden = sizes.hidden
        self.patches = nn.Conv2d(3, hidden, sizes.patch, sizes.patch)
        self.token = nn.Parameter(torch.randn(1, 1, hidden) / 50)
        self.positions = nn.Parameter(torch.randn(1, (sizes.pixels // sizes.patch) ** 2 + 1, hidden) / 50)
        self.layers = nn.ModuleList(Layer(hidden, max(1, hidden // 64)) for _ in range(sizes.layers))
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])  # type: ignore[no-any-return]


def groups_of_vit(sizes: Sizes) -> list[ChannelGroup]:
    """Channels inside its perceptrons and those that attention gives.

    Args:
        sizes: Of the ViT.

    Returns:
        Two groups a layer.
    """
    groups = []
    for k in range(sizes.layers):
        for producer, reader, width in (("up", "down", 4 * sizes.hidden), ("qkv", "project", sizes.hidden)):
            place = ChannelPlace(f"layers.{k}.{reader}", "input", range(width), range(width), channel_axis=-1)
            groups.append(ChannelGroup(f"layers.{k}.{producer}", width, (place,)))
    return groups


def pruner_of(model: nn.Sequential, sizes: Sizes, device: torch.device, importance: Any = None) -> Any:
    """Torch-Pruning's pruner of half of the channels of a ResNet-50.

    Args:
        model: The network.
        sizes: Of its images.
        device: Where it lies.
        importance: What ranks channels.

    Returns:
        The pruner.
    """
    example = torch.zeros(2, 3, sizes.pixels, sizes.pixels, device=device)
    return tp.pruner.BasePruner(
        model, example, importance, global_pruning=True, pruning_ratio=0.5, ignored_layers=[model[-1]]
    )


def batches_of(n_classes: int, sizes: Sizes, device: torch.device) -> Batches:
    """Noise with labels, and two sensitive groups, whose names stay on the CPU as a loader gives them.

    Args:
        n_classes: K.
        sizes: How much of it.
        device: Where it goes.

    Returns:
        The batches.
    """
    generator, batches = torch.Generator().manual_seed(1), []
    for _ in range(sizes.batches):
        x = torch.randn(sizes.batch, 3, sizes.pixels, sizes.pixels, generator=generator)
        y = torch.randint(0, n_classes, (sizes.batch,), generator=generator)
        batches.append((x.to(device), y.to(device), torch.arange(sizes.batch) % 2))
    return batches


class Residual(nn.Module):
    """Two convolutions with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = convolution(channels, channels, 3), convolution(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))
