"""Pairs of sentences that differ in the people they name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from fairtrim.arguments import require_number
from fairtrim.errors import InputError

from .token_rows import token_rows

__all__ = ["SentencePairs"]

PairSample = tuple[dict[str, Tensor], Tensor, str]


@dataclass(frozen=True)
class SentencePairs(Dataset[PairSample]):
    """N pairs of sentences, x and x̄, held on the CPU, whose log-likelihoods a fair language model would give alike.

    What counts of a sentence is LL, the sum of the log-likelihoods of the tokens that both sentences of its pair share
    (CrowS-Pairs: Nangia and others, EMNLP 2020): names themselves are rarer or more frequent, and that is no bias. A
    sample is ``({"input_ids", "attention_mask", "shared"}, 0, category)``, so that the squared error of
    ``fairtrim.pair_differences`` against the target 0 is (LL(x) − LL(x̄))².

    Args:
        input_ids: Tokens, padded on the right, (N, 2, T).
        attention_mask: 1 at tokens, 0 at padding, (N, 2, T).
        shared: Which tokens both sentences share, (N, 2, T) bool; as many on either side.
        categories: What each pair is about, such as gender, N strings; empty for none.

    Raises:
        InputError: The shapes don't fit, a pair shares no token, or its sides don't share the same number.

    Example:
        >>> pairs = SentencePairs.of_tokens([[1, 5, 6], [1, 5, 7, 8]], [[2, 5, 6], [2, 3, 5, 7, 8]],
        ...                                 shared=[([0, 1, 1], [0, 1, 1]), ([0, 1, 1, 1], [0, 0, 1, 1, 1])])
        >>> len(pairs), pairs.input_ids.shape, pairs.shared.sum(2).tolist()
        (2, torch.Size([2, 2, 5]), [[2, 2], [3, 3]])
    """

    input_ids: Tensor
    attention_mask: Tensor
    shared: Tensor
    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("input_ids", "attention_mask", "shared"):
            object.__setattr__(self, name, getattr(self, name).cpu())
        shape = tuple(self.input_ids.shape)
        if len(shape) != 3 or shape[1] != 2 or any(t.shape != shape for t in (self.attention_mask, self.shared)):
            raise InputError(
                f"input_ids, attention_mask and shared are {shape}, {tuple(self.attention_mask.shape)} and "
                f"{tuple(self.shared.shape)}; expected (N, 2, T), all alike"
            )
        if not len(self):
            raise InputError("there are no pairs; expected at least one")
        if self.categories and len(self.categories) != len(self):
            raise InputError(f"{len(self)} pairs have {len(self.categories)} categories; expected one each")
        n_shared = (self.shared.bool() & self.attention_mask.bool()).sum(2)
        odd = ((n_shared[:, 0] != n_shared[:, 1]) | (n_shared[:, 0] == 0)).nonzero().flatten().tolist()
        if odd:
            raise InputError(
                f"pair {odd[0]} shares {n_shared[odd[0], 0]} tokens on one side and {n_shared[odd[0], 1]} on the "
                "other; expected as many, at least one: look at its mask of shared tokens"
            )

    def __len__(self) -> int:
        """N."""
        return len(self.input_ids)

    def __getitem__(self, number: int) -> PairSample:
        """One pair as a sample: inputs (2, T), the target 0, (1,), and the category."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "shared": self.shared}
        category = self.categories[number] if self.categories else "pairs"
        return {name: tensor[number] for name, tensor in inputs.items()}, torch.zeros(1, device="cpu"), category

    def take(self, rows: Sequence[int] | Tensor) -> SentencePairs:
        """Some of the pairs.

        Args:
            rows: Their numbers.

        Returns:
            Those pairs, in that order, without the columns that only padding would be left in.
        """
        numbers = [int(row) for row in (rows.tolist() if isinstance(rows, Tensor) else rows)]
        mask = self.attention_mask[numbers]
        length = int(mask.sum(2).max()) if numbers else 0
        categories = tuple(self.categories[row] for row in numbers) if self.categories else ()
        return SentencePairs(
            self.input_ids[numbers][..., :length], mask[..., :length], self.shared[numbers][..., :length], categories
        )

    def in_folds(self, number: int = 8) -> SentencePairs:
        """The same pairs, every second, third, ... of which belongs to one fold, as its category.

        Args:
            number: Folds; at most as many as there are pairs.

        Returns:
            The pairs, in the same order, with the categories ``"fold 1"``, ``"fold 2"``, ...

        Raises:
            InputError: There are fewer pairs than folds.

        Example:
            >>> pairs = SentencePairs.of_tokens([[1, 5]] * 3, [[2, 5]] * 3)
            >>> pairs.in_folds(2).categories
            ('fold 1', 'fold 2', 'fold 1')
        """
        require_number(
            "number", number, at_least=1, below=len(self) + 1, whole=True, remedy=f", as there are {len(self)} pairs"
        )
        return replace(self, categories=tuple(f"fold {row % number + 1}" for row in range(len(self))))

    def loader(self, batch_size: int = 16) -> DataLoader[PairSample]:
        """Batches in the order of the pairs: ``({...: (B, 2, T)}, zeros (B, 1), categories)``.

        Args:
            batch_size: Pairs a batch.

        Returns:
            A loader for ``collect_damage`` and the criteria.
        """
        return DataLoader(self, batch_size=batch_size)

    @classmethod
    def of_tokens(
        cls,
        first: Sequence[Sequence[int]],
        second: Sequence[Sequence[int]],
        *,
        shared: Sequence[tuple[Sequence[int], Sequence[int]]] | None = None,
        categories: Sequence[str] = (),
    ) -> SentencePairs:
        """From tokens.

        Args:
            first: Tokens of x of each pair.
            second: Tokens of x̄ of each.
            shared: For each pair 1 or 0 at every token of either side; None where both sides are as long, and the
                tokens that are equal at the same place are shared.
            categories: What each pair is about.

        Returns:
            The pairs.

        Raises:
            InputError: Sides have different lengths and there is no mask, or it doesn't fit.
        """
        if len(first) != len(second) or (shared is not None and len(shared) != len(first)):
            raise InputError(
                f"{len(first)} first and {len(second)} second sentences; expected pairs, and a mask of each"
            )
        marks: list[Sequence[int]] = []
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            if shared is not None:
                mask = shared[number]
                if tuple(map(len, mask)) != (len(one), len(other)):
                    raise InputError(
                        f"pair {number} has {len(one)} and {len(other)} tokens and a mask of {len(mask[0])} and "
                        f"{len(mask[1])}; expected 1 or 0 for every token"
                    )
                marks += mask
            elif len(one) != len(other):
                raise InputError(
                    f"the sentences of pair {number} have {len(one)} and {len(other)} tokens, so that which of them "
                    "are shared can't be told from their places; pass shared=, or use SentencePairs.of_texts, which "
                    "aligns them"
                )
            else:
                marks += [[int(a == b) for a, b in zip(one, other, strict=True)]] * 2
        rows = [torch.as_tensor(list(side), device="cpu") for pair in zip(first, second, strict=True) for side in pair]
        lengths = torch.tensor([len(row) for row in rows], device="cpu")
        ids = pad_sequence(rows, batch_first=True) if rows else torch.zeros(0, 0, dtype=torch.long, device="cpu")
        mask_of_all = (
            pad_sequence([torch.as_tensor(list(m), device="cpu").bool() for m in marks], batch_first=True)
            if rows
            else ids
        )
        present = (torch.arange(ids.shape[1], device="cpu") < lengths[:, None]).long() if rows else ids
        shape = len(first), 2, ids.shape[1]
        return cls(ids.view(shape), present.view(shape), mask_of_all.view(shape), tuple(categories))

    @classmethod
    def of_texts(
        cls,
        first: Sequence[str],
        second: Sequence[str],
        tokenizer: Callable[[list[str]], Any],
        *,
        categories: Sequence[str] = (),
        start: int | Literal["auto"] | None = "auto",
    ) -> SentencePairs:
        """From texts; what both sentences share is found by aligning their tokens, as CrowS-Pairs does.

        A token that starts texts goes before both sentences, as is usual for models like GPT-2. It counts for neither,
        but with it the first word is predicted as well, and isn't the one that attention falls on where nothing else
        is to be read: names in its place would differ in that.

        Args:
            first: x of each pair, for data on stereotypes the stereotypical sentence.
            second: x̄ of each.
            tokenizer: Texts -> their tokens, under ``input_ids``, as those of Hugging Face give them.
            categories: What each pair is about.
            start: The token before both sentences; ``"auto"`` for ``tokenizer.bos_token_id``, if it has one. It is not
                doubled where the tokenizer puts it there. None for the sentences alone.

        Returns:
            The pairs.

        Raises:
            InputError: There are not as many second as first sentences, or a pair shares no token.

        Example:
            >>> tokens = lambda texts: {"input_ids": [[ord(letter) - 96 for letter in text] for text in texts]}
            >>> pairs = SentencePairs.of_texts(["acd"], ["bcd"], tokens, start=0)
            >>> pairs.input_ids.tolist(), pairs.shared.int().tolist()
            ([[[0, 1, 3, 4], [0, 2, 3, 4]]], [[[0, 0, 1, 1], [0, 0, 1, 1]]])
        """
        if len(first) != len(second):
            raise InputError(f"{len(first)} first and {len(second)} second sentences; expected pairs")
        if start == "auto":
            start = getattr(tokenizer, "bos_token_id", None)
        before: list[int] = []
        if start is not None:
            require_number("start", start, at_least=0, whole=True, remedy=", the number of a token, 'auto' or None")
            before = [int(start)]
        sides = [
            [row[1:] if before and row[:1] == before else row for row in token_rows(texts, tokenizer)]
            for texts in (first, second)
        ]
        marks = [_aligned(one, other, has_first=bool(before)) for one, other in zip(*sides, strict=True)]
        hidden = [0] * len(before)
        return cls.of_tokens(
            *([before + row for row in side] for side in sides),
            shared=[(hidden + one, hidden + other) for one, other in marks],
            categories=categories,
        )


def _aligned(one: Sequence[int], other: Sequence[int], *, has_first: bool) -> tuple[list[int], list[int]]:
    """1 at the tokens of the longest common runs of two sentences; whether the first of a side has a likelihood."""
    marks = [0] * len(one), [0] * len(other)
    for block in SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks():
        skipped = int(not has_first and (block.a == 0) != (block.b == 0))  # it has a likelihood on one side alone
        size = max(0, block.size - skipped)
        marks[0][block.a + skipped : block.a + skipped + size] = [1] * size
        marks[1][block.b + skipped : block.b + skipped + size] = [1] * size
    return marks
