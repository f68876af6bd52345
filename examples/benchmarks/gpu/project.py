"""The project itself on this machine: its tests that need a GPU, and its commands with the embedded model."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from safetensors.torch import load_file

import sfpp_cli
from gpu.measuring import Result, Section, error_of
from sfpp_cli import app

ROOT = Path(sfpp_cli.__file__).parents[1]
PATH = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
CORE = [f"tests/core/test_{name}.py" for name in ("student", "cache", "rollout", "flow")]
SMALL_RUN = {
    "training.steps": 2,
    "training.batch": 2,
    "training.ema_start": 1,
    "training.save_every": 1,
    "training.keep_every": 0,
    "dmd.frames": 24,
    "dmd.critic_updates": 1,
    "preview.every": 2,
    "preview.seconds": 1.0,
    "preview.count": 1,
}
RECIPE = "examples/toyworld/self-forcing-pp.toml"


def tests(s: Section) -> None:
    """Tests that need a GPU; two CPU ranks beside a GPU; the core's tests with this torch."""
    if not s.cuda:
        s.attempt("pytest tests/core/test_cache.py", lambda: pytest(s, "tests/core/test_cache.py"))
        return
    on_gpu = s.attempt("pytest -m gpu", lambda: pytest(s, "-m", "gpu", SFPP_TEST_GPU="1"))
    if on_gpu and on_gpu["exit"]:
        again = ("-m", "gpu", "-W", "default")
        s.attempt("the same with warnings allowed", lambda: pytest(s, *again, SFPP_TEST_GPU="1"), need=15)
    # FSDP2 takes the accelerator for its mesh unless it is told otherwise.
    s.attempt(
        "two ranks on the CPU of a machine with a GPU",
        lambda: pytest(s, "tests/core/test_ranks.py", SFPP_TEST_GPU="1"),
        need=30,
    )
    s.attempt("core tests on the CPU with this torch", lambda: pytest(s, *CORE), need=25)


def pytest(s: Section, *arguments: str, **environment: str) -> Result:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=max(5, s.left() - 2),
        env={**os.environ, "PYTHONPATH": PATH, **environment},
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    print("\n".join(lines[-60:]))
    return {"exit": done.returncode, "end": lines[-12:]}


def product(s: Section) -> None:
    """Commands with the embedded model: the CPU against the device, then switches that run other code."""
    os.chdir(ROOT)  # where a recipe's relative paths lead
    with tempfile.TemporaryDirectory(prefix="sfpp-product-") as folder:
        generate(s, Path(folder))
        train(s, Path(folder))


def generate(s: Section, work: Path) -> None:
    def video(name: str, *switches: str) -> Result:
        length = ("--seconds", "1" if s.tiny else "5", "--seed", "3", "--json", "--save-latents")
        return sfpp("generate", *length, *switches, "-o", str(work / f"{name}.mp4"))

    def against_cpu(name: str) -> Result:
        latents = {which: load_file(work / f"{which}.safetensors")["latents"] for which in (name, "cpu")}
        return error_of(latents[name], latents["cpu"])

    here = ("--device", s.device.type)
    s.attempt("generate, CPU float32", lambda: video("cpu", "--device", "cpu"), need=10)
    s.attempt("generate, device float32", lambda: video("float32", *here, "--dtype", "float32"), need=10)
    s.attempt("generate, device as by default", lambda: video("default", *here), need=10)
    s.attempt("latents, float32 against CPU", lambda: against_cpu("float32"))
    s.attempt("latents, default against CPU", lambda: against_cpu("default"))
    lean = ("--tile", "4", "--offload", "sequential")
    s.attempt("generate --tile --offload sequential", lambda: video("lean", *here, *lean), need=10)
    s.attempt("generate --compile", lambda: video("compiled", *here, "--compile"), need=35)


def train(s: Section, work: Path) -> None:
    def trained(folder: str, *more: str, **settings: str) -> Result:
        pairs = {**SMALL_RUN, **{f"training.{name}": value for name, value in settings.items()}}
        sets = [f"--set={name}={value}" for name, value in pairs.items()]
        return sfpp("train", RECIPE, "--device", s.device.type, "--out", str(work / folder), *sets, *more)

    s.attempt("train, 2 steps", lambda: trained("run"), need=10)
    s.attempt("train --resume to 3", lambda: trained("run", "--resume", steps="3"), need=10)
    lean = {"offload": "true", "gradient_checkpointing": "true", "micro_batch": "1"}
    s.attempt("train, offload and checkpointing", lambda: trained("lean", **lean), need=10)
    student = str(work / "run" / "step-000003" / "student")
    after = ("--seconds", "1", "--student", student, "-o", str(work / "after.mp4"))
    s.attempt(
        "generate with the trained student",
        lambda: sfpp("generate", "--json", "--device", s.device.type, *after),
        need=8,
    )


def sfpp(*arguments: str) -> Result:
    """Run the command line in this process. RuntimeError if it fails."""
    out = io.StringIO()
    errors = io.StringIO()
    began = time.time()
    code: object = 0
    with (
        patch.object(sys, "argv", ["sfpp", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        try:
            app.main()
        except SystemExit as stop:
            code = stop.code
    if code:
        raise RuntimeError(f"sfpp {arguments[0]} exits with {code}: {errors.getvalue()[-500:]}")
    result: Result = {"s": round(time.time() - began, 2)}
    if "--json" in arguments:
        video = json.loads(out.getvalue())["videos"][0]
        result |= {name: video[name] for name in ("speed", "memory_mb", "peak_memory_mb")}
    return result
