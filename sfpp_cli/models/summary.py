"""What a model is and what it costs, from its small files and its weights' headers. Loads no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfpp_cli.core.geometry import tokens_per_frame
from sfpp_cli.errors import UserError
from sfpp_cli.models.hub import cached, embedded, embedded_students, resolve
from sfpp_cli.models.layout import SHARED, STUDENTS, TEACHERS, Header, Layout, class_of, headers
from sfpp_cli.models.settings import SETTINGS

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Listed:
    """One line of `sfpp weights list`."""

    name: str
    source: str
    kind: str
    """student, teacher, student only (for --student), or incomplete: something is missing or damaged."""
    size: int
    """Bytes on disk."""
    folder: str


@dataclass(frozen=True)
class Part:
    """One network."""

    parameters: int
    dtype: str
    """What most of its parameters are stored in."""


@dataclass(frozen=True)
class Shape:
    """The sizes that decide what a transformer's cache takes."""

    layers: int
    heads: int
    head_dim: int
    tokens: int
    """Per latent frame, at the native size."""

    def cache_bytes(self, latent_frames: int, element: int) -> int:
        """Keys and values of every layer, token and head."""
        return 2 * self.layers * latent_frames * self.tokens * self.heads * self.head_dim * element


@dataclass(frozen=True)
class Summary:
    """What `sfpp weights show` shows."""

    layout: Layout
    kind: str
    parts: dict[str, Part]
    shape: Shape

    @property
    def horizon_seconds(self) -> float:
        settings = self.layout.settings
        return self.layout.compression.video_frames(settings.horizon) / settings.fps

    def as_json(self) -> dict[str, Any]:
        frames = {"latent_frame": 1, "context": self.layout.settings.context}
        return {
            "model": self.layout.name,
            "folder": str(self.layout.folder),
            "weights": str(self.layout.student),
            "kind": self.kind,
            "parts": {name: vars(part) for name, part in self.parts.items()},
            **vars(self.shape),
            **vars(self.layout.settings),
            "horizon_seconds": round(self.horizon_seconds, 3),
            "cache_bytes": {
                dtype: {name: self.shape.cache_bytes(count, size) for name, count in frames.items()}
                for dtype, size in ELEMENT_BYTES.items()
            },
        }

    def as_text(self) -> str:
        settings = self.layout.settings
        parts = self.parts.items()
        shape = self.shape
        steps = " ".join(map(str, settings.steps))
        if settings.first_steps is not None:
            steps += f", in the first chunk {' '.join(map(str, settings.first_steps))}"
        cache = []
        for dtype, size in ELEMENT_BYTES.items():
            one = readable(shape.cache_bytes(1, size))
            whole = readable(shape.cache_bytes(settings.context, size))
            cache.append(f"{dtype} {one} a latent frame, {whole} in all")
        picture = f"{settings.width}x{settings.height}"
        past = f"context {settings.context}, sink {settings.sink}"
        lines = {
            "model": f"{self.layout.name} ({self.kind}), {self.layout.folder}",
            "weights": f"{self.layout.student}",
            **{name: f"{part.parameters / 1e6:.1f} M parameters, {part.dtype}" for name, part in parts},
            "sizes": f"{shape.layers} layers, {shape.heads} heads of {shape.head_dim}",
            "video": f"{picture} at {settings.fps} fps, {shape.tokens} tokens a latent frame",
            "rollout": f"chunks of {settings.chunk} latent frames, {past}",
            "sampling": f"shift {settings.shift:g}, steps {steps}",
            "trained on": f"rollouts of {settings.horizon} latent frames ({self.horizon_seconds:.1f} s)",
            "KV cache": "; ".join(cache),
        }
        return "\n".join(f"{name:<13} {text}" for name, text in lines.items())


def summarise(model: str, student: str | None = None) -> Summary:
    """Look at a model that is here already; nothing is downloaded or loaded."""
    layout = Layout(model, student, offline=True)
    folders = {"transformer": layout.student}
    folders |= {name: layout.folder / name for name in ("vae", "text_encoder")}
    is_student = class_of(layout.student) in STUDENTS
    if is_student and layout.teacher is not None:
        folders["teacher"] = layout.teacher
    parts = {name: _part(headers(folder)) for name, folder in folders.items()}
    return Summary(layout, "student" if is_student else "teacher", parts, transformer_shape(layout))


def listing() -> list[Listed]:
    """The embedded models, then those in the hub's cache."""
    here = [(name, "embedded", resolve(name)) for name in (*embedded(), *embedded_students())]
    hub = [(name, "hub cache", folder) for name, folder in cached()]
    return [
        Listed(name, source, kind, _size(folder), str(folder))
        for name, source, folder in [*here, *hub]
        if (kind := _kind(folder))
    ]


def readable(size: float) -> str:
    """Bytes in decimal units."""
    count = round(size)
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    if count >= 1e6:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e3:.1f} kB"


def _part(tensors: dict[str, Header]) -> Part:
    by_dtype: Counter[str] = Counter()
    for tensor in tensors.values():
        by_dtype[tensor.dtype] += tensor.elements
    (dtype, _), *_ = by_dtype.most_common(1)
    return Part(by_dtype.total(), _DTYPES.get(dtype, dtype))


def transformer_shape(layout: Layout, latent_size: tuple[int, int] | None = None) -> Shape:
    """The sizes of a model's transformer, at the native size or another."""
    config = layout.transformer_config()
    try:
        return Shape(
            layers=config["num_layers"],
            heads=config["num_attention_heads"],
            head_dim=config["attention_head_dim"],
            tokens=tokens_per_frame(*(latent_size or layout.latent_size), config["patch_size"]),
        )
    except KeyError as error:
        raise UserError(
            f"{layout.student / 'config.json'} lacks {error}: fetch or convert the model again"
        ) from error


def _kind(folder: Path) -> str | None:
    """What a folder holds; None if that is no model of ours."""
    own = folder / "transformer" if (folder / "transformer").is_dir() else folder
    try:
        name = class_of(own)
        if name not in (*STUDENTS, *TEACHERS):
            return "incomplete" if (folder / SETTINGS).exists() else None
        headers(own)
    except UserError:
        return "incomplete"
    kind = "student" if name in STUDENTS else "teacher"
    parts = [part for part in SHARED if (folder / part).is_dir()]
    if len(parts) == len(SHARED):
        return kind
    return "student only" if kind == "student" and not parts else "incomplete"


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
