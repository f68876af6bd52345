"""A model as people name it: an embedded one, a folder in diffusers' layout, or a hub id of the same.

A bundle is a folder with `transformer/ vae/ text_encoder/ tokenizer/ scheduler/` and `sfpp.json`, the few numbers diffusers has no
place for. `transformer/` is the causal student; a bundle without `sfpp.json` is plain Wan, its transformer a bidirectional teacher.
A bundle may hold its teacher too, in `teacher/`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload
from diffusers import AutoencoderKLWan
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from torch import nn

from sfpp_cli.core.geometry import Compression
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.teacher import Teacher
from sfpp_cli.errors import UserError
from sfpp_cli.models.hub import EMBEDDED, resolve
from sfpp_cli.models.text import TextEncoder

SETTINGS = "sfpp.json"
_ENDS = 2**22
COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer")


@dataclass(frozen=True)
class Settings:
    """How a student was trained, hence how it wants to be run. Frames are latent frames; the defaults are Wan 1.3B's."""

    chunk: int = 3
    context: int = 21
    sink: int = 0
    shift: float = 5.0
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    horizon: int = 21
    """Longest rollout seen in training."""
    fps: int = 16
    width: int = 832
    height: int = 480
    text_length: int = 512
    prompt: str = ""
    """What `sfpp generate` shows when it is given no prompt."""

    @classmethod
    def read(cls, path: Path) -> Settings:
        try:
            values = json.loads(path.read_text())
            unknown = values.keys() - {field.name for field in fields(cls)}
            if unknown:
                raise ValueError(f"unknown keys {sorted(unknown)}")
            return cls(**{**values, "steps": tuple(values.get("steps", cls.steps))})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} cannot be read ({error}): restore it, or write it anew with `sfpp weights convert`") from error

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


class Bundle:
    """Where a model's parts are, and how to load each. Nothing is loaded before it is asked for."""

    def __init__(self, model: str, student: str | None = None) -> None:
        """`student` names a folder, bundle or hub id whose causal weights replace the bundle's own transformer."""
        self.name = model
        self.folder = resolve(model)
        self._require(*COMPONENTS)
        self.student = self.folder / "transformer"
        settings = self.folder / SETTINGS
        if student is not None:
            self.student = _student_folder(resolve(student))
            own = next((f / SETTINGS for f in (self.student, self.student.parent) if (f / SETTINGS).exists()), None)
            settings = own or settings
        self.settings = Settings.read(settings) if settings.exists() else Settings()

    def load_student(self, device: torch.device, dtype: torch.dtype) -> CausalWanModel:
        if self._holds_teacher(self.student):
            raise UserError(f"{self.name} is a bidirectional teacher, not a causal student: name causal weights with --student")
        student: CausalWanModel = _load(CausalWanModel, self.student, device, dtype)
        return student

    def load_teacher(self, device: torch.device, dtype: torch.dtype) -> Teacher:
        """The bidirectional teacher: `teacher/`, or the transformer of a bundle that is one."""
        own = next((self.folder / name for name in ("teacher", "transformer") if self._holds_teacher(self.folder / name)), None)
        if own is None:
            raise UserError(f"{self.name} holds a student but no teacher: name a bundle with a teacher, such as Wan's own")
        teacher: Teacher = _load(Teacher, own, device, dtype)
        return teacher

    def load_vae(self, device: torch.device, dtype: torch.dtype) -> AutoencoderKLWan:
        return _load(AutoencoderKLWan, self.folder / "vae", device, dtype)

    def load_text(self, device: torch.device, dtype: torch.dtype, *, layerwise: bool = False) -> TextEncoder:
        """The text encoder; `layerwise` keeps it in main memory and brings one layer at a time to the device."""
        check_weights(self.folder / "text_encoder")
        try:
            encoder = TextEncoder.load(self.folder / "tokenizer", self.folder / "text_encoder", self.settings.text_length, dtype)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{self.folder / 'text_encoder'} cannot be loaded: {_first_line(error)}") from error
        encoder.model.eval().requires_grad_(False)
        if layerwise and device.type != "cpu":
            cpu_offload(encoder.model, device)
        else:
            encoder.model.to(device)
        return encoder

    @property
    def compression(self) -> Compression:
        config = json.loads((self.folder / "vae" / "config.json").read_text())
        down = config.get("temperal_downsample", [False, True, True])
        spatial = 2 ** (len(config.get("dim_mult", [1, 2, 4, 4])) - 1) * (config.get("patch_size") or 1)
        return Compression(temporal=2 ** sum(down), spatial=spatial)

    def transformer_config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self.student / "config.json").read_text())
        return config

    @staticmethod
    def _holds_teacher(folder: Path) -> bool:
        config = folder / "config.json"
        return config.exists() and json.loads(config.read_text()).get("_class_name") != CausalWanModel.__name__

    def _require(self, *components: str) -> None:
        missing = [name for name in components if not (self.folder / name).is_dir()]
        if missing:
            raise UserError(f"{self.folder} is not a model: {', '.join(missing)} missing; it takes diffusers' layout")


def fingerprint(bundle: Bundle) -> str:
    """A digest that tells one set of weights from another: names, shapes and sizes in full, and the bytes of every file's ends."""
    digest = hashlib.sha256()
    for folder in (bundle.student, bundle.folder / "vae", bundle.folder / "text_encoder"):
        for file in _weight_files(folder):
            with file.open("rb") as opened:
                digest.update(f"{folder.name} {file.name} {file.stat().st_size}".encode())
                digest.update(opened.read(_ENDS))
                opened.seek(max(0, file.stat().st_size - _ENDS))
                digest.update(opened.read(_ENDS))
    return digest.hexdigest()[:16]


def embedded() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(folder.name for folder in EMBEDDED.iterdir() if (folder / SETTINGS).exists())


def _student_folder(folder: Path) -> Path:
    for candidate in (folder, folder / "transformer"):
        if (candidate / "config.json").exists():
            return candidate
    raise UserError(f"{folder} holds no student: it takes a diffusers folder, such as a run's step-NNNNNN/student")


def _load(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    check_weights(folder)
    diffusers_logging.set_verbosity_error()
    try:
        model, report = kind.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder} cannot be loaded: {_first_line(error)}") from error
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise UserError(f"{folder}: its weights are not those of its config.json ({wrong[0]} and {len(wrong) - 1} more differ)")
    module: nn.Module = model
    return module.to(device).eval().requires_grad_(False)


def check_weights(folder: Path) -> None:
    """Refuse a folder without readable safetensors before any library trips over it."""
    files = list(_weight_files(folder))
    if not files:
        raise UserError(f"no weights in {folder}: it takes .safetensors files")
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is corrupt ({_first_line(error)}): fetch or convert it again") from error


def _weight_files(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("*.safetensors"))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
