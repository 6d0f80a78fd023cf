"""Networks of the zoo over tokens and time, and with layers that Torch-Pruning knows from the user only."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim_adapters.torch_pruning import describe_layer


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


class CrossAttention(nn.Module):
    """PyTorch's attention from one layer's tokens to another's, whose width may be its own."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(3, width)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True, kdim=width, vdim=width)
        self.up, self.head = nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.b(x)
        return self.head(self.up(self.mix(self.a(x), memory, memory, need_weights=False)[0]).relu().mean(1))


class TorchDecoder(nn.Module):
    """PyTorch's decoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerDecoderLayer(8, 2, 11, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.a(x), self.b(x)).mean(1))


class FusedKernel(nn.Module):
    """Separate query, key and value through PyTorch's scaled dot product."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query, self.key, self.value = (
            nn.Linear(3, 7),
            nn.Linear(7, 8),
            nn.Linear(7, 8),
            nn.Linear(7, 8),
        )
        self.project, self.head = nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        heads = [layer(x).view(*x.shape[:2], 2, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        y = F.scaled_dot_product_attention(*heads, scale=0.5).transpose(1, 2).flatten(2)
        return self.head((x + self.project(y)).mean(1))


class BareMatrix(nn.Module):
    """A linear layer that is written out: the matrix is a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.matrix = nn.Linear(3, 6), nn.Parameter(torch.randn(6, 9))
        self.up, self.head = nn.Linear(9, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up((self.embed(x).relu() @ self.matrix).relu()).tanh().mean(1))


class BagOfWords(nn.Module):
    """A bag of embeddings beside embeddings, in a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.words = nn.EmbeddingBag(11, 6), nn.Embedding(11, 6)
        self.up, self.down, self.head = nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bag(x) + self.words(x).mean(1)
        return self.head(x + self.down(self.up(x).relu()))


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
    """Layers that Torch-Pruning prunes by pruners of the user's."""

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


class FlattenedTokens(nn.Module):
    """Tokens that are flattened: channel c of token t becomes feature t·C + c."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.dense, self.head = nn.Linear(3, 6), nn.Linear(30, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dense(self.embed(x).relu().flatten(1)).relu())


class FlattenedBesideOthers(nn.Module):
    """Flattened tokens side by side with other features."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.other = nn.Linear(3, 6), nn.Linear(3, 4)
        self.dense, self.head = nn.Linear(34, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.embed(x).flatten(1), self.other(x.mean(1))], 1)
        return self.head(self.dense(x.relu()).relu())


class Plain(nn.Module):
    """The same, of which nothing was said."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.n_out = n_out
        self.weight, self.bias = nn.Parameter(torch.randn(n_in, n_out)), nn.Parameter(torch.randn(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Undescribed(nn.Module):
    """A layer with a customised pruner about whose axes nothing was said."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.head = nn.Linear(3, 6), Plain(6, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.embed(x)).relu().mean(1))
