"""Metrics by models that the user has: CLIP text alignment, subject and background consistency. Nothing is
downloaded.

Consistency follows VBench-Long's rule, within clips and from clip to clip, and not its models: VBench takes
DINO within clips and DreamSim for backgrounds, and maps the clip-to-clip score through a table of quantiles,
which is not applied here. So these numbers compare videos measured here with each other; VBench's own come
from VBench (see `vbench.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTokenizer, Dinov2Model

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.networks.find import ModelFolder, skip_line
from sfpp_cli.models.quiet import quiet_libraries
from sfpp_cli.video import Frames
from sfpp_cli.video.reader import read_frames
from sfpp_cli.video.sheet import SheetSampler

FRAMES_A_CLIP = 8
BATCH = 16

_RULE = (
    "consistency of features f_0..f_n: mean over i > 0 of 1/2 [max(0, cos(f_i, f_(i-1))) + max(0, cos(f_i, f_0))]; "
    "in_clip over a clip's frames, clip_to_clip over the first frames of the clips; VBench-Long's quantile map is not applied"
)


@dataclass(frozen=True)
class Preprocessing:
    """From a frame to a network's input, as the model's `preprocessor_config.json` says.

    `resize`: the shorter side, or (height, width), in pixels; `crop`: (height, width) of the centre; None
    skips a step.
    """

    resize: int | tuple[int, int] | None
    resample: int
    crop: tuple[int, int] | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path) -> Preprocessing:
        """UserError where the file is absent or asks for something else than resize, crop and normalise."""
        file = folder / "preprocessor_config.json"
        try:
            config = json.loads(file.read_bytes())
            size, crop = config.get("size"), config.get("crop_size")
            return cls(
                resize=_resize_of(size) if config.get("do_resize", True) else None,
                resample=int(config.get("resample", Image.Resampling.BICUBIC)),
                crop=_pair(crop) if config.get("do_center_crop", True) else None,
                scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
                mean=tuple(config["image_mean"]) if config.get("do_normalize", True) else (0.0, 0.0, 0.0),
                std=tuple(config["image_std"]) if config.get("do_normalize", True) else (1.0, 1.0, 1.0),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file} is absent or does not tell how to prepare a picture") from error

    def __call__(self, frame: Frames) -> Tensor:
        """uint8 [H, W, 3] -> float [3, h, w]. What is smaller than the crop is padded with black."""
        image = Image.fromarray(frame)
        if self.resize is not None:
            image = image.resize(_target(image.size, self.resize), Image.Resampling(self.resample))
        if self.crop is not None:
            image = _centre(image, *self.crop)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).double() * self.scale
        mean, std = (
            torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (self.mean, self.std)
        )
        return ((pixels - mean) / std).float()


def _pair(size: Any) -> tuple[int, int]:
    """(height, width) of a number, or of an object with both."""
    return (int(size["height"]), int(size["width"])) if isinstance(size, dict) else (int(size), int(size))


def _resize_of(size: Any) -> int | tuple[int, int]:
    if isinstance(size, dict) and "shortest_edge" not in size:
        return _pair(size)
    return int(size["shortest_edge"] if isinstance(size, dict) else size)


def _target(size: tuple[int, int], resize: int | tuple[int, int]) -> tuple[int, int]:
    """(width, height) after resizing; the longer side is rounded down, as torchvision and transformers do."""
    if not isinstance(resize, int):
        return resize[1], resize[0]
    width, height = size
    return (
        (resize, int(resize * height / width)) if width <= height else (int(resize * width / height), resize)
    )


def _centre(image: Image.Image, height: int, width: int) -> Image.Image:
    """`crop` fills what lies outside with black; half a pixel goes to the left and upwards."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class Features:
    """A network that turns frames into features, under the name that results give it."""

    name: str
    prepare: Preprocessing
    network: Callable[[Tensor], Tensor]
    device: torch.device

    @torch.no_grad()
    def __call__(self, frames: Sequence[Frames]) -> Tensor:
        """Frames [H, W, 3] -> unit vectors [N, D] in float64 on the CPU."""
        features = self.network(torch.stack([self.prepare(frame) for frame in frames]).to(self.device))
        return normalize(features.cpu().double(), dim=-1)


@dataclass(frozen=True)
class LoadedModels:
    """The models there are. `text` gives a prompt's unit vector [D] in float64, and whether its end was cut off."""

    clip: Features | None = None
    text: Callable[[str], tuple[Tensor, bool]] | None = None
    dino: Features | None = None


def load_models(found: Mapping[str, ModelFolder], device: torch.device) -> tuple[LoadedModels, list[str]]:
    """CLIP and DINOv2 from the folders of `find_models`, and a line for each that is skipped since it cannot
    be loaded.

    Only safetensors are read, in float32; weights that do not fill the network are refused.
    """
    quiet_libraries()
    loaded: dict[str, Any] = {}
    skipped: list[str] = []
    for kind, model in found.items():
        try:
            loaded |= _LOADERS[kind](model, device)
        except UserError as error:
            skipped.append(skip_line(kind, error))
    return LoadedModels(**loaded), skipped


def _load_clip(found: ModelFolder, device: torch.device) -> dict[str, Any]:
    folder = found.path
    model = _network(CLIPModel, "clip", folder, device)
    tokenizer = _tokenizer(folder)
    longest = model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def text(prompt: str) -> tuple[Tensor, bool]:
        tokens = tokenizer([prompt], truncation=True, max_length=longest, return_tensors="pt").to(device)
        hidden = model.text_model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output
        cut = len(tokenizer(prompt, verbose=False).input_ids) > longest
        return normalize(model.text_projection(hidden)[0].cpu().double(), dim=-1), cut

    def image(pixels: Tensor) -> Tensor:
        features: Tensor = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        return features

    return {"clip": Features(found.name, Preprocessing.read(folder), image, device), "text": text}


def _tokenizer(folder: Path) -> Any:
    """The files are looked for here, since transformers makes an empty tokenizer where there are none."""
    whole, halves = folder / "tokenizer.json", (folder / "vocab.json", folder / "merges.txt")
    if not (whole.is_file() or all(half.is_file() for half in halves)):
        raise UserError(f"{folder} holds no tokenizer; fetch the whole model")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain ones
        raise UserError(f"{folder} holds no tokenizer that can be read; fetch the model again") from error


def _load_dino(found: ModelFolder, device: torch.device) -> dict[str, Any]:
    folder = found.path
    model = _network(Dinov2Model, "dinov2", folder, device)

    def image(pixels: Tensor) -> Tensor:
        """The normalised class token, what DINOv2's own model returns."""
        features: Tensor = model(pixel_values=pixels).pooler_output
        return features

    return {"dino": Features(found.name, Preprocessing.read(folder), image, device)}


_LOADERS: dict[str, Callable[[ModelFolder, torch.device], dict[str, Any]]] = {
    "clip": _load_clip,
    "dino": _load_dino,
}


def _network(kind: Any, model_type: str, folder: Path, device: torch.device) -> Any:
    """A network in evaluation mode, complete and of the kind expected."""
    try:
        found = json.loads((folder / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder} holds no readable config.json; fetch the whole model") from error
    if found != model_type:
        raise UserError(
            f"{folder} holds a model of type '{found}', but '{model_type}' is needed; give another"
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} holds no .safetensors; pickled weights are not read: fetch a revision or a model that has them"
        )
    try:
        model, report = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder} cannot be loaded ({str(error).split(chr(10))[0]}); fetch it again"
        ) from error
    if missing := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise UserError(f"{folder} lacks {len(missing)} weights, such as {missing[0]}; fetch it again")
    return model.to(device).eval()


# --- measuring ------------------------------------------------------------------------------------------


def model_metrics(
    path: Path,
    prompt: str | None,
    clips: Sequence[tuple[int, int]],
    models: LoadedModels,
    frames_a_clip: int | None = FRAMES_A_CLIP,
) -> dict[str, Any]:
    """What the loaded models say of a video, cut into `clips` [start, end) in frames.

    Of each clip `frames_a_clip` frames are looked at, evenly spaced from first to last (None: all, as VBench
    does). Gives `clip_text_alignment` (100 * cosine of prompt and frames: `mean` over clips, and `clips`),
    `subject_consistency` and `background_consistency` (`in_clip`, `clip_to_clip`, their `mean`, and `clips`;
    None where there is nothing to compare), each only where its model is loaded, and always `parameters`.
    """
    chosen = [_chosen(clip, frames_a_clip) for clip in clips]
    readers = {
        name: features for name, features in (("clip", models.clip), ("dino", models.dino)) if features
    }
    seen = _features(path, {index for clip in chosen for index in clip}, readers)
    results: dict[str, Any] = {}
    if models.text and prompt:
        vector, cut = models.text(prompt)
        results["clip_text_alignment"] = {**_alignment(vector, seen["clip"], chosen), "prompt_cut": cut}
    for name, metric in (("dino", "subject_consistency"), ("clip", "background_consistency")):
        if name in readers:
            results[metric] = _consistencies(seen[name], chosen)
    names = {name: features.name for name, features in readers.items()}
    return {
        **results,
        "parameters": {"models": names, "frames_a_clip": frames_a_clip, "clips": len(clips), "rule": _RULE},
    }


def _chosen(clip: tuple[int, int], count: int | None) -> list[int]:
    """Frames of a clip to look at, its first among them."""
    start, end = clip
    return [start + index for index in SheetSampler(end - start, count or end - start).indices]


def _features(path: Path, wanted: set[int], readers: Mapping[str, Features]) -> dict[str, dict[int, Tensor]]:
    """{reader: {frame: unit vector}} in one pass over the video, which holds a batch of frames at a time."""
    seen: dict[str, dict[int, Tensor]] = {name: {} for name in readers}
    frames = _numbered(path, wanted) if readers else iter(())
    while batch := list(islice(frames, BATCH)):
        for name, reader in readers.items():
            seen[name].update(
                zip((index for index, _ in batch), reader([frame for _, frame in batch]), strict=True)
            )
    return seen


def _numbered(path: Path, wanted: set[int]) -> Iterator[tuple[int, Frames]]:
    """The wanted frames with their numbers. UserError if the video ends before the last of them."""
    index = -1
    for index, frame in enumerate(read_frames(path)):
        if index in wanted:
            yield index, frame
    if index < max(wanted, default=-1):
        raise UserError(
            f"{path} has {index + 1} frames, but its clips go on to {max(wanted) + 1}; it may be cut short"
        )


def _alignment(prompt: Tensor, seen: Mapping[int, Tensor], clips: Sequence[Sequence[int]]) -> dict[str, Any]:
    values = [fmean(100 * float(prompt @ seen[index]) for index in clip) for clip in clips]
    return {"mean": fmean(values) if values else None, "clips": values}


def _consistencies(seen: Mapping[int, Tensor], clips: Sequence[Sequence[int]]) -> dict[str, Any]:
    values = [consistency([seen[index] for index in clip]) for clip in clips]
    known = [value for value in values if value is not None]
    in_clip = fmean(known) if known else None
    across = consistency([seen[clip[0]] for clip in clips])
    mean = None if in_clip is None or across is None else (in_clip + across) / 2
    return {"in_clip": in_clip, "clip_to_clip": across, "mean": mean, "clips": values}


def consistency(features: Sequence[Tensor]) -> float | None:
    """Of unit vectors f_0..f_n: mean over i > 0 of 1/2 [max(0, f_i . f_(i-1)) + max(0, f_i . f_0)]; None for
    fewer than two.

    The rule of VBench's subject and background consistency, and of VBench-Long's first frames of clips.
    """
    if len(features) < 2:
        return None
    pairs = pairwise(features)
    return fmean(
        (max(0.0, float(now @ before)) + max(0.0, float(now @ features[0]))) / 2 for before, now in pairs
    )
