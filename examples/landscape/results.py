"""What comes back from a call: few files, each whole or the one of before; and going on from them."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from road import say

LARGEST = 16 * 2**20
"""Bytes of a file."""
EVERY = 60.0
PACKS = {
    "vae.tar": ("vae", "vae.done", "gate-vae.json", "students/self-forcing-pp", "self-forcing-pp.done"),
    "teacher.tar": (
        "teacher",
        "teacher.done",
        "init/tokenizer",
        "init/scheduler",
        "init/sfpp.json",
    ),
    "students.tar": ("students/ode", "ode.done", "students/self-forcing", "self-forcing.done"),
    "state.tar": ("teacher-raw.pt", "teacher-samples.pt"),
}
"""What comes back, in few files; a stage's mark lies beside its result."""
SHEETS = ("vae.png", "teacher.png")
STUDENT_SHEETS = ("ode.png", "self-forcing.png", "self-forcing-pp.png")


class Results:
    """Copies what is new in the work folder to the folder that comes back."""

    def __init__(self, work: Path, out: Path) -> None:
        self.work, self.out = work, out
        self.published: dict[str, float] = {}
        self.last = time.monotonic()

    def publish_now_and_then(self) -> None:
        if time.monotonic() - self.last > EVERY:
            self.publish()

    def publish(self) -> None:
        """Copy what is new to --out: a file is whole or the one of before."""
        self.last = time.monotonic()
        try:
            for name, parts in PACKS.items():
                present = [part for part in parts if (self.work / part).exists()]
                newest = max((changed(self.work / part) for part in present), default=0.0)
                if present and newest != self.published.get(name):
                    self.put(name, lambda path, present=present: self.pack(path, present))
                    self.published[name] = newest
            for name in SHEETS:
                if (self.work / name).exists():
                    self.put(name, lambda path, name=name: shutil.copy(self.work / name, path))
            self.put("students.png", self.stack_sheets)
            self.put("log.txt", lambda path: shutil.copy(self.work / "log.txt", path))
        except Exception:
            say(self.work, f"publish: {traceback.format_exc()}")

    def put(self, name: str, write: Callable[[Path], object]) -> None:
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            path = Path(folder) / name
            write(path)
            if not path.exists():
                return
            if path.stat().st_size > LARGEST:
                say(self.work, f"publish: {name} has {path.stat().st_size} bytes, more than {LARGEST}")
            shutil.copyfile(path, self.out / name)

    def pack(self, path: Path, parts: list[str]) -> None:
        with tarfile.open(path, "w") as tar:
            for part in parts:
                tar.add(self.work / part, part)

    def stack_sheets(self, path: Path) -> None:
        pages = [Image.open(self.work / name) for name in STUDENT_SHEETS if (self.work / name).exists()]
        if not pages:
            return
        whole = Image.new("RGB", (max(page.width for page in pages), sum(page.height for page in pages)))
        top = 0
        for page in pages:
            whole.paste(page, (0, top))
            top += page.height
        whole.save(path)


def restore(folder: Path, work: Path) -> None:
    """Unpack what an earlier call has left."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            tar.extractall(work, filter="data")
    if (work / "init").exists() and (work / "vae").exists():
        shutil.copytree(work / "vae", work / "init" / "vae", dirs_exist_ok=True)


def changed(path: Path) -> float:
    """When the newest file of a folder was written."""
    return max((file.stat().st_mtime for file in (path, *path.rglob("*")) if file.exists()), default=0.0)
