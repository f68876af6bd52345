"""What training reads is what was written: a flipped bit in stored data ends a run in one line."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from toy_training import flip_bit

from sfpp_cli.core.noise import seeded
from sfpp_cli.core.parallel import ALONE
from sfpp_cli.data import latents, trajectories
from sfpp_cli.data.text_store import StoredPrompts, store_prompts
from sfpp_cli.errors import UserError
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.progress import Silent

pytest_plugins = ["tiny_bundle"]

ORIGIN = {"seed": 1, "steps": [1000, 750], "guidance": 4.0, "negative_prompt": "", "shape": [7, 4, 2, 2]}
PATHS = torch.randn(3, 3, 7, 4, 2, 2, generator=seeded(1))
PROMPTS = ["a red circle", "a blue square", "a red square moving left"]


def write_pairs(folder: Path) -> Path:
    trajectories.write_shard(folder, 0, PATHS, PROMPTS, ORIGIN)
    trajectories.write_index(folder, 1, ORIGIN)
    return trajectories.shard_path(folder, 0)


def tensor_bytes(file: Path) -> range:
    """Where a safetensors file holds its numbers: after a length and a header."""
    content = file.read_bytes()
    return range(8 + int.from_bytes(content[:8], "little"), len(content))


def flips(file: Path, count: int = 8) -> list[int]:
    """Some places in its numbers, the first and the last among them."""
    numbers = tensor_bytes(file)
    return [numbers[0], numbers[-1], *random.Random(0).sample(numbers, count)]


def test_the_same_pairs_are_the_same_file(tmp_path: Path) -> None:
    """Made after a kill or not: safetensors puts metadata of several keys in any order."""
    files = {write_pairs(tmp_path / str(number)).read_bytes() for number in range(20)}
    assert len(files) == 1


def test_a_damaged_trajectory_is_not_learned_from(tmp_path: Path) -> None:
    file = write_pairs(tmp_path)
    store = trajectories.TrajectoryStore(tmp_path)
    drawn = [store.draw(seeded(number)) for number in range(20)]
    assert {prompt for _, prompt in drawn} == set(PROMPTS)
    assert all(torch.equal(path, PATHS[PROMPTS.index(prompt)].half().float()) for path, prompt in drawn)
    for place in flips(file):
        flip_bit(file, place)
        store = trajectories.TrajectoryStore(tmp_path)
        with pytest.raises(UserError, match=r"pairs-00000.safetensors is damaged"):
            [store.draw(seeded(number)) for number in range(20)]
        flip_bit(file, place)


def test_pairs_of_before_have_no_digests_and_are_read(tmp_path: Path) -> None:
    file = write_pairs(tmp_path)
    metadata = {"prompts": json.dumps(PROMPTS), "origin": json.dumps(ORIGIN)}
    save_file({"trajectories": PATHS.half()}, file, metadata=metadata)
    assert trajectories.missing_shards(tmp_path, [3], ORIGIN) == []
    assert trajectories.TrajectoryStore(tmp_path).draw(seeded(0))[1] in PROMPTS


def test_a_damaged_latent_is_not_learned_from(tmp_path: Path) -> None:
    clips = torch.randn(2, 9, 4, 2, 2, generator=seeded(1))
    latents.write_shard(tmp_path, 0, clips, [["a"], ["b"]])
    file = tmp_path / "latents-00000.safetensors"
    windows = latents.LatentWindows(tmp_path, 5, mid_stream=0.5)
    for number in range(40):
        window, caption = windows.draw(seeded(number))
        video = clips["ab".index(caption[0])].half().float()
        assert any(torch.equal(window, video[first : first + 5]) for first in range(5))
    for place in flips(file):
        flip_bit(file, place)
        windows = latents.LatentWindows(tmp_path, 5, mid_stream=0.5)
        with pytest.raises(UserError, match=r"latents-00000.safetensors is damaged"):
            [windows.draw(seeded(number)) for number in range(200)]
        flip_bit(file, place)


def test_a_damaged_embedding_is_not_used(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle(str(tiny_bundle))
    encoder = bundle.load_text(torch.device("cpu"), torch.float32)
    store_prompts(tmp_path, PROMPTS, lambda: encoder, "origin", ALONE, Silent())
    (file,) = tmp_path.glob("text-*.safetensors")
    StoredPrompts(tmp_path, 8)(PROMPTS)
    for place in flips(file):
        flip_bit(file, place)
        with pytest.raises(UserError, match=rf"{file.name} is damaged"):
            StoredPrompts(tmp_path, 8)(PROMPTS)
        flip_bit(file, place)


def test_prompts_that_are_cut_are_counted(tiny_bundle: Path, tmp_path: Path) -> None:
    encoder = Bundle(str(tiny_bundle)).load_text(torch.device("cpu"), torch.float32)
    with pytest.warns(UserWarning, match=r"^1 prompts are longer than 8 tokens: their ends are not seen$"):
        store_prompts(tmp_path, [*PROMPTS, "a red " * 8], lambda: encoder, "origin", ALONE, Silent())
    with safe_open(next(tmp_path.glob("*.safetensors")), framework="pt") as shard:
        assert max(shard.get_slice(name).get_shape()[0] for name in shard.keys()) == 8  # noqa: SIM118
