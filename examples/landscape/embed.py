"""Turn the road's folder into the embedded model: the Self-Forcing++ student, its teacher, and the two
students that it is compared with, by name.

    python examples/landscape/embed.py --work runs/landscape-work           # writes weights/landscape
    sfpp generate --model landscape --student landscape:self-forcing

Nothing is written where a part is missing or weights/ would grow beyond 40 MB, so another world's model is to
be taken away first.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

EXAMPLES = Path(__file__).parents[1]
MAIN, BESIDE = "self-forcing-pp", ("ode", "self-forcing")
PARTS = (
    "init/vae",
    "init/tokenizer",
    "teacher/transformer",
    *(f"students/{name}" for name in (MAIN, *BESIDE)),
)
LARGEST = 40e6
"""Bytes of all embedded models together."""


def main() -> None:
    options = parse()
    missing = [part for part in PARTS if not (options.work / part).exists()]
    if missing:
        raise SystemExit(f"{options.work} lacks {', '.join(missing)}: the road (all.py) has not come so far")
    out: Path = options.out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent.parent, prefix=".embed-") as folder:
        made = Path(folder) / out.name
        pack(options.work, made)
        others = sum(size(model) for model in out.parent.iterdir() if model != out)
        if size(made) + others > LARGEST:
            sizes = f"{size(made) / 1e6:.1f} MB, and what lies beside it {others / 1e6:.1f}"
            raise SystemExit(f"{out.name} would have {sizes}: 40 MB at most")
        shutil.rmtree(out, ignore_errors=True)
        made.rename(out)
    print(f"{out}: {size(out) / 1e6:.1f} MB")


def pack(work: Path, out: Path) -> None:
    """Put the model together as float16."""
    students = work / "students"
    command = [sys.executable, EXAMPLES / "pack.py", "--init", work / "init", "--teacher", work / "teacher"]
    command += ["--student", students / MAIN, "--out", out]
    command += ["--beside", *(f"{name}={students / name}" for name in BESIDE)]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="the road's --work")
    parser.add_argument("--out", type=Path, default=EXAMPLES.parent / "weights" / "landscape")
    return parser.parse_args()


if __name__ == "__main__":
    main()
