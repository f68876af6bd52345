"""One video by several ranks: each has some tokens of every latent frame, and some heads of the cache.

DeepSpeed-Ulysses (arXiv 2309.14509): outside self-attention tokens know nothing of each other, inside it
heads do not. So every rank has its share of the tokens, exchanges queries, keys and values for those of all
tokens and its share of the heads, attends, and exchanges the answer back. The cache never moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sfpp_cli.core.cache import Attend, KeysValues, KVCache, Room
from sfpp_cli.core.parallel import Ranks
from sfpp_cli.errors import UserError


@dataclass(frozen=True)
class Split:
    """This rank's share of every pass. All ranks make the same passes at the same time."""

    ranks: Ranks

    def check(self, heads: int, tokens: int) -> None:
        """UserError unless heads, and a latent frame's tokens, can be shared out evenly."""
        if heads % self.ranks.world or tokens % self.ranks.world:
            raise UserError(
                f"--split heads: {heads} heads, and {tokens} tokens of a latent frame, cannot be shared out "
                f"evenly over {self.ranks.world} processes: start another number of them"
            )

    def mine(self, x: Tensor) -> Tensor:
        """This rank's tokens [B, F, N / ranks, D] of all [B, F, N, D]."""
        return x.chunk(self.ranks.world, dim=2)[self.ranks.rank].contiguous()

    def whole(self, x: Tensor) -> Tensor:
        """All tokens [B, F, N, D] from every rank's [B, F, N / ranks, D]."""
        parts = [torch.empty_like(x) for _ in range(self.ranks.world)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, dim=2)

    def my_heads(self, x: Tensor) -> Tensor:
        """This rank's heads of [B, heads, L, head_dim]."""
        return x.chunk(self.ranks.world, dim=1)[self.ranks.rank]

    def to_heads(self, x: Tensor, tokens: int) -> Tensor:
        """All heads of my tokens [B, H, F n, d] -> my heads of all tokens [B, H / ranks, F N, d].

        `tokens` is N, a latent frame's.
        """
        by_rank = x.unflatten(2, (-1, tokens // self.ranks.world)).unflatten(1, (self.ranks.world, -1))
        return self._exchanged(by_rank.movedim(1, 0)).movedim(0, 3).flatten(2, 4)

    def to_tokens(self, x: Tensor, tokens: int) -> Tensor:
        """The way back: my heads of all tokens [B, H / ranks, F N, d] -> all heads of my tokens."""
        by_rank = x.unflatten(2, (-1, self.ranks.world, tokens // self.ranks.world))
        return self._exchanged(by_rank.movedim(3, 0)).movedim(0, 1).flatten(1, 2).flatten(2, 3)

    def _exchanged(self, x: Tensor) -> Tensor:
        """Of [ranks, ...] the r-th part goes to rank r; the answer has what each rank has for this one."""
        answer = torch.empty_like(x, memory_format=torch.contiguous_format)
        dist.all_to_all_single(answer, x.contiguous())
        return answer


class SplitCache(KVCache):
    """A rolling cache of this rank's heads, for passes over its tokens."""

    def __init__(self, text: Sequence[KeysValues], room: Room, split: Split) -> None:
        split.check(text[0][0].shape[1], room.tokens)
        super().__init__([(split.my_heads(key), split.my_heads(value)) for key, value in text], room)
        self.text = text  # whole: its attention needs no other token
        self.split = split

    def attention(self, layer: int) -> Attend:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            asking = self.split.to_heads(query, self.room.tokens)
            answer = F.scaled_dot_product_attention(asking, *self.write(layer, key, value))
            return self.split.to_tokens(answer, self.room.tokens)

        return attend

    def write(self, layer: int, key: Tensor, value: Tensor) -> KeysValues:
        """Put my tokens' keys and values, with those of all ranks, in the slots of my heads."""
        mine = (self.split.to_heads(part, self.room.tokens) for part in (key, value))
        return super().write(layer, *mine)
