"""Faults of the machine while `sfpp generate` works: kills, pairs, full disks, damage, signals, modes.

    python tests/faults/generate.py [--tree DIR] [--every N] [KIND ...]

prints, by kind of fault, how many cases there were and how many went wrong, each with its reason. `--tree` is
another checkout to try the same on, such as an older one; `--every 5` takes a fifth of the cases.

A case is a process forked from this one, in which everything is imported and the (tiny) model is loaded, so
that it takes a fraction of a second. A kill comes at the N-th touch of a file, counted by Python's audit
events: before each open, rename, removal, new folder, lock and start of a program.

Cases that went wrong, of those that were tried on a busy machine of two cores, before there were owners,
digests and a handler of signals (fa513ef), and after; the same strides, but the later one touches more files:

| kind | before | after |
|---|---|---|
| kills: at a touch, then resumed | 21 of 44 | 0 of 123 |
| restarts: at a touch, then anew or as another video | 15 of 32 | 0 of 34 |
| pairs: two processes at one video or batch | 10 of 15 | 0 of 15 |
| full_disks: no file beyond a limit | 0 of 9 | 0 of 9 |
| damage: an interrupted video's files | 7 of 15 | 0 of 15 |
| signals: by the clock, once and twice | 10 of 16 | 0 of 16 |
| modes: under three umasks | 0 of 6 | 0 of 6 |
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import runpy
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SINGLE = ("generate", "a red circle", "--frames", "33", "-o", "v.mp4", "--sheet", "--save-latents")
BATCH = ("generate", "--prompts", "../p.txt", "--frames", "21", "--out-dir", ".")
PROMPTS = ("a red circle", "a blue square", "a red circle", "the circle moving left", "a square")
TOUCHES = ("open", "os.", "shutil.", "fcntl.", "subprocess.Popen")


@dataclass
class Answer:
    """What a process said."""

    code: int
    out: str
    err: str


Process = tuple[int, int, int]
"""Its id, and where its output and errors are to be read."""


class Bench:
    """A folder for cases, and processes in it."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root = root
        self.model = model
        self.number = 0
        (root / "p.txt").write_text("\n".join(PROMPTS) + "\n")
        self.single = self.reference(SINGLE)
        self.batch = self.reference(BATCH)

    def reference(self, command: tuple[str, ...]) -> dict[str, bytes]:
        folder = self.folder()
        answer = self.run(command, folder)
        assert answer.code == 0, answer.err
        return contents(folder)

    def folder(self) -> Path:
        """A new one."""
        self.number += 1
        folder = self.root / str(self.number)
        folder.mkdir()
        return folder

    def run(self, command: tuple[str, ...], folder: Path, before: Callable[[], None] | None = None) -> Answer:
        return self.end(self.start(command, folder, before))

    def start(
        self, command: tuple[str, ...], folder: Path, before: Callable[[], None] | None = None
    ) -> Process:
        """A process at work, when it has begun; `before` is called in it first."""
        out, err, ready = (os.pipe() for _ in range(3))  # pipes, which no limit of files concerns
        pid = os.fork()
        if pid == 0:
            os.dup2(out[1], 1)
            os.dup2(err[1], 2)
            _be_a_command((*command, "--model", str(self.model)), folder, ready, before)
        for _, end in (out, err, ready):
            os.close(end)
        os.read(ready[0], 1)
        os.close(ready[0])
        return pid, out[0], err[0]

    def end(self, process: Process) -> Answer:
        pid, out, err = process
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for stream in (out, err):
            # What a killed one's ffmpeg holds open does not end.
            os.set_blocking(stream, False)
            with suppress(BlockingIOError), open(stream, "rb", buffering=0) as file:
                texts.append((file.read(65536) or b"").decode())
        return Answer(code, *texts)


def _be_a_command(
    command: tuple[str, ...], folder: Path, ready: tuple[int, int], before: Callable[[], None] | None
) -> None:
    code: Any = 1
    try:
        os.chdir(folder)
        sys.argv = ["sfpp", *command]
        if before is not None:
            before()
        os.close(ready[0])
        os.close(ready[1])
        runpy.run_module("sfpp_cli", run_name="__main__")
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file and folder; of JSON files only what does not depend on the clock and the way."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = b""
        elif path.suffix == ".json" and not name.startswith("."):
            kept = json.loads(path.read_text())
            found[name] = json.dumps({key: kept.get(key) for key in ("video", "key", "seed")}).encode()
        else:
            found[name] = path.read_bytes()
    return found


def compared(folder: Path, expected: dict[str, bytes]) -> str | None:
    """What is wrong with a folder that should be as expected."""
    found = contents(folder)
    if more := sorted(found.keys() - expected.keys()):
        return f"left over: {more[0]}"
    if less := sorted(expected.keys() - found.keys()):
        return f"missing: {less[0]}"
    wrong = [name for name in found if found[name] != expected[name]]
    return f"wrong: {wrong[0]}" if wrong else None


def told(answer: Answer, code: int) -> str | None:
    """What is wrong with how a process that fails as it should said so."""
    if answer.code != code:
        return f"exit code {answer.code}, not {code}: {answer.err.strip()[-120:]}"
    errors = [line for line in answer.err.splitlines() if line.startswith("error:")]
    if "Traceback" in answer.err or len(errors) != 1:
        return f"{len(errors)} lines of error: {answer.err.strip()[-120:]}"
    return None


def done(answer: Answer) -> str | None:
    return None if answer.code == 0 else f"exit code {answer.code}: {answer.err.strip()[-160:]}"


def killing_at(touch: int, record: Path | None = None) -> Callable[[], None]:
    """Installs a hook that kills the process before its `touch`-th touch of a file of its folder."""

    def install() -> None:
        here = os.getcwd()
        seen = [] if record is None else [os.open(record, os.O_WRONLY | os.O_CREAT)]
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if not event.startswith(TOUCHES) or event in ("os.listdir", "os.scandir", "os.putenv"):
                return
            path = arguments[0] if arguments else None
            named = isinstance(path, str | bytes | os.PathLike)
            inside = named and (not os.path.isabs(path) or os.fsdecode(path).startswith(here))
            if inside or event.startswith("fcntl.") or event == "subprocess.Popen":
                count += 1
                for file in seen:
                    os.write(file, f"{event} {arguments}\n"[:200].encode())
                if count == touch:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return install


def touches(bench: Bench, command: tuple[str, ...]) -> int:
    """How many touches an undisturbed run makes."""
    record = bench.root / f"touches-{bench.number}"
    assert bench.run(command, bench.folder(), killing_at(0, record)).code == 0
    return record.read_text().count("\n")


Case = tuple[str, Callable[[], "str | None"]]


def kills(bench: Bench) -> Iterator[Case]:
    """Killed at a touch, then resumed."""

    def case(command: tuple[str, ...], expected: dict[str, bytes], touch: int) -> str | None:
        folder = bench.folder()
        bench.run(command, folder, killing_at(touch))
        return done(bench.run((*command, "--resume"), folder)) or compared(folder, expected)

    for command, expected in ((SINGLE, bench.single), (BATCH, bench.batch)):
        for touch in range(1, touches(bench, command) + 1):
            yield f"{command[2]} {touch}", lambda c=command, e=expected, t=touch: case(c, e, t)


def restarts(bench: Bench) -> Iterator[Case]:
    """Killed at a touch, then run again from the beginning, or as another kind of video."""

    def again(touch: int) -> str | None:
        folder = bench.folder()
        bench.run(SINGLE, folder, killing_at(touch))
        return done(bench.run((*SINGLE, "--overwrite"), folder)) or compared(folder, bench.single)

    def otherwise(touch: int) -> str | None:
        folder = bench.folder()
        bench.run(SINGLE, folder, killing_at(touch))
        other = ("generate", "a blue square", "--frames", "5", "-o", "v.gif", "--overwrite")
        hidden = [name for name in contents(folder) if name.startswith(".")]
        wrong = done(bench.run(other, folder))
        hidden = [name for name in contents(folder) if name.startswith(".")]
        return wrong or (f"left over: {hidden[0]}" if hidden else None)

    for touch in range(1, touches(bench, SINGLE) + 1):
        yield f"again {touch}", lambda t=touch: again(t)
        yield f"otherwise {touch}", lambda t=touch: otherwise(t)


def pairs(bench: Bench) -> Iterator[Case]:
    """Two processes at the same thing, begun so many seconds apart."""

    def single(pause: float, more: tuple[str, ...]) -> str | None:
        folder = bench.folder()
        first = bench.start((*SINGLE, *more), folder)
        time.sleep(pause)
        answers = [bench.run((*SINGLE, *more), folder), bench.end(first)]
        failed = [answer for answer in answers if answer.code != 0]
        if len(failed) > 1 or (failed and (wrong := told(failed[0], 2))):
            return wrong if len(failed) == 1 else f"both failed: {failed[0].err.strip()[-120:]}"
        return compared(folder, bench.single)

    def batch(pause: float, more: tuple[str, ...], kill: bool) -> str | None:
        folder = bench.folder()
        first = bench.start((*BATCH, *more), folder)
        time.sleep(pause)
        second = bench.start((*BATCH, *more), folder)
        if kill:
            time.sleep(random.random())
            os.kill(first[0], signal.SIGKILL)
        answers = [bench.end(first), bench.end(second)]
        if not kill and (wrong := done(answers[0])):
            return wrong
        listed = sorted(answers[1].out.split())
        videos = sorted(name for name in bench.batch if name.endswith(".mp4"))
        return (
            done(answers[1])
            or compared(folder, bench.batch)
            or (None if listed == videos else "not all listed")
        )

    for pause in (0, 0.05, 0.2, 0.5, 1):
        for more in ((), ("--resume",)):
            yield f"single {pause} {more}", lambda p=pause, m=more: single(p, m)
            for kill in (False, True):
                yield f"batch {pause} {more} {kill}", lambda p=pause, m=more, k=kill: batch(p, m, k)


def full_disks(bench: Bench) -> Iterator[Case]:
    """No file may grow beyond a limit; then there is room again."""

    def case(command: tuple[str, ...], expected: dict[str, bytes], limit: int) -> str | None:
        folder = bench.folder()

        def small() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        first = bench.run(command, folder, small)
        if first.code == 0:
            return compared(folder, expected)
        return told(first, 2) or done(bench.run((*command, "--resume"), folder)) or compared(folder, expected)

    png = ("generate", "a red circle", "--frames", "33", "-o", "w.png", "--sheet", "--save-latents")
    pictures = bench.reference(png)
    for command, expected in ((SINGLE, bench.single), (png, pictures)):
        for limit in (0, 64, 512, 1024, 1500, 2000, 2500, 3000, 4000, 6000, 8000, 12000, 20000):
            yield f"{command[5]} {limit}", lambda c=command, e=expected, n=limit: case(c, e, n)


def damage(bench: Bench) -> Iterator[Case]:
    """Files of an interrupted video are changed, cut or gone."""

    def case(name: str, how: Callable[[Path], object]) -> str | None:
        folder = bench.folder()
        process = bench.start(SINGLE, folder)
        while not any(path.stat().st_size > 2000 for path in folder.glob(".sfpp-*/latents.f32")):
            time.sleep(0.005)
            if list(folder.glob("v.json")):
                break  # it was faster
        os.kill(process[0], signal.SIGKILL)
        bench.end(process)
        for file in folder.glob(f".sfpp-*/{name}"):
            how(file)
        return done(bench.run((*SINGLE, "--resume"), folder)) or compared(folder, bench.single)

    def flip(place: float) -> Callable[[Path], object]:
        def change(file: Path) -> None:
            data = bytearray(file.read_bytes())
            data[int(place * (len(data) - 1))] ^= 64
            file.write_bytes(data)

        return change

    for place in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1):
        yield f"flip {place}", lambda p=place: case("latents.f32", flip(p))
    for size in (0, 1, 100, 1000, 1999):
        yield f"cut {size}", lambda n=size: case("latents.f32", lambda file: os.truncate(file, n))
    for name in ("latents.f32", "request.json"):
        yield f"gone {name}", lambda n=name: case(n, Path.unlink)
    yield "no JSON", lambda: case("request.json", lambda file: file.write_text("{"))


def signals(bench: Bench) -> Iterator[Case]:
    """SIGINT and SIGTERM by the clock, once and twice."""

    def case(number: signal.Signals, pause: float, again: float | None) -> str | None:
        folder = bench.folder()
        process = bench.start(SINGLE, folder)
        time.sleep(pause)
        os.kill(process[0], number)
        if again is not None:
            time.sleep(again)
            os.kill(process[0], number)
        answer = bench.end(process)
        if answer.code != 0 and (wrong := told(answer, 128 + number)):
            return wrong
        return done(bench.run((*SINGLE, "--resume"), folder)) or compared(folder, bench.single)

    for number in (signal.SIGINT, signal.SIGTERM):
        for again in (None, 0.0, 0.3):
            for step in range(8):
                pause = 0.05 + 0.15 * step
                yield f"{number.name} {pause:.2f} {again}", lambda n=number, p=pause, a=again: case(n, p, a)


def modes(bench: Bench) -> Iterator[Case]:
    """Files are as readable as the umask lets them be."""

    def case(command: tuple[str, ...], umask: int) -> str | None:
        folder = bench.folder()
        answer = bench.run(command, folder, lambda: os.umask(umask) and None)
        for path in folder.rglob("*"):
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode != (0o777 if path.is_dir() else 0o666) & ~umask:
                return f"{path.name} is {mode:o}"
        return done(answer)

    png = ("generate", "a red circle", "--frames", "9", "-o", "w.png", "--sheet", "--save-latents")
    for command in (SINGLE, png):
        for umask in (0o022, 0o002, 0o077):
            yield f"{command[5]} {umask:o}", lambda c=command, u=umask: case(c, u)


KINDS = {kind.__name__: kind for kind in (kills, restarts, pairs, full_disks, damage, signals, modes)}


def load_once(model: Path) -> None:
    """Import everything and load the model, so that forked processes need not."""
    import torch

    import sfpp_cli.app
    import sfpp_cli.generation.batch  # noqa: F401

    torch.set_num_threads(1)
    from sfpp_cli.devices import pick_device
    from sfpp_cli.generation.generator import Generator
    from sfpp_cli.generation.model_options import ModelOptions
    from sfpp_cli.models.bundle import Bundle
    from sfpp_cli.progress import Silent

    options = ModelOptions(device=pick_device("cpu"), dtype=torch.float32)
    loaded = Generator.load(Bundle(str(model)), options, PROMPTS, Silent())
    Generator.load = classmethod(lambda cls, *arguments, **named: loaded)  # type: ignore[method-assign]


def campaign(kinds: list[str], every: int, root: Path, model: Path) -> dict[str, tuple[int, list[str]]]:
    """By kind: the number of cases, and what went wrong in those that did."""
    load_once(model)
    bench = Bench(root, model)
    results: dict[str, tuple[int, list[str]]] = {}
    for kind in kinds:
        cases = list(KINDS[kind](bench))[::every]
        wrong = []
        for name, case in cases:
            if reason := case():
                wrong.append(f"{name}: {reason}")
                print(f"    {kind} {wrong[-1]}", flush=True)
        results[kind] = (len(cases), wrong)
        print(f"{kind}: {len(wrong)} of {len(cases)} went wrong", flush=True)
    print("", "| kind | cases | went wrong |", "|---|---|---|", sep="\n")
    for kind, (count, wrong) in results.items():
        print(f"| {kind} | {count} | {len(wrong)} |")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[2])
    parser.add_argument("--model", type=Path, required=True, help="a model of toy size")
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    sys.path.insert(0, str(options.tree))
    with tempfile.TemporaryDirectory() as root:
        campaign(options.kinds or list(KINDS), options.every, Path(root), options.model.resolve())


if __name__ == "__main__":
    main()
