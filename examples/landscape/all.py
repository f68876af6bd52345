"""The landscape's models from nothing, stage by stage, within a given time; the same on a CPU and on a GPU.

    python examples/landscape/all.py --out runs/landscape-out --minutes 600            # hours on two cores
    python examples/landscape/all.py --out OUT --device cuda --minutes 7.5
    python examples/landscape/all.py --out OUT --quick --minutes 5                     # to see that it works

Every stage is a process of its own with a budget; what it has made is copied to --out at its end and once a
minute. A stage that fails or is killed costs nothing that came before it, and the same command goes on from
the last states in --work. On another machine --restore takes a folder that was --out of an earlier call.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault(
    "PYTORCH_NVML_BASED_CUDA_CHECK", "1"
)  # asking whether there is a GPU must not spoil it for child processes
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "6")
STARTED = time.monotonic()

import encode_world  # noqa: E402 (the environment comes first)
import gate_teacher  # noqa: E402
import gate_vae  # noqa: E402
import init_model  # noqa: E402
import read_teacher  # noqa: E402
import torch  # noqa: E402
import train_students  # noqa: E402
import train_teacher  # noqa: E402
import train_vae  # noqa: E402
import warm  # noqa: E402
from results import Results, restore  # noqa: E402
from road import CAREFUL, SCALES, Job, say  # noqa: E402

from sfpp_cli.models.quiet import quiet_libraries  # noqa: E402

GRACE = {"cuda": 25.0, "cpu": 600.0}
"""Seconds a stage may run over its budget before it is killed."""
AFTERWARDS = {"gpu": 8.0, "cpu": 120.0, "quick": 12.0}
"""Seconds set apart for what follows training within its stage: statistics, weights, a contact sheet."""


@dataclass(frozen=True)
class Stage:
    """A step of the road."""

    name: str
    run: Callable[[Job], None]
    share: float = 0.0
    """Of the time that is not spoken for; 0 for a stage that takes what it takes."""
    gpu: float = 0.0
    cpu: float = 0.0
    """Seconds set apart for a stage that takes what it takes."""
    after: str = ""
    """What must be in the work folder."""
    beside: bool = False
    """On a GPU nobody waits for it; elsewhere a gate has its turn, and what only warms up is left out."""


def with_look(name: str, learn: Callable[[Job], None]) -> Callable[[Job], None]:
    """A student's training, which is then done, and its contact sheet."""

    def run(job: Job) -> None:
        learn(job)
        (job.work / f"{name}.done").touch()
        train_students.look(name, job)

    return run


def laid_out(job: Job) -> None:
    init_model.run(job)
    encode_world.run(job)


STAGES = (
    Stage("warm-teacher", warm.warm_teacher, beside=True),
    Stage("vae", train_vae.run, share=115),
    Stage("gate-vae", gate_vae.run, gpu=12, cpu=900, after="vae"),
    Stage("latents", laid_out, gpu=20, cpu=1500, after="vae"),
    Stage("teacher", train_teacher.run, share=150, after="latents/captions.jsonl"),
    Stage("gate-teacher", gate_teacher.run, gpu=12, cpu=1200, after="teacher"),
    Stage("read-teacher", read_teacher.run, cpu=600, after="teacher-videos.pt", beside=True),
    Stage("pairs", train_students.make_trajectories, gpu=28, cpu=1800, after="teacher"),
    Stage("ode", with_look("ode", train_students.train_ode), share=55, after="pairs"),
    Stage("warm-matching", warm.warm_matching, after="students/ode", beside=True),
    Stage(
        "self-forcing",
        with_look("self-forcing", lambda job: train_students.train_matching("self-forcing", job)),
        share=60,
        after="students/ode",
    ),
    Stage(
        "self-forcing-pp",
        with_look("self-forcing-pp", lambda job: train_students.train_matching("self-forcing-pp", job)),
        share=120,
        after="students/ode",
    ),
)
BY_NAME = {stage.name: stage for stage in STAGES}


class Road:
    """Runs the stages and never longer than it may."""

    def __init__(self, options: argparse.Namespace, begin: bool = True) -> None:
        """`begin` is for the process that leads all others."""
        self.options = options
        self.work = options.work
        self.deadline = STARTED + 60 * options.minutes
        # With its number: torch.cuda.set_device, which joins ranks, refuses a bare "cuda".
        self.device = torch.device("cuda:0" if options.device == "cuda" else options.device)
        self.cuda = self.device.type == "cuda"
        scale = "quick" if options.quick else options.scale or ("gpu" if self.cuda else "cpu")
        self.scale_name, self.scale = scale, SCALES[scale]
        self.results = Results(options.work, options.out)
        self.beside: dict[str, int] = {}
        self.now: int | None = None
        self.fork = options.isolate == "fork"
        names = [stage.name for stage in STAGES]
        first = names.index(options.first) if options.first else 0
        last = names.index(options.last) if options.last else len(names) - 1
        self.stages = [
            stage
            for stage in STAGES[first : last + 1]
            if stage.name not in (options.without or "").split(",")
        ]
        if not begin:
            return
        (self.work / CAREFUL).unlink(missing_ok=True)
        for name in options.again.split(",") if options.again else ():
            (self.work / f"{name}.done").unlink(missing_ok=True)

    def run(self) -> None:
        took = time.monotonic() - STARTED
        size = f"scale {self.scale_name}"
        self.say(f"road: {self.options.minutes} min on {self.device}, {size}; {took:.1f} s to start")
        if self.fork and self.cuda and self.run_alone("probe", 40) != 0:
            self.say("road: the GPU cannot be used in forked processes; starting new ones instead")
            self.fork = False
        for place, stage in enumerate(self.stages):
            if self.is_done(stage.name):
                self.say(f"{stage.name}: done earlier")
            elif stage.after and not (self.work / stage.after).exists():
                self.say(f"{stage.name}: skipped, for want of {stage.after}")
            elif self.has_turn(stage):
                self.run_stage(stage, self.stages[place + 1 :])
            elif self.cuda:
                self.beside[stage.name] = self.start(stage.name, 0.0)
        self.finish()

    def run_stage(self, stage: Stage, later: list[Stage]) -> None:
        """A stage that fails has a second chance, carefully, from its last state."""
        for chance in (1, 2):
            seconds = self.budget(stage, later)
            if self.left() < 12 or seconds < 5:
                self.say(f"{stage.name}: skipped, no time is left")
                return
            limit = min(seconds + GRACE["cuda" if self.cuda else "cpu"], self.left() - 6)
            self.say(f"{stage.name}: {seconds:.0f} s of {self.left():.0f} s")
            began = time.monotonic()
            code = self.run_alone(stage.name, limit, seconds)
            took = time.monotonic() - began
            self.say(f"{stage.name}: {'done' if code == 0 else f'FAILED with {code}'} after {took:.1f} s")
            if code == 0:
                (self.work / f"{stage.name}.done").touch()
            self.results.publish()
            if code == 0 or code == -signal.SIGKILL or chance == 2:
                return
            (self.work / CAREFUL).touch()

    def has_turn(self, stage: Stage) -> bool:
        return not stage.beside or (not self.cuda and stage.cpu > 0)

    def budget(self, stage: Stage, later: list[Stage]) -> float:
        """Seconds for a stage: what it is set apart for, or its share of what is left after all such."""
        coming = [other for other in later if self.has_turn(other) and not self.is_done(other.name)]
        if not stage.share:
            return min(self.set_apart(stage), self.left() - 6)
        start_up = 4.0 if self.cuda else 0.5
        free = (
            self.left()
            - 10
            - self.set_apart(stage)
            - sum(self.set_apart(other) + start_up for other in coming)
        )
        return free * stage.share / (stage.share + sum(other.share for other in coming))

    def set_apart(self, stage: Stage) -> float:
        if stage.share:
            return AFTERWARDS[self.scale_name]
        if self.scale_name == "quick":
            return 15.0 if stage.cpu else 0.0
        return stage.gpu if self.scale_name == "gpu" else stage.cpu

    def run_alone(self, name: str, limit: float, seconds: float = 0.0) -> int:
        """A process of its own for a stage; killed, with all that it started, at its limit."""
        process = self.now = self.start(name, seconds)
        end = time.monotonic() + limit
        while time.monotonic() < end:
            finished, status = os.waitpid(process, os.WNOHANG)
            if finished:
                return os.waitstatus_to_exitcode(status)
            self.results.publish_now_and_then()
            time.sleep(0.05)
        self.say(f"{name}: killed at its limit of {limit:.0f} s")
        stop(process)
        os.waitpid(process, 0)
        return -signal.SIGKILL

    def start(self, name: str, seconds: float) -> int:
        """Fork, so that nothing is imported twice; or a new interpreter, where the GPU minds forks."""
        sys.stdout.flush()
        if not self.fork:
            words = [sys.executable, __file__, *sys.argv[1:], "--only", name, "--seconds", str(seconds)]
            return subprocess.Popen(words, start_new_session=True).pid
        process = os.fork()
        if process:
            return process
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        code = 1
        try:
            self.inside(name, seconds)
            code = 0
        except BaseException:
            self.say(f"{name}: {traceback.format_exc()}")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def inside(self, name: str, seconds: float) -> None:
        """The stage's own process."""
        quiet_libraries()
        job = Job(self.work, self.scale, self.device, seconds, time.monotonic())
        job.ready()
        if name == "probe":
            eight = torch.ones(8, device=self.device).sum().item()
            self.say(f"probe: {eight}, {torch.cuda.get_device_name(self.device)}")
        else:
            BY_NAME[name].run(job)
        if job.cuda:
            self.say(f"{name}: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB at most")

    def interrupt(self, number: int, frame: object) -> None:
        """Told to end: take all processes along."""
        for process in (self.now, *self.beside.values()):
            if process is not None:
                stop(process)
        self.say(f"road: ended by signal {number}")
        self.results.publish()
        raise SystemExit(128 + number)

    def finish(self) -> None:
        """Wait for gates while there is time; end whoever is still beside."""
        for name, process in self.beside.items():
            finished = os.waitpid(process, os.WNOHANG)[0]
            while not finished and not name.startswith("warm") and self.left() > 10:
                time.sleep(0.1)
                finished = os.waitpid(process, os.WNOHANG)[0]
            if not finished:
                self.say(f"{name}: ended, still running")
                stop(process)
        self.gather_gates()
        self.say(f"road: {time.monotonic() - STARTED:.0f} s in all")
        self.results.publish()

    def gather_gates(self) -> None:
        for path in sorted(self.work.glob("gate-*.json")):
            for text, passed in json.loads(path.read_text())["gates"].items():
                self.say(f"{'pass' if passed else 'FAIL'}  {path.stem}: {text}")

    def is_done(self, name: str) -> bool:
        return (self.work / f"{name}.done").exists()

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def say(self, text: str) -> None:
        say(self.work, text)


def stop(process: int) -> None:
    """End a stage and all that it started; each leads a process group of its own."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where results are copied to, in eight files")
    parser.add_argument(
        "--work", type=Path, help="where all stages keep what they need to go on; OUT-work if not given"
    )
    parser.add_argument("--device", help="cuda or cpu; the best there is by default")
    parser.add_argument("--minutes", type=float, required=True, help="for everything")
    parser.add_argument("--scale", choices=SCALES, help="gpu on CUDA, cpu elsewhere, if not given")
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--first", choices=BY_NAME, help="begin with this stage")
    parser.add_argument("--last", choices=BY_NAME, help="end with this stage")
    parser.add_argument("--without", help="stages to leave out, with commas between")
    parser.add_argument("--again", help="stages that go on although they are done")
    parser.add_argument("--restore", type=Path, help="--out of an earlier call, to go on from")
    parser.add_argument(
        "--isolate", choices=("fork", "spawn"), default="fork", help="how a stage gets its process"
    )
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.work = options.work or options.out.with_name(options.out.name + "-work")
    return options


def main() -> None:
    options = parse()
    for folder in (options.out, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    if options.only:
        Road(options, begin=False).inside(options.only, options.seconds)
        return
    if options.restore:
        restore(options.restore, options.work)
    road = Road(options)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, road.interrupt)
    road.run()


if __name__ == "__main__":
    main()
