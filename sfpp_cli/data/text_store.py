"""Prompts' embeddings, computed once into a folder and read at random.

The text encoder can be freed afterwards, and memory does not grow with the number of prompts. A shard is a
safetensors file with a tensor [n, D] for each prompt, named by the prompt's SHA-256, so the headers are the
index. The file is named after its first prompt, so files of several ranks never have the same name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfpp_cli.core.parallel import Ranks
from sfpp_cli.data.digests import checked, digest
from sfpp_cli.errors import UserError
from sfpp_cli.files import replacing
from sfpp_cli.models.bundle import weights_digest
from sfpp_cli.models.layout import Layout
from sfpp_cli.models.text import TextEncoder, padded
from sfpp_cli.progress import Progress

SHARD = 256
"""Prompts in a file; an interruption loses less than one file on each rank."""


class StoredPrompts:
    """Embeddings from a folder: called with prompts, it reads theirs. `EmbeddedPrompts` does from memory."""

    def __init__(self, folder: Path, length: int) -> None:
        """`length` is what embeddings are padded to, in tokens."""
        self.folder = folder
        self.length = length
        self.shards = {
            name: (path, shard, digests.get(name))
            for path, shard, digests in _shards(folder)
            for name in shard.keys()  # noqa: SIM118 (it is no mapping)
        }
        if not self.shards:
            raise UserError(
                f"no embeddings in {folder}: name another text_store, or start again to make them"
            )

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Padded embeddings [B, length, D], float32. UserError if one is not stored, damaged, or longer."""
        return padded([self._row(prompt).float() for prompt in prompts], self.length)

    def _row(self, prompt: str) -> Tensor:
        name = _name(prompt)
        if name not in self.shards:
            raise UserError(f"{self.folder} lacks the prompt {prompt[:60]!r}: start again to add it")
        path, shard, wanted = self.shards[name]
        row = checked(shard.get_tensor(name), wanted, path)
        if row.shape[0] > self.length:
            long = f"a prompt of {row.shape[0]} tokens, more than {self.length}"
            raise UserError(f"{self.folder} holds {long}: delete the folder")
        return row


@torch.no_grad()
def store_prompts(
    folder: Path,
    prompts: Iterable[str],
    load_encoder: Callable[[], TextEncoder],
    origin: str,
    ranks: Ranks,
    progress: Progress,
) -> None:
    """Add the prompts that `folder` lacks, in their encoder's precision; it is loaded only if one is missing.

    `origin` (see `text_origin`) stands for all that decides the numbers; UserError if the folder has
    another. All ranks call this, in a process group; every prompt belongs to one rank, whatever is there
    already.
    """
    done = set(_names(folder, origin))
    mine = {_name(prompt): prompt for prompt in prompts if int(_name(prompt), 16) % ranks.world == ranks.rank}
    missing = [(name, prompt) for name, prompt in mine.items() if name not in done]
    if missing:
        encoder = load_encoder()
        too_long = 0
        with progress.stage("prompts", len(missing)) as advance:
            for start in range(0, len(missing), SHARD):
                part = missing[start : start + SHARD]
                # One by one: in a batch a prompt's last bits would depend on the others.
                embedded = {name: encoder.embed(prompt) for name, prompt in part}
                rows = {name: row.cpu().contiguous() for name, (row, _) in embedded.items()}
                too_long += sum(bool(end) for _, end in embedded.values())
                path = folder / f"text-{part[0][0][:16]}.safetensors"
                digests = json.dumps({name: digest(row) for name, row in rows.items()})
                with replacing(path) as whole:
                    save_file(rows, whole, metadata={"origin": origin, "digests": digests})
                advance(start + len(part), {})
        if too_long:
            progress.warn(cut_short(too_long, encoder.length))
    ranks.wait()


def cut_short(count: int, length: int) -> str:
    """What to say of prompts that are longer than the text encoder reads."""
    return f"{count} prompts are longer than {length} tokens: their ends are not seen"


def text_origin(layout: Layout, dtype: torch.dtype) -> str:
    """A digest of what decides embeddings: the encoder's weights and precision, the tokenizer, the length."""
    weights = weights_digest(layout.folder / "text_encoder")
    digest = hashlib.sha256(f"{weights} {layout.settings.text_length} {dtype}".encode())
    for file in sorted((layout.folder / "tokenizer").iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _names(folder: Path, origin: str) -> Iterator[str]:
    """Names of the prompts that are stored. UserError if they are of another origin."""
    for path, shard, _ in _shards(folder):
        if (shard.metadata() or {}).get("origin") != origin:
            raise UserError(
                f"{path} was made with another text encoder: choose another text_store, or delete this one"
            )
        yield from shard.keys()


def _shards(folder: Path) -> Iterator[tuple[Path, Any, dict[str, str]]]:
    """Every file, open, with the digests of its tensors; those of before have none."""
    for path in sorted(folder.glob("text-*.safetensors")):
        try:
            shard = safe_open(path, framework="pt")
            digests = json.loads((shard.metadata() or {}).get("digests", "{}"))
            yield path, shard, digests
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}): delete it and start again") from error


def _name(prompt: str) -> str:
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
