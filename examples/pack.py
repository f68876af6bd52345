"""Assemble a model to embed: untrained layout + trained parts, stored as float16.

    python examples/pack.py --init runs/init --teacher runs/teacher/step-014000 --out runs/teacher-bundle
    python examples/pack.py --init runs/init --teacher runs/teacher/step-014000 \\
        --student runs/self-forcing-pp/step-000100/student-ema --out weights/landscape \\
        --beside ode=runs/student/step-003000/student-ema \\
        self-forcing=runs/self-forcing/step-000100/student-ema

`embed.py` of the landscape knows where that world's parts lie.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from transformers import UMT5EncoderModel

from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.teacher import Teacher
from sfpp_cli.models.quiet import quiet_libraries


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--init", type=Path, required=True, help="folder made by init_model.py")
    parser.add_argument(
        "--teacher",
        type=Path,
        required=True,
        help="transformer and text encoder; averages of a run's checkpoint win",
    )
    parser.add_argument(
        "--student", type=Path, help="folder of the student's weights; without it the bundle is the teacher's"
    )
    parser.add_argument(
        "--beside", nargs="+", default=[], metavar="NAME=FOLDER", help="other students, kept in students/NAME"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    quiet_libraries()
    out: Path = options.out
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(options.init / part, out / part, dirs_exist_ok=True)
    store(AutoencoderKLWan.from_pretrained(options.init / "vae"), out / "vae")
    store(UMT5EncoderModel.from_pretrained(averaged(options.teacher / "text_encoder")), out / "text_encoder")
    teacher = Teacher.from_pretrained(averaged(options.teacher / "transformer"))
    if options.student is None:
        store(teacher, out / "transformer")
    else:
        store(teacher, out / "teacher")
        store_student(options.student, out / "transformer")
    for pair in options.beside:
        name, _, folder = pair.partition("=")
        store_student(Path(folder), out / "students" / name)
    shutil.copy(options.init / "sfpp.json", out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 1e6:.1f} MB")


def averaged(folder: Path) -> Path:
    """The moving average of these weights, where a checkpoint has one."""
    average = folder.with_name(f"{folder.name}-ema")
    return average if average.exists() else folder


def store_student(source: Path, folder: Path) -> None:
    """Weights, and how the student wants to be rolled out, if its folder says so."""
    store(CausalWanModel.from_pretrained(source), folder)
    if (source / "sfpp.json").exists():
        shutil.copy(source / "sfpp.json", folder)


def store(model: torch.nn.Module, folder: Path) -> None:
    """As float16, without a word of where the weights were loaded from."""
    model.to(torch.float16).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
