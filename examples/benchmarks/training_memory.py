"""What an update of distribution matching takes of a GPU's memory, counted without a GPU, weights or time.

    python examples/benchmarks/training_memory.py examples/wan-1.3b/self-forcing-pp-24gb.toml

The trainer makes one update of the recipe's own networks at their real sizes on tensors that have shapes and
no contents (PyTorch's FakeTensorMode), in one process of some hundred megabytes. Every storage is counted
when it appears and when it is freed; the highest sum is the peak. The optimisers' moments, the average, and
gradients of an earlier sample are there from the beginning. Some thousand operations a second are counted, so
rollouts take long: --start 8 --steps 1 leaves most of them out. Once the rolling cache is full, all chunks at
which a window may start are alike, and passes without gradient leave nothing, however many there are.

What is not in it: CUDA's own memory (about 0.5 GB), the allocator's slack, and what a kernel takes for itself
while it runs. Arithmetic is bfloat16 by CPU autocast, as on a GPU; AdamW, which is fused there, is run
parameter by parameter, which takes as little. With `offload`, what rests in main memory is counted, too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sfpp_cli.core import dmd
from sfpp_cli.core.parallel import ALONE
from sfpp_cli.core.student import CausalWanModel, _rope_table
from sfpp_cli.core.teacher import Teacher
from sfpp_cli.core.trainer import Trainer
from sfpp_cli.models.layout import Layout, read_config
from sfpp_cli.models.quiet import quiet_libraries
from sfpp_cli.training.check import check, planned_layout
from sfpp_cli.training.memory import plan
from sfpp_cli.training.objectives import matching_objective
from sfpp_cli.training.recipes import MatchingRecipe, read_recipe
from sfpp_cli.training.run import prepare

CPU = torch.device("cpu")


class Meter(TorchDispatchMode):
    """Counts the bytes of all storages that operations make while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.highest = 0
        """The peak since `part` was last called."""
        self.known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:  # what no content tells, such as a loss
            return 1.0 if args[0].is_floating_point() else 0
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor) and value.device.type != "meta":
                self._count(value.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self.known:
            return
        size = storage.nbytes()

        def freed(_: object) -> None:
            self.live -= size
            del self.known[key]

        self.known[key] = weakref.ref(storage, freed)
        self.live += size
        self.highest = max(self.highest, self.live)
        self.peak = max(self.peak, self.live)

    def part(self, name: str) -> None:
        """Print what is live now, and the peak since this was last called."""
        print(f"{name:<26}{self.live / 1e9:8.2f}{self.highest / 1e9:8.2f}", flush=True)
        self.highest = self.live


class Unloaded(Layout):
    """A model's networks without its weights, with `changes` to their configurations."""

    def __init__(self, layout: Layout, student: str | None, changes: dict[str, Any]) -> None:
        super().__init__(str(layout.folder), student)
        self.changes = changes

    def load_student(self, device: torch.device, dtype: torch.dtype) -> CausalWanModel:
        return self._make(CausalWanModel, self.student, dtype)

    def load_teacher(self, device: torch.device, dtype: torch.dtype) -> Teacher:
        return self._make(Teacher, self.require_teacher(), dtype)

    def _make(self, kind: Any, folder: Path, dtype: torch.dtype) -> Any:
        model = kind.from_config({**read_config(folder), **self.changes})
        for name, parameter in model.named_parameters():
            kept = any(part in name.split(".") for part in kind._keep_in_fp32_modules)
            parameter.data = parameter.data.to(torch.float32 if kept else dtype)
        return model.eval().requires_grad_(False)


def main() -> None:
    options = parse()
    quiet_libraries()
    overrides = {"training.precision": "bfloat16", "training.batch": "1", "preview.every": "0"}
    recipe = read_recipe(options.recipe, MatchingRecipe, overrides=overrides)
    layout, assumed = planned_layout(recipe)
    check(recipe, layout, ALONE)
    print(plan(recipe, layout, ALONE, torch.device("cuda"), Path("runs/x"), assumed), end="\n\n")
    began = time.perf_counter()
    peak = count(recipe, layout, options)
    print(f"counted: {peak / 1e9:.2f} GB at most, in {time.perf_counter() - began:.0f} s")


def count(recipe: MatchingRecipe, layout: Layout, options: argparse.Namespace) -> int:
    """Bytes at the highest point of an update of one sample."""
    changes = {} if options.layers is None else {"num_layers": options.layers}
    bundle = Unloaded(layout, str(layout.student) if recipe.student else None, changes)
    width = read_config(layout.folder / "text_encoder")["d_model"]
    length = layout.settings.text_length

    def text(prompts: list[str]) -> Tensor:
        return torch.zeros(len(prompts), length, width)

    _rope_table.cache_clear()
    with FakeTensorMode(), Meter() as meter, tempfile.TemporaryDirectory() as folder:
        print(f"{'GB':<26}{'live':>8}{'peak':>8}")
        made: Any = matching_objective(recipe, bundle, ["a prompt"], text, CPU)  # type: ignore[arg-type]
        if options.steps is not None:
            made.sampler = replace(made.sampler, steps=made.sampler.steps[-options.steps :])
        made.draw_start = lambda draws: made.starts - 1 if options.start is None else options.start
        trainer = Trainer(made, recipe.training, Path(folder))
        prepare(list({made.student, made.critic, made.teacher}), recipe.training)
        meter.part("networks")
        for optimizer in trainer.optimizers:
            _give_gradients(optimizer)
            optimizer.step()
            optimizer.zero_grad()
        trainer.step = recipe.training.ema_start
        trainer._update_ema()
        meter.part("moments, average")
        mean_of_all = dmd.dmd_loss
        dmd.dmd_loss = lambda x, gradient, mask: mean_of_all(x, gradient)  # a mask's contents are not known
        for name in ("window", "score_difference"):
            _tell(made, name, meter)
        for number, optimizer in enumerate(trainer.optimizers):
            _give_gradients(optimizer)
            trainer._update_player(number, 0)
            meter.part(f"{('student', 'critic')[number]}'s backward, update")
        trainer._update_ema()
        dmd.dmd_loss = mean_of_all
    _rope_table.cache_clear()
    return meter.peak


def _give_gradients(optimizer: torch.optim.Optimizer) -> None:
    """As an earlier sample leaves them."""
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.zeros_like(parameter)


def _tell(made: Any, name: str, meter: Meter) -> None:
    """Print a line whenever the objective's method `name` has run."""
    method: Callable[..., Any] = getattr(made, name)

    def told(*args: Any) -> Any:
        answer = method(*args)
        meter.part(name)
        return answer

    setattr(made, name, told)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--start", type=int, help="chunk at which the window starts (default: the last)")
    parser.add_argument("--steps", type=int, help="denoising steps, the last ones (default: the recipe's)")
    parser.add_argument("--layers", type=int, help="transformer blocks (default: the model's)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
