"""A student as one file under Wan's original names. The way back is `convert`."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from sfpp_cli.errors import UserError
from sfpp_cli.files import replacing
from sfpp_cli.models.convert import infer_config, original_name, student_from_original, transformer_keys
from sfpp_cli.models.hub import resolve
from sfpp_cli.models.layout import STUDENTS, class_of, student_folder
from sfpp_cli.models.original import exported, load_original, rename
from sfpp_cli.models.quiet import quiet_libraries
from sfpp_cli.models.settings import Settings


def export(student: str, target: Path, *, overwrite: bool = False) -> None:
    """Write the causal weights of a folder, bundle or hub id to the file `target`, tensors as they are.

    The file appears whole or not at all. Raises UserError if there is no student, if its weights are not
    those of a Wan transformer, or if `target` exists and is not to be replaced.
    """
    quiet_libraries()
    if target.suffix != ".safetensors":
        raise UserError(f"{target} is to be a file of weights: end its name in .safetensors")
    if target.is_dir() or (target.exists() and not overwrite):
        raise UserError(f"{target} exists: use --overwrite to replace a file, or choose another name")
    folder = student_folder(resolve(student, student=True))
    if target.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{target} lies in the student's own folder: choose another")
    if class_of(folder) not in STUDENTS:
        raise UserError(f"{folder} is no causal student: name the student of a run, or a converted one")
    original = load_original(folder.parent if folder.name == "transformer" else folder)
    weights = transformer_keys(original.weights | original.lora)
    config = infer_config(weights, original.config.get("num_attention_heads"))
    student_from_original(weights, config)  # refuses what is missing, or fits nothing
    tensors = {name: tensor.contiguous() for name, tensor in rename(weights, original_name).items()}
    with replacing(target) as part:
        save_file(tensors, part, exported(original.config, original.settings or Settings()))
