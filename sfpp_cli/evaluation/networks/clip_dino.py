"""Metrics by models that the user has: CLIP text alignment, subject and background consistency. Nothing is
downloaded.

Consistency follows VBench-Long's rule, within clips and from clip to clip, and not its models: VBench takes
DINO within clips and DreamSim for backgrounds, and maps the clip-to-clip score through a table of
quantiles, which is not applied here. So these numbers compare videos measured here with each other;
VBench's own come from VBench (see `vbench.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, Dinov2Model

from sfpp_cli.errors import UserError, reason
from sfpp_cli.evaluation.networks.find import ModelFolder, skip_line
from sfpp_cli.models.quiet import quiet_libraries
from sfpp_cli.video import Frames
from sfpp_cli.video.reader import read_frames
from sfpp_cli.video.sheet import SheetSampler

FRAMES_A_CLIP = 8
"""Frames of a clip that are looked at."""
BATCH = 16
"""Frames that go through a network together."""
DISTANCES = 24
"""Most points of the curve of likeness."""

_RULE = (
    "consistency of features f_0..f_n: mean over i > 0 of 1/2 "
    "[max(0, cos(f_i, f_(i-1))) + max(0, cos(f_i, f_0))]; in_clip over a clip's frames, clip_to_clip over "
    "the first frames of the clips; VBench-Long's quantile map is not applied"
)


@dataclass(frozen=True)
class Features:
    """A network that turns frames into features."""

    name: str
    """What results call the model."""
    prepare: Callable[[Sequence[Frames]], Tensor]
    """Frames [H, W, 3] -> the network's input [N, 3, h, w]."""
    network: Callable[[Tensor], Tensor]
    """Input -> features [N, D]."""
    device: torch.device

    @torch.no_grad()
    def __call__(self, frames: Sequence[Frames]) -> Tensor:
        """Frames [H, W, 3] -> unit vectors [N, D] in float64 on the CPU."""
        features = self.network(self.prepare(frames).to(self.device))
        return normalize(features.cpu().double(), dim=-1)


@dataclass(frozen=True)
class LoadedModels:
    """The models there are."""

    clip: Features | None = None
    text: Callable[[str], tuple[Tensor, bool]] | None = None
    """A prompt -> its unit vector [D] in float64 by CLIP, and whether the prompt's end was cut off."""
    dino: Features | None = None


def load_models(folders: Mapping[str, ModelFolder], device: torch.device) -> tuple[LoadedModels, list[str]]:
    """CLIP and DINOv2 from the folders of `find_models`, and a line for each that cannot be loaded. Only
    safetensors are read, in float32; weights that do not fill the network are refused."""
    quiet_libraries()
    loaders = {"clip": _load_clip, "dino": _load_dino}
    loaded: dict[str, Any] = {}
    skipped: list[str] = []
    for kind, model in folders.items():
        try:
            loaded |= loaders[kind](model, device)
        except UserError as error:
            skipped.append(skip_line(kind, error))
    return LoadedModels(**loaded), skipped


def _load_clip(model_folder: ModelFolder, device: torch.device) -> dict[str, Any]:
    folder = model_folder.path
    model = _network(CLIPModel, "clip", folder, device)
    tokenizer = _tokenizer(folder)
    longest = model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def text(prompt: str) -> tuple[Tensor, bool]:
        tokens = tokenizer([prompt], truncation=True, max_length=longest, return_tensors="pt").to(device)
        hidden = model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        vector = model.text_projection(hidden.pooler_output)[0].cpu().double()
        cut = len(tokenizer(prompt, verbose=False).input_ids) > longest
        return normalize(vector, dim=-1), cut

    def image(pixels: Tensor) -> Any:
        return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)

    return {"clip": Features(model_folder.name, image_processor(folder), image, device), "text": text}


def _tokenizer(folder: Path) -> Any:
    """The files are looked for here, since transformers makes an empty tokenizer where there are none."""
    whole = folder / "tokenizer.json"
    halves = (folder / "vocab.json", folder / "merges.txt")
    if not (whole.is_file() or all(half.is_file() for half in halves)):
        raise UserError(f"{folder} holds no tokenizer; fetch the whole model")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain ones
        raise UserError(f"{folder} holds no tokenizer that can be read; fetch the model again") from error


def _load_dino(model_folder: ModelFolder, device: torch.device) -> dict[str, Any]:
    folder = model_folder.path
    model = _network(Dinov2Model, "dinov2", folder, device)

    def image(pixels: Tensor) -> Any:
        return model(pixel_values=pixels).pooler_output  # the class token, normalised

    return {"dino": Features(model_folder.name, image_processor(folder), image, device)}


def image_processor(folder: Path) -> Callable[[Sequence[Frames]], Tensor]:
    """What turns frames [H, W, 3] into a network's input [N, 3, h, w], as the model's own config says.

    CLIP's processor serves DINOv2 too: both resize, crop the centre and normalise. It is asked for by name,
    for `AutoImageProcessor` wants torchvision before transformers 5.18. UserError where the config is
    absent or cannot be followed.
    """
    try:
        processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        processor(images=[Image.new("RGB", (64, 64))])  # some faults show only with a picture
    except Exception as error:  # transformers stumbles over odd configs in many ways
        raise UserError(
            f"{folder / 'preprocessor_config.json'} is absent or does not tell how to prepare a picture "
            f"({reason(error)}); fetch the whole model"
        ) from error

    def prepare(frames: Sequence[Frames]) -> Any:
        images = [Image.fromarray(frame) for frame in frames]
        return processor(images=images, return_tensors="pt").pixel_values

    return prepare


def _network(kind: Any, model_type: str, folder: Path, device: torch.device) -> Any:
    """A network in evaluation mode, complete and of the kind expected."""
    try:
        there = json.loads((folder / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder} holds no readable config.json; fetch the whole model") from error
    if there != model_type:
        raise UserError(
            f"{folder} holds a model of type '{there}', but '{model_type}' is needed; give another"
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} holds no .safetensors; pickled weights are not read: fetch a revision or a model "
            "that has them"
        )
    try:
        model, report = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be loaded ({reason(error)}); fetch it again") from error
    if missing := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise UserError(f"{folder} lacks {len(missing)} weights, such as {missing[0]}; fetch it again")
    return model.to(device).eval()


def model_metrics(
    path: Path,
    prompts: Sequence[str | None],
    clips: Sequence[tuple[int, int]],
    models: LoadedModels,
    frames_a_clip: int | None = FRAMES_A_CLIP,
    *,
    fps: float,
) -> dict[str, Any]:
    """What the loaded models say of a video, cut into `clips` [start, end) in frames, each with its prompt.

    Of each clip `frames_a_clip` frames are looked at, evenly spaced from first to last (None: all, as
    VBench does). Gives `clip_text_alignment` (100 * cosine of prompt and frames: `mean` over clips, and
    `clips`, None for one without a prompt), `subject_consistency` and `background_consistency` (`in_clip`,
    `clip_to_clip`, their `mean`, and `clips`; None where there is nothing to compare) and, by DINOv2,
    `similarity_by_distance`, each only where its model is loaded, and always `parameters`.
    """
    chosen = [
        [start + index for index in SheetSampler(end - start, frames_a_clip or end - start).indices]
        for start, end in clips
    ]
    there = {"clip": models.clip, "dino": models.dino}
    readers = {name: features for name, features in there.items() if features}
    seen = _features(path, {index for clip in chosen for index in clip}, readers)
    results: dict[str, Any] = {}
    if models.text and any(prompts):
        results["clip_text_alignment"] = _alignment(prompts, chosen, seen["clip"], models.text)
    for name, metric in (("dino", "subject_consistency"), ("clip", "background_consistency")):
        if name in readers:
            results[metric] = _consistencies(seen[name], chosen)
    if "dino" in readers and len(clips) > 1:
        step = clips[1][0]
        firsts = [seen["dino"][start] for place, (start, _) in enumerate(clips) if start == place * step]
        results["similarity_by_distance"] = _by_distance(firsts, step / fps, readers["dino"].name)
    names = {name: features.name for name, features in readers.items()}
    parameters = {"models": names, "frames_a_clip": frames_a_clip, "clips": len(clips), "rule": _RULE}
    return results | {"parameters": parameters}


def _alignment(
    prompts: Sequence[str | None],
    clips: Sequence[Sequence[int]],
    seen: Mapping[int, Tensor],
    text: Callable[[str], tuple[Tensor, bool]],
) -> dict[str, Any]:
    vectors = {prompt: text(prompt) for prompt in dict.fromkeys(prompts) if prompt}
    values = [
        fmean(100 * float(vectors[prompt][0] @ seen[index]) for index in clip) if prompt else None
        for prompt, clip in zip(prompts, clips, strict=True)
    ]
    mean = fmean(value for value in values if value is not None)
    return {"mean": mean, "clips": values, "prompt_cut": any(cut for _, cut in vectors.values())}


def _features(path: Path, wanted: set[int], readers: Mapping[str, Features]) -> dict[str, dict[int, Tensor]]:
    """{reader: {frame: unit vector}} in one pass over the video, which holds a batch of frames at a time."""
    seen: dict[str, dict[int, Tensor]] = {name: {} for name in readers}
    frames = _numbered(path, wanted) if readers else iter(())
    while batch := list(islice(frames, BATCH)):
        indices, pictures = zip(*batch, strict=True)
        for name, reader in readers.items():
            seen[name].update(zip(indices, reader(pictures), strict=True))
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


def _consistencies(seen: Mapping[int, Tensor], clips: Sequence[Sequence[int]]) -> dict[str, Any]:
    values = [consistency([seen[index] for index in clip]) for clip in clips]
    known = [value for value in values if value is not None]
    in_clip = fmean(known) if known else None
    across = consistency([seen[clip[0]] for clip in clips])
    mean = None if in_clip is None or across is None else (in_clip + across) / 2
    return {"in_clip": in_clip, "clip_to_clip": across, "mean": mean, "clips": values}


def _by_distance(features: Sequence[Tensor], apart: float, name: str) -> dict[str, Any]:
    """The mean cosine of unit vectors, one every `apart` seconds, by the time between them: up to two thirds
    of the video, as the curve on the plain descriptor (`metrics/repetition.py`) has it."""
    vectors = torch.stack(list(features))
    longest = max(1, 2 * len(vectors) // 3)
    lags = range(1, longest + 1, math.ceil(longest / DISTANCES))
    values = [float((vectors[lag:] * vectors[:-lag]).sum(1).mean()) for lag in lags]
    return {"descriptor": name, "seconds": [lag * apart for lag in lags], "values": values}


def consistency(features: Sequence[Tensor]) -> float | None:
    """Of unit vectors f_0..f_n: mean over i > 0 of 1/2 [max(0, f_i . f_(i-1)) + max(0, f_i . f_0)]; None for
    fewer than two. The rule of VBench's subject and background consistency, and of VBench-Long's first frames
    of clips."""
    if len(features) < 2:
        return None
    first = features[0]
    pairs = pairwise(features)
    return fmean((max(0.0, float(now @ before)) + max(0.0, float(now @ first))) / 2 for before, now in pairs)
