"""A model as people name it, and where its parts are. Importing this loads no torch.

A bundle is a folder with `transformer/ vae/ text_encoder/ tokenizer/ scheduler/` and `sfpp.json`.
`transformer/` is the causal student; a bundle without `sfpp.json` is plain Wan, its transformer a
bidirectional teacher. A bundle may hold its teacher too, in `teacher/`. A folder with a student alone is good
for `--student`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sfpp_cli.core.geometry import Compression
from sfpp_cli.errors import UserError, reason
from sfpp_cli.models.configs import check_config
from sfpp_cli.models.hub import resolve
from sfpp_cli.models.settings import SETTINGS, Settings
from sfpp_cli.schema import load_json

SHARED = ("vae", "text_encoder", "tokenizer")
"""What every bundle needs besides a transformer."""
STUDENTS = ("CausalWanModel",)
TEACHERS = ("Teacher", "WanTransformer3DModel")


class Layout:
    """The folders and configurations of a model. Reads small files only."""

    def __init__(self, model: str, student: str | None = None, *, offline: bool = False) -> None:
        """`student` names a folder, bundle or hub id whose causal weights replace the bundle's transformer.

        Raises UserError if parts are missing, or if the student's channels and text are not the bundle's.
        """
        self.name = model
        self.folder = resolve(model, offline=offline)
        self._require(SHARED if student else ("transformer", *SHARED))
        if student is None:
            self.student = self.folder / "transformer"
        else:
            self.student = student_folder(resolve(student, student=True, offline=offline))
        around = [self.student.parent] if self.student.name == "transformer" else []
        places = [self.student, *around, self.folder]
        settings = next((place / SETTINGS for place in places if (place / SETTINGS).exists()), None)
        self.settings = Settings.read(settings) if settings else Settings()
        if class_of(self.student) in (*STUDENTS, *TEACHERS):
            self.check_fit(self.transformer_config(), str(self.student))
            self._check_size()

    @property
    def teacher(self) -> Path | None:
        """The bidirectional teacher: `teacher/`, or the transformer of a bundle that is one."""
        places = (self.folder / part for part in ("teacher", "transformer"))
        return next((place for place in places if class_of(place) in TEACHERS), None)

    def require_student(self) -> Path:
        """The causal student. UserError if there is none."""
        kind = self.transformer_config().get("_class_name")
        if kind not in STUDENTS:
            what = "a bidirectional teacher" if kind in TEACHERS else f"of class {kind}"
            raise UserError(
                f"{self.student} is {what}, not a causal student: name causal weights with --student, "
                "or make them with `sfpp weights convert`"
            )
        return self.student

    def require_teacher(self) -> Path:
        """The teacher. UserError if there is none."""
        if self.teacher is None:
            remedy = "name a bundle with a teacher, such as Wan's own"
            raise UserError(f"{self.name} holds a student but no teacher: {remedy}")
        return self.teacher

    @property
    def teacher_horizon(self) -> int:
        """Latent frames that the bundle's teacher can judge; a student's own may be longer."""
        own = self.folder / SETTINGS
        return (Settings.read(own) if own.exists() else Settings()).horizon

    @property
    def compression(self) -> Compression:
        config = read_config(self.folder / "vae")
        down = config.get("temperal_downsample", [False, True, True])
        spatial = 2 ** (len(config.get("dim_mult", [1, 2, 4, 4])) - 1) * (config.get("patch_size") or 1)
        return Compression(temporal=2 ** sum(down), spatial=spatial)

    @property
    def multiples(self) -> tuple[int, int]:
        """Width and height of a patch in pixels, which divide every picture's."""
        _, down, across = self.transformer_config()["patch_size"]
        return self.compression.spatial * across, self.compression.spatial * down

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of a latent frame at the native size."""
        return self.compression.latent_size(self.settings.width, self.settings.height)

    def transformer_config(self) -> dict[str, Any]:
        return read_config(self.student)

    def _require(self, parts: tuple[str, ...]) -> None:
        missing = [part for part in parts if not (self.folder / part).is_dir()]
        if missing:
            alone = class_of(self.folder / "transformer") in STUDENTS
            also = "; a student alone goes to --student" if alone else ""
            what = f"{self.folder} is not a model: {', '.join(missing)} missing"
            raise UserError(f"{what}; it takes diffusers' layout{also}")

    def check_fit(self, config: Mapping[str, Any], what: str) -> None:
        """Refuse a transformer of another family, with other latent or text channels than VAE and encoder."""
        for ours, part, theirs in (("in_channels", "vae", "z_dim"), ("text_dim", "text_encoder", "d_model")):
            own, others = config.get(ours), read_config(self.folder / part).get(theirs)
            if own is not None and others is not None and own != others:
                raise UserError(
                    f"{what} has {ours} {own}, but the {part} of {self.name} has {theirs} {others}: "
                    "use a base of its family"
                )

    def _check_size(self) -> None:
        """Refuse a native size that is not made of whole patches."""
        across, down = self.multiples
        if self.settings.width % across or self.settings.height % down:
            size = f"{self.settings.width}x{self.settings.height}"
            raise UserError(
                f"{self.name} has a native size of {size}, but it makes pictures of {across}x{down} pixels "
                f"and multiples: correct width and height in its {SETTINGS}"
            )


@dataclass(frozen=True)
class Header:
    """What a weight file says of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    """In safetensors' words: F32, BF16 ..."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_config(folder: Path) -> dict[str, Any]:
    """A component's config.json. UserError with all that is wrong with it."""
    path = folder / "config.json"
    config = read_json(path)
    check_config(config, path)
    return config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder. UserError if the file holds anything else."""
    try:
        config = load_json(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({reason(error)}): fetch or convert the model again"
        ) from error
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold one JSON object: fetch or convert the model again")
    return config


def class_of(folder: Path) -> str | None:
    """The class that a component says it is of; None if it is not there or does not say."""
    name = read_config(folder).get("_class_name") if (folder / "config.json").exists() else None
    return None if name is None else str(name)


def weight_files(folder: Path) -> list[Path]:
    """A component's safetensors files: those that its index lists, or all there are. UserError if none."""
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    files = _present(sorted(folder.glob("*.safetensors"))) if index is None else indexed_files(index)
    if not files:
        raise UserError(f"no weights in {folder}: it takes .safetensors files")
    return files


def indexed_files(index: Path) -> list[Path]:
    """The files that an index of shards lists. UserError if it is damaged, or one of them is missing."""
    try:
        names = load_json(index)["weight_map"].values()
        files = [index.parent / name for name in sorted(set(names))]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} cannot be read ({reason(error)}): fetch or convert the model again"
        ) from error
    outside = next((name for name in names if Path(name).name != name), None)
    if outside is not None:
        raise UserError(f"{index} names {outside}, which is not beside it: fetch or convert the model again")
    return _present(files)


def _present(files: list[Path]) -> list[Path]:
    """These very files. UserError if one is missing, or is a link to what is."""
    missing = next((file for file in files if not file.exists()), None)
    if missing is not None:
        raise UserError(f"{missing} is missing: fetch or convert the model again")
    return files


def headers(folder: Path) -> dict[str, Header]:
    """Every tensor of a component, by name, read from the files' headers. UserError if a file is damaged."""
    found = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                    part = opened.get_slice(name)
                    found[name] = Header(tuple(part.get_shape()), str(part.get_dtype()))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged ({error}): fetch or convert it again") from error
    return found


def student_folder(folder: Path) -> Path:
    """Where a student's transformer lies: the folder itself, or one in it. UserError if there is none."""
    for candidate in (folder, folder / "transformer"):
        if (candidate / "config.json").exists():
            return candidate
    inner = [config.parent for pattern in ("*", "*/*") for config in folder.glob(f"{pattern}/config.json")]
    students = (str(place) for place in sorted(inner, reverse=True) if class_of(place) in STUDENTS)
    near = next(students, "a run's step-NNNNNN/student")
    raise UserError(f"{folder} holds no student: it takes a folder in diffusers' layout, such as {near}")


def pull(model: str, *, student: bool = False) -> Path:
    """Fetch a model, or the student alone; returns its folder once it is seen to hold what was asked for."""
    folder = resolve(model, student=student)
    if student:
        found = student_folder(folder)
        if class_of(found) not in STUDENTS:
            raise UserError(f"{found} is no causal student: fetch the whole model without --student")
        return found
    if class_of(folder / "transformer") not in STUDENTS:
        Layout(str(folder))
    return folder
