"""Stored embeddings are the encoder's, to the bit; only what is missing is computed, and nothing is mixed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from sfpp_cli.core.parallel import Ranks
from sfpp_cli.data import text_store
from sfpp_cli.data.text_store import StoredPrompts, store_prompts, text_origin
from sfpp_cli.errors import UserError
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.layout import Layout
from sfpp_cli.models.text import EmbeddedPrompts, TextEncoder

pytest_plugins = ["tiny_bundle"]

PROMPTS = [
    "",
    "a red circle",
    "the blue square moving left and right",
    "lone \udcff surrogate",
    "a " * 20,
    "a red circle",
]


class Lone(Ranks):
    """One rank of several, in a process of its own group."""

    def wait(self) -> None:
        pass


class Counting(TextEncoder):
    """Remembers what it was asked for, and gives up after `patience` prompts."""

    def __init__(self, encoder: TextEncoder, patience: int = 99) -> None:
        super().__init__(encoder.tokenizer, encoder.model, encoder.length)
        self.asked: list[str] = []
        self.patience = patience

    def embed(self, prompt: str) -> tuple[Tensor, str]:
        if len(self.asked) == self.patience:
            raise KeyboardInterrupt
        self.asked.append(prompt)
        return super().embed(prompt)


class Silent:
    """A watch that remembers the last progress."""

    progress: tuple[int, int] | None = None

    def say(self, text: str) -> None:
        pass

    warn = say

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Any]:
        def advance(done: int, figures: Mapping[str, str]) -> None:
            self.progress = (done, total)

        yield advance


@pytest.fixture(scope="module")
def encoders(tiny_bundle: Path) -> dict[torch.dtype, TextEncoder]:
    bundle = Bundle(str(tiny_bundle))
    return {dtype: bundle.load_text(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.bfloat16)}


@pytest.fixture
def encoder(encoders: dict[torch.dtype, TextEncoder]) -> Counting:
    return Counting(encoders[torch.float32])


def store(
    folder: Path, prompts: list[str], encoder: TextEncoder, origin: str = "one", rank: int = 0, world: int = 1
) -> Silent:
    watch = Silent()
    store_prompts(folder, prompts, lambda: encoder, origin, Lone(rank, world), watch)
    return watch


def names(folder: Path) -> list[str]:
    """What all shards hold, doubles included."""
    found: list[str] = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found += file.keys()
    return found


def one_line(pattern: str) -> Any:
    return pytest.raises(UserError, match=rf"\A(?=.*(?:{pattern})).*\Z")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_stored_is_what_was_embedded(
    dtype: torch.dtype, encoders: dict[torch.dtype, TextEncoder], tmp_path: Path
) -> None:
    encoder = encoders[dtype]
    store(tmp_path, PROMPTS, encoder)
    embedded, stored = EmbeddedPrompts(encoder, PROMPTS), StoredPrompts(tmp_path, encoder.length)
    for batch in (PROMPTS, PROMPTS[2:3], PROMPTS[::-1]):
        assert torch.equal(stored(batch), embedded(batch).float())
    assert stored(PROMPTS).dtype == torch.float32
    assert stored(PROMPTS).shape == (6, encoder.length, encoder.model.config.d_model)
    assert not stored(PROMPTS).requires_grad
    with safe_open(next(tmp_path.glob("*.safetensors")), framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {dtype}  # noqa: SIM118 (it is no mapping)


def test_a_prompt_is_padded_to_what_is_asked(encoder: Counting, tmp_path: Path) -> None:
    store(tmp_path, PROMPTS, encoder)
    short, long = (
        StoredPrompts(tmp_path, encoder.length)(PROMPTS),
        StoredPrompts(tmp_path, encoder.length + 3)(PROMPTS),
    )
    assert torch.equal(long[:, : encoder.length], short)
    assert not long[:, encoder.length :].any()
    with one_line(f"a prompt of {encoder.length} tokens, more than 4"):
        StoredPrompts(tmp_path, 4)(["a " * 20])


def test_only_what_is_missing_is_computed(encoder: Counting, tmp_path: Path) -> None:
    store(tmp_path, PROMPTS[:2], encoder)
    assert store(tmp_path, PROMPTS, encoder).progress == (3, 3)
    assert encoder.asked == PROMPTS[:5]
    assert len(names(tmp_path)) == len(set(names(tmp_path))) == 5


def test_without_need_no_encoder_is_loaded(encoder: Counting, tmp_path: Path) -> None:
    def load() -> TextEncoder:
        raise AssertionError("the encoder was loaded")

    store(tmp_path, PROMPTS, encoder)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    watch = Silent()
    store_prompts(tmp_path, PROMPTS, load, "one", Ranks(), watch)
    assert watch.progress is None
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_an_interrupted_store_goes_on_behind_its_last_file(
    encoders: dict[torch.dtype, TextEncoder],
    encoder: Counting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_store, "SHARD", 2)
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, PROMPTS, Counting(encoders[torch.float32], patience=3))
    assert len(names(tmp_path)) == 2
    store(tmp_path, PROMPTS, encoder)
    assert encoder.asked == PROMPTS[2:5]
    assert torch.equal(
        StoredPrompts(tmp_path, encoder.length)(PROMPTS), EmbeddedPrompts(encoder, PROMPTS)(PROMPTS)
    )


def test_a_half_written_file_is_not_read(encoder: Counting, tmp_path: Path) -> None:
    store(tmp_path, PROMPTS, encoder)
    (tmp_path / ".text-0123456789abcdef.safetensors.part").write_bytes(b"half")
    assert StoredPrompts(tmp_path, encoder.length)(PROMPTS).isfinite().all()


def test_ranks_share_the_work_without_doubles(
    encoders: dict[torch.dtype, TextEncoder], tmp_path: Path
) -> None:
    prompts = [
        f"a {colour} {shape}"
        for colour in ("red", "blue", "green")
        for shape in ("circle", "square", "moving", "left")
    ]
    ranks = [Counting(encoders[torch.float32]) for _ in range(3)]
    for rank, encoder in enumerate(ranks):
        store(tmp_path, prompts, encoder, rank=rank, world=3)
    assert sorted(prompt for encoder in ranks for prompt in encoder.asked) == sorted(prompts)
    assert all(encoder.asked for encoder in ranks)
    assert len(names(tmp_path)) == len(set(names(tmp_path))) == len(prompts)
    alone = EmbeddedPrompts(encoders[torch.float32], prompts)
    assert torch.equal(StoredPrompts(tmp_path, alone.length)(prompts), alone(prompts))


def test_another_encoders_store_is_refused(encoder: Counting, tmp_path: Path) -> None:
    store(tmp_path, PROMPTS[:2], encoder)
    with one_line("text-.*safetensors was made with another text encoder: choose another text_store"):
        store(tmp_path, PROMPTS, encoder, origin="another")
    assert encoder.asked == PROMPTS[:2]


def test_the_origin_tells_all_that_decides_the_numbers(own_bundle: Path) -> None:
    def origin(dtype: torch.dtype = torch.float32, length: int = 8) -> str:
        layout = Layout(str(own_bundle))
        layout.settings = dataclasses.replace(layout.settings, text_length=length)
        return text_origin(layout, dtype)

    seen = [origin(), origin(torch.bfloat16), origin(length=9)]
    assert origin() == seen[0]
    (own_bundle / "tokenizer" / "tokenizer_config.json").write_text("{}")
    seen.append(origin())
    weights = next((own_bundle / "text_encoder").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    seen.append(origin())
    assert len(set(seen)) == 5


def test_what_is_not_there_is_told(encoder: Counting, tmp_path: Path) -> None:
    with one_line("no embeddings in .*nowhere"):
        StoredPrompts(tmp_path / "nowhere", encoder.length)
    store(tmp_path, PROMPTS, encoder)
    with one_line("lacks the prompt 'a blue circle': start again"):
        StoredPrompts(tmp_path, encoder.length)(["a blue circle"])


def test_a_damaged_file_is_told(encoder: Counting, tmp_path: Path) -> None:
    store(tmp_path, PROMPTS, encoder)
    path = next(tmp_path.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:40])
    with one_line(f"{path.name} is damaged"):
        StoredPrompts(tmp_path, encoder.length)
