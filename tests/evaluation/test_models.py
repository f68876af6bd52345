"""Model-based metrics with tiny random models of the real classes: cosines and preparation by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.networks.clip_dino import (
    LoadedModels,
    consistency,
    image_processor,
    load_models,
    model_metrics,
)
from sfpp_cli.evaluation.networks.find import ModelFolder, find_models
from sfpp_cli.files import natural
from sfpp_cli.video import Frames
from sfpp_cli.video.writer import VideoWriter

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
SIDE, WORDS = 16, ["a", "red", "circle", "blue"]
CPU = torch.device("cpu")
PROMPT = "a red circle"
OTHER_PROMPT = "a blue circle"


def write_preprocessing(folder: Path, **changes: Any) -> None:
    config = {
        "do_resize": True,
        "size": {"shortest_edge": 20},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config | changes))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[]).save_pretrained(
        folder
    )
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1}
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**shape, **ends, "vocab_size": len(tokens), "max_position_embeddings": 20},
        vision_config={**shape, "image_size": SIDE, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    write_preprocessing(folder)
    return folder


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(1)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=8
    )
    Dinov2Model(config).save_pretrained(folder)
    write_preprocessing(folder)
    return folder


@pytest.fixture(scope="module")
def frames() -> Frames:
    generator = np.random.default_rng(2)
    return generator.integers(0, 256, (11, 24, 36, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, frames: Frames) -> Path:
    with VideoWriter(tmp_path_factory.mktemp("video") / "v.png", (36, 24), 4.0) as writer:
        writer.write(frames)
    return writer.path


@pytest.fixture(scope="module")
def loaded(clip: Path, dino: Path) -> LoadedModels:
    found, absent = find_models(str(clip), str(dino))
    models, skipped = load_models(found, CPU)
    assert absent == skipped == []
    return models


# --- preparation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(24, 36), (36, 24), (48, 85), (20, 20), (17, 90)])
def test_pictures_are_resized_cropped_and_normalised(tmp_path: Path, size: tuple[int, int]) -> None:
    """By hand: the shorter side to 20 pixels by Pillow's bicubic filter, the middle 16 x 16, normalised."""
    write_preprocessing(tmp_path)
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    height, width = (20 * side // min(size) for side in size)
    resized = np.array(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    cropped = resized[top : top + SIDE, left : left + SIDE] / 255
    expected = torch.from_numpy((cropped - MEAN) / STD).permute(2, 0, 1)
    [prepared] = image_processor(tmp_path)([frame])
    torch.testing.assert_close(prepared.double(), expected, atol=1e-6, rtol=0)  # values up to 2.2 in float32


def test_a_flat_picture_by_hand(tmp_path: Path) -> None:
    write_preprocessing(tmp_path)
    frame = np.full((30, 50, 3), (51, 102, 204), np.uint8)
    [prepared] = image_processor(tmp_path)([frame])
    assert prepared.shape == (3, SIDE, SIDE)
    expected = [(value - mean) / std for value, mean, std in zip((0.2, 0.4, 0.8), MEAN, STD, strict=True)]
    assert prepared.flatten(1).unique(dim=1).flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_steps_that_the_config_switches_off(tmp_path: Path) -> None:
    write_preprocessing(tmp_path, do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False)
    frame = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    [prepared] = image_processor(tmp_path)([frame])
    assert torch.equal(prepared.double(), torch.from_numpy(frame).permute(2, 0, 1).double())


@pytest.mark.parametrize("text", ["", "[]", '{"size": {"longest_edge": 3}}'])
def test_preparation_that_cannot_be_understood(tmp_path: Path, text: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(UserError, match="does not tell how to prepare a picture"):
        image_processor(tmp_path)


# --- the rule -------------------------------------------------------------------------------------------


def test_consistency_by_hand() -> None:
    angles = torch.tensor([0.0, 60.0, 180.0, 300.0], dtype=torch.float64).deg2rad()
    features = list(torch.stack([angles.cos(), angles.sin()], 1))
    # to the one before: cos 60 = 1/2, cos 120 -> 0, cos 120 -> 0
    # to the first: 1/2, cos 180 -> 0, cos 300 = 1/2
    assert consistency(features) == pytest.approx((0.5 + 0.0 + 0.25) / 3)
    assert consistency(features[:2]) == pytest.approx(0.5)
    assert consistency([features[0]] * 5) == pytest.approx(1.0)
    assert consistency(features[:1]) is None
    assert consistency([]) is None


# --- whole videos ---------------------------------------------------------------------------------------


def unit(features: Tensor) -> np.ndarray[Any, Any]:
    array = features.detach().double().numpy()
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def cosines(rows: np.ndarray[Any, Any]) -> float:
    """VBench's rule, written down a second time."""
    total = 0.0
    for index in range(1, len(rows)):
        total += 0.5 * max(0.0, rows[index] @ rows[index - 1]) + 0.5 * max(0.0, rows[index] @ rows[0])
    return total / (len(rows) - 1)


def test_metrics_by_hand(clip: Path, dino: Path, loaded: LoadedModels, video: Path, frames: Frames) -> None:
    clips = [(0, 4), (4, 8), (7, 11)]
    measured = model_metrics(video, [PROMPT] * 3, clips, loaded, frames_a_clip=None, fps=4)

    pixels = image_processor(clip)(list(frames))
    clip_model, dino_model = CLIPModel.from_pretrained(clip).eval(), Dinov2Model.from_pretrained(dino).eval()
    tokens = CLIPTokenizer.from_pretrained(clip)([PROMPT], return_tensors="pt")
    out = clip_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels)
    text, images = unit(out.text_embeds)[0], unit(out.image_embeds)
    subjects = unit(dino_model(pixels).last_hidden_state[:, 0])

    alignment = [100 * float((images[start:end] @ text).mean()) for start, end in clips]
    assert measured["clip_text_alignment"]["clips"] == pytest.approx(alignment, abs=1e-4)
    assert measured["clip_text_alignment"]["mean"] == pytest.approx(np.mean(alignment), abs=1e-4)
    assert measured["clip_text_alignment"]["prompt_cut"] is False
    for name, rows in (("subject_consistency", subjects), ("background_consistency", images)):
        within = [cosines(rows[start:end]) for start, end in clips]
        across = cosines(rows[[0, 4, 7]])
        assert measured[name]["clips"] == pytest.approx(within, abs=1e-5)
        assert measured[name]["in_clip"] == pytest.approx(np.mean(within), abs=1e-5)
        assert measured[name]["clip_to_clip"] == pytest.approx(across, abs=1e-5)
        assert measured[name]["mean"] == pytest.approx((np.mean(within) + across) / 2, abs=1e-5)
        assert (
            len({round(value, 6) for value in [*within, across]}) == 4
        )  # the random models do tell frames apart
    apart = pytest.approx(float(subjects[0] @ subjects[4]), abs=1e-5)
    likeness = {"descriptor": str(dino), "seconds": [1.0], "values": [apart]}
    assert measured["similarity_by_distance"] == likeness, "the third clip overlaps the second"
    parameters = measured["parameters"]
    assert parameters["models"] == {"clip": str(clip), "dino": str(dino)}
    assert parameters["clips"] == 3
    assert "quantile map is not applied" in parameters["rule"]
    json.dumps(measured)


def test_likeness_falls_with_distance_where_the_subject_drifts(loaded: LoadedModels, video: Path) -> None:
    """Cosines of the first frames of clips of two frames, a half second apart, by hand."""
    clips = [(start, start + 2) for start in range(0, 10, 2)]
    found = model_metrics(video, [None] * 5, clips, loaded, fps=4)["similarity_by_distance"]
    assert loaded.dino is not None
    pictures = [np.array(Image.open(file)) for file in sorted(video.glob("*.png"), key=natural)]
    features = loaded.dino([pictures[start] for start, _ in clips]).numpy()
    assert found["seconds"] == [0.5, 1.0, 1.5]
    for lag, value in enumerate(found["values"], start=1):
        expected = np.mean([features[place] @ features[place + lag] for place in range(5 - lag)])
        assert value == pytest.approx(expected, abs=1e-9)


def test_frames_of_a_clip_are_sampled(
    loaded: LoadedModels, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfpp_cli.evaluation.networks.clip_dino.BATCH", 2)
    few = model_metrics(video, [PROMPT] * 2, [(0, 6), (5, 11)], loaded, frames_a_clip=3, fps=4)
    assert loaded.clip is not None
    assert loaded.text is not None
    pictures = [np.array(Image.open(file)) for file in sorted(video.glob("*.png"))]
    text = loaded.text(PROMPT)[0]
    expected = [
        100 * float((loaded.clip([pictures[index] for index in chosen]) @ text).mean())
        for chosen in ([0, 2, 5], [5, 7, 10])
    ]
    assert few["clip_text_alignment"]["clips"] == pytest.approx(expected, abs=1e-4)
    assert few["parameters"]["frames_a_clip"] == 3


def test_one_clip_of_one_frame_has_nothing_to_compare(loaded: LoadedModels, video: Path) -> None:
    measured = model_metrics(video, [PROMPT], [(0, 1)], loaded, fps=4)
    assert measured["subject_consistency"] == {
        "in_clip": None,
        "clip_to_clip": None,
        "mean": None,
        "clips": [None],
    }
    assert len(measured["clip_text_alignment"]["clips"]) == 1


def test_without_a_prompt_there_is_no_alignment(loaded: LoadedModels, video: Path) -> None:
    assert model_metrics(video, [None], [(0, 4)], loaded, fps=4).keys() == {
        "subject_consistency",
        "background_consistency",
        "parameters",
    }


def test_every_clip_is_held_against_its_own_prompt(loaded: LoadedModels, video: Path) -> None:
    clips = [(0, 4), (4, 8), (7, 11)]
    one, other = (
        model_metrics(video, [prompt] * 3, clips, loaded, fps=4)["clip_text_alignment"]
        for prompt in (PROMPT, OTHER_PROMPT)
    )
    mixed = model_metrics(video, [PROMPT, None, OTHER_PROMPT], clips, loaded, fps=4)["clip_text_alignment"]
    assert one["clips"][2] != pytest.approx(other["clips"][2], abs=1e-3)
    assert mixed["clips"] == [one["clips"][0], None, other["clips"][2]]
    assert mixed["mean"] == pytest.approx((one["clips"][0] + other["clips"][2]) / 2)


def test_without_models_the_video_is_not_read(tmp_path: Path) -> None:
    assert model_metrics(tmp_path / "absent.mp4", [PROMPT], [(0, 4)], LoadedModels(), fps=4).keys() == {
        "parameters"
    }


def test_a_prompt_that_is_too_long_is_cut_and_said(loaded: LoadedModels, video: Path) -> None:
    measured = model_metrics(video, ["a red circle over a blue background"], [(0, 2)], loaded, fps=4)
    assert measured["clip_text_alignment"]["prompt_cut"] is True


def test_clips_beyond_the_end(loaded: LoadedModels, video: Path) -> None:
    with pytest.raises(UserError, match="has 11 frames, but its clips go on to 12"):
        model_metrics(video, [PROMPT], [(0, 12)], loaded, fps=4)


# --- loading --------------------------------------------------------------------------------------------


def test_absent_models_are_skipped_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfpp_cli.evaluation.networks.find.try_to_load_from_cache", lambda name, file: None)
    found, skipped = find_models()
    assert found == {}
    assert load_models(found, CPU) == (LoadedModels(), [])
    assert skipped == [
        "text alignment and background consistency skipped: 'openai/clip-vit-base-patch32' is neither a "
        "folder nor in the hub's cache; "
        "fetch it with `hf download openai/clip-vit-base-patch32`, or give a folder",
        "subject consistency skipped: 'facebook/dinov2-base' is neither a folder nor in the hub's cache; "
        "fetch it with `hf download facebook/dinov2-base`, or give a folder",
    ]
    with pytest.raises(UserError, match="--clip: 'not an id!' is neither"):
        find_models(clip="not an id!")


def test_models_are_found_in_the_hub_cache(clip: Path, dino: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {"me/clip": clip, "me/dino": dino}
    monkeypatch.setattr(
        "sfpp_cli.evaluation.networks.find.try_to_load_from_cache",
        lambda name, file: str(folders[name] / file),
    )
    found, skipped = find_models("me/clip", "me/dino")
    assert not skipped
    assert found == {"clip": ModelFolder("me/clip", clip), "dino": ModelFolder("me/dino", dino)}
    models, skipped = load_models(found, CPU)
    assert not skipped
    assert models.clip is not None
    assert models.clip.name == "me/clip"


def test_the_real_hub_cache_layout(dino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--me--dino"
    shutil.copytree(dino, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    assert find_models(dino="me/dino")[0]["dino"] == ModelFolder("me/dino", repo / "snapshots" / commit)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no readable config.json"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
            "holds a model of type 'bert', but 'clip' is needed",
        ),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "pickled weights are not read",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "cannot be loaded"),
        (
            lambda folder: (folder / "preprocessor_config.json").unlink(),
            "preprocessor_config.json is absent",
        ),
        (
            lambda folder: drop(folder / "model.safetensors", "visual_projection.weight"),
            "lacks 1 weights, such as visual_projection",
        ),
        (lambda folder: [file.unlink() for file in folder.glob("*token*")], "holds no tokenizer;"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "holds no tokenizer that can be read"),
    ],
)
def test_spoilt_models_are_skipped_with_a_line(clip: Path, tmp_path: Path, spoil: Any, reason: str) -> None:
    folder = tmp_path / "spoilt"
    shutil.copytree(clip, folder)
    spoil(folder)
    models, skipped = load_models({"clip": ModelFolder("spoilt", folder)}, CPU)
    assert models.clip is None
    assert reason in skipped[0]
    assert "\n" not in skipped[0]


def drop(file: Path, name: str) -> None:
    weights = load_file(file)
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
