"""`--split heads`: two ranks make the videos that one makes, and the first alone writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from two_ranks import on_two_ranks

from sfpp_cli.core.parallel import ALONE, Ranks
from sfpp_cli.errors import UserError

pytest_plugins = ["tiny_bundle"]

CPU = torch.device("cpu")


def make(ranks: Ranks, folder: Path) -> int:
    """Two videos, of which one was there, and what is said of them; returns how many this rank wrote."""
    from sfpp_cli.generation.batch import make_all
    from sfpp_cli.generation.model_options import ModelOptions
    from sfpp_cli.generation.requests import GenerateOptions
    from sfpp_cli.models.bundle import Bundle
    from sfpp_cli.progress import Silent

    split = ranks if ranks.world > 1 else None
    model = ModelOptions(device=CPU, dtype=torch.float32, context=8, split=split)
    options = GenerateOptions(
        prompt="a red circle",
        seeds="1,2",
        frames=57,
        out_dir=folder / f"of-{ranks.world}",
        save_latents=True,
        resume=True,
    )
    return len(make_all(options, Bundle(str(folder / "model")), model, ranks, Silent()))


def make_twice(ranks: Ranks, folder: Path) -> None:
    """The second time there is nothing left to do."""
    for _ in range(2):
        assert make(ranks, folder) == (2 if ranks.first else 0)


@pytest.mark.filterwarnings("ignore:this student was trained on rollouts")
def test_two_ranks_write_the_videos_of_one(own_bundle: Path) -> None:
    folder = own_bundle.parent
    on_two_ranks(make_twice, folder)
    assert make(ALONE, folder) == 2
    alone = sorted((folder / "of-1").glob("*.safetensors"))
    assert len(alone) == 2
    for file in alone:
        expected = load_file(file)["latents"]
        found = load_file(folder / "of-2" / file.name)["latents"]
        assert expected.std() > 0.5
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_what_cannot_be_is_refused() -> None:
    from sfpp_cli.generation.together import check_split

    assert check_split(None, ALONE) is None
    assert check_split("heads", Ranks(0, 2, 0)) == Ranks(0, 2, 0)
    for name, says in (
        ("tokens", "--split tokens: it takes heads"),
        ("heads", "torchrun --nproc-per-node 2"),
    ):
        with pytest.raises(UserError, match=says):
            check_split(name, ALONE)
