"""Published weights into a model's folder, which every command takes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.devices import DTYPES
from sfpp_cli.errors import UserError
from sfpp_cli.files import replacing
from sfpp_cli.models.convert import infer_config, student_from_original, transformer_keys
from sfpp_cli.models.layout import SHARED, Layout, read_config
from sfpp_cli.models.lora import Lora, merge
from sfpp_cli.models.original import FP8, Original, load_original, no_model
from sfpp_cli.models.quiet import quiet_libraries
from sfpp_cli.models.releases import RELEASES, SAMPLING, guess_release, release, unwarped
from sfpp_cli.models.settings import SETTINGS, Settings

_COPIED = (*SHARED, "scheduler", "teacher")
_BIDIRECTIONAL = ("WanModel", "WanTransformer3DModel", "Teacher")


def convert(
    source: Path,
    target: Path,
    changes: Mapping[str, Any],
    *,
    like: str | None = None,
    unwarp: bool = False,
    loras: Sequence[Lora] = (),
    base: str | None = None,
    which: str | None = None,
    num_heads: int | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write `source` to the folder `target`: the student, `sfpp.json`, and all else of a `base` if given.

    `changes` are the settings that are told. The others are those of the release `like`, or of the source's
    folder, or of the base, or Self-Forcing's, in this order. `unwarp` says that the steps told are timesteps
    as the network gets them. `dtype` is the source's by default. The folder appears complete or not at all.
    Returns what a user should know of the result, a sentence each. Raises UserError if anything is wrong.
    """
    quiet_libraries()
    _check_target(target, overwrite)
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: it takes {', '.join(DTYPES)}")
    if unwarp and not changes.keys() & {"steps", "first_steps"}:
        raise UserError("--unwarped says what kind of timesteps --steps are: give --steps too")
    layout = None if base is None else Layout(base)
    known = release(like) if like else None
    original = load_original(source, which)
    told = {**_published(original), **(known.settings if known else {}), **changes}
    settings = _settings(layout, told, changes if unwarp else ())
    student = _student(original, which, loras, num_heads, layout, dtype)
    with replacing(target) as part:
        student.save_pretrained(part / "transformer")
        for copied in _COPIED:
            if layout is not None and (layout.folder / copied).is_dir():
                shutil.copytree(layout.folder / copied, part / copied)
        settings.write(part / SETTINGS)
    notes = list(_doubts(original, which))
    if known is None:
        notes += _assumptions(settings, told, original, loras)
    else:
        notes += [known.warning, "" if loras else known.without_lora]
    return [note for note in notes if note]


def parse_steps(text: str, option: str) -> list[int]:
    """`1000,750,500,250` -> the list of them."""
    try:
        return [int(step) for step in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: it takes timesteps such as 1000,750,500,250") from None


def _check_target(target: Path, overwrite: bool) -> None:
    """Never walk over anything but an earlier conversion, and over that only if told to."""
    if not os.path.exists(target):
        return
    if not (target / SETTINGS).exists():
        raise UserError(f"{target} exists and is no converted model: choose another folder")
    if not overwrite:
        raise UserError(f"{target} exists: use --overwrite, or choose another folder")


def _refuse_unmerged(original: Original, which: str | None, loras: Sequence[Lora]) -> None:
    """Never take one half of a base and its LoRA unless told to."""
    path = original.path
    beside = which is None and any("lora" in part for part in original.others)
    if (original.lora or beside) and not any(lora.path.resolve() == path.resolve() for lora in loras):
        raise UserError(
            f"{path} holds a model and a LoRA: merge it with --lora {path}, or leave it out: --lora {path}:0"
        )


def _published(original: Original) -> dict[str, Any]:
    """Settings that the folder of the weights tells: sfpp's own, or FastVideo's in its config.json."""
    if original.settings is not None:
        return asdict(original.settings)
    # hao-ai-lab/FastVideo: fastvideo/configs/models/dits/wanvideo.py; local_attn_size -1 sets no limit
    config = original.config
    window = config.get("local_attn_size", -1)
    told = {
        "chunk": config.get("num_frames_per_block"),
        "context": config.get("sliding_window_num_frames") if window == -1 else window,
        "sink": config.get("sink_size"),
    }
    return {name: value for name, value in told.items() if value is not None}


def _settings(layout: Layout | None, told: Mapping[str, Any], unwarp: Container[str]) -> Settings:
    """`unwarp` names the settings that, if they are steps, are timesteps as the network gets them."""
    try:
        settings = (layout.settings if layout else Settings()).changed(told)
        steps = {"steps": settings.steps, "first_steps": settings.first_steps}
        nominal = {
            name: unwarped(given, settings.shift) for name, given in steps.items() if given and name in unwarp
        }
        return settings.changed(nominal)
    except ValueError as error:
        raise UserError(f"the student's settings: {error}") from None


def _assumptions(
    settings: Settings, told: Mapping[str, Any], original: Original, loras: Sequence[Lora]
) -> Iterator[str]:
    """What was taken for granted, and which release the files' names suggest."""
    guess = guess_release([original.path, *(lora.path for lora in loras)])
    values = {name: getattr(settings, name) for name in SAMPLING if name not in told}
    assumed = ", ".join(f"{name} {_shown(value)}" for name, value in values.items() if value is not None)
    advice = f"the name suggests --like {guess}" if guess else f"--like takes {', '.join(RELEASES)}"
    if assumed:
        yield f"assumed {assumed}, since weights do not tell how they were trained; {advice}"


def _shown(value: object) -> str:
    """A setting as its option takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _doubts(original: Original, which: str | None) -> Iterator[str]:
    """What may be wrong with the weights themselves."""
    others = [part for part in original.others if "lora" not in part]
    if others and which is None:
        yield f"took {original.part} of {original.path}; --which takes another: {', '.join(others)}"
    coarse = next((tensor.dtype for tensor in original.weights.values() if tensor.dtype in FP8), None)
    if coarse is not None:
        error = torch.finfo(coarse).eps / 2
        yield f"{original.path} is in {coarse} without scales, which rounds weights by up to {error:.0%}"
    if original.config.get("_class_name") in _BIDIRECTIONAL:
        yield f"{original.path} calls itself a bidirectional model: it is no student before `sfpp distill`"


def _student(
    original: Original,
    which: str | None,
    loras: Sequence[Lora],
    num_heads: int | None,
    layout: Layout | None,
    dtype: str | None,
) -> CausalWanModel:
    weights = transformer_keys(original.weights)
    if original.lora and "patch_embedding.weight" not in weights:
        raise UserError(no_model(original.path))
    own_heads = original.config.get("num_attention_heads") or original.config.get("num_heads")
    config = infer_config(weights, num_heads or own_heads or _heads_of(layout, weights))
    _refuse_unmerged(original, which, loras)
    stored = weights["patch_embedding.weight"].dtype
    weights |= merge(weights, loras)
    student = student_from_original(weights, config)
    if layout is not None:
        layout.check_fit(student.config, str(original.path))
    student.to(DTYPES[dtype] if dtype else stored if stored in DTYPES.values() else torch.float32)
    for name, tensor in student.state_dict().items():
        if not tensor.isfinite().all():
            fault = f"{name} is not finite in {student.dtype}"
            raise UserError(f"{original.path}: {fault}: fetch it again, or use a wider --dtype")
    return student


def _heads_of(layout: Layout | None, weights: Mapping[str, Tensor]) -> int | None:
    """The base's number of heads, if its transformer is as wide as these weights."""
    if layout is None or "patch_embedding.bias" not in weights:
        return None
    config = read_config(layout.student)
    heads = config.get("num_attention_heads")
    head_dim = config.get("attention_head_dim")
    if not isinstance(heads, int) or not isinstance(head_dim, int):
        return None
    return heads if weights["patch_embedding.bias"].shape == (heads * head_dim,) else None
