"""Measure the embedded students on the captions kept from them, and make all that is shown of it.

    python examples/landscape/measure.py               # about two hours of two cores; goes on where stopped
    python examples/landscape/measure.py --quick --model FOLDER --shown FOLDER     # to see that it works

Every caption of test.txt, seed 0. Videos have 255 s, since the experiments go on with them; 100 s are shown.
`measured/` beside this file receives README.md (its tables), the rows, hero.gif (the first four captions of
the list), students.gif and strip.png (the first one), claim.png, and twenty contact sheets of 40 frames, the
first twenty captions.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parent / "experiments"
sys.path.append(str(EXPERIMENTS))

import grid  # noqa: E402 (the experiments measure the same way)
import memory  # noqa: E402
import run  # noqa: E402
from report import draw_claim, interval, markdown, shown  # noqa: E402
from study import FULL, MODEL, QUICK, Study  # noqa: E402

from sfpp_cli.files import atomic_write  # noqa: E402
from sfpp_cli.video.reader import probe, read_frames  # noqa: E402
from sfpp_cli.video.sheet import SheetSampler, contact_sheet  # noqa: E402

STUDENTS = {name: system for name, system in run.EMBEDDED.systems.items() if system != "world"}
FAILURES = {
    "palette": "captioned palette",
    "balloon": "captioned balloon",
    "over": "too light",
    "under": "too dark",
    "grey": "grey",
    "lost": "balloon lost",
    "stopped": "pan stopped",
    "repeated": "terrain repeated",
}
HEROES, SHEETS, FRAMES = 4, 20, 40
"""Captions of hero.gif, contact sheets, and frames of each."""
SECONDS = 100
"""Of a video that the pictures show."""
VAE = HERE / "made" / "vae.tar"
"""Where the road's VAE lies, with what its gate measured."""
FIRST_WORLD = EXPERIMENTS / "first-world" / "measured.jsonl.gz"
FIRST_SYSTEMS = {"ODE": "ode", "Self-Forcing": "sf@100", "Self-Forcing++": "pp@100"}
FIRST_DB = "33.1 dB"
FIRST_TOOK = "0.15"
"""What was measured of the first world, at its time; seconds on two idle cores."""


def main() -> None:
    options = parse()
    study = Study(options.out, QUICK if options.quick else FULL, options.model, options.road)
    took = wall_time(study)
    run.share_work(options, run.EMBEDDED.made)
    systems = {name: study.rows(system) for name, system in run.EMBEDDED.systems.items()}
    folder: Path = options.shown
    folder.mkdir(parents=True, exist_ok=True)
    for system in run.EMBEDDED.made:
        study.pack_system(system, folder)
    parts = [
        "# The embedded students, measured",
        "Written by `python examples/landscape/measure.py`. Means, and 95 % intervals over captions.",
        "![The first captions of the list](hero.gif)",
        shares(systems, sorted({round(study.shortened(end)) for end in run.EMBEDDED.ends})),
        "![The same as time goes on](claim.png)",
        failures(systems),
        "![The first caption, by each student](students.gif)",
        "## Against the first world",
        against_first(systems, study, took),
        "## All measures",
        run.compare(study, "embedded", run.EMBEDDED).partition("\n\n")[2],
        "![Filmstrip](strip.png)",
    ]
    atomic_write(folder / "README.md", "\n\n".join(parts) + "\n")
    shutil.copy(study.out / "results" / "embedded-strip.png", folder / "strip.png")
    draw_claim(systems, folder / "claim.png")
    draw_videos(study, folder)
    print(f"written to {folder}")


def shares(systems: Mapping[str, Any], ends: Sequence[int]) -> str:
    """The share in the world as time goes on."""
    lines = [
        [name, *(shown(interval(rows, f"good@{end}"), percent=True) for end in ends)]
        for name, rows in systems.items()
    ]
    return markdown(["in the world, %", *(f"to {end} s" for end in ends)], lines)


def failures(systems: Mapping[str, Any]) -> str:
    """What the last window that all have shows."""
    end = min(run.last_end(rows) for rows in systems.values())
    lines = [
        [name, *(shown(interval(rows, f"{measure}@{end}"), percent=True) for measure in FAILURES)]
        for name, rows in systems.items()
    ]
    return markdown([f"seconds {end - 5} to {end}, %", *FAILURES.values()], lines)


def against_first(systems: Mapping[str, Any], study: Study, took: float) -> str:
    """Markdown: the first world beside this one."""
    old: dict[str, list[Any]] = {name: [] for name in FIRST_SYSTEMS}
    for line in gzip.decompress(FIRST_WORLD.read_bytes()).decode().splitlines():
        row = json.loads(line)
        for name, system in FIRST_SYSTEMS.items():
            if row["system"] == system:
                old[name].append(row)
    settings = study.bundle.settings
    lines = [
        ["picture", "64x64, one shape", f"{settings.width}x{settings.height}, landscape with a balloon"],
        ["VAE at frames 400 to 480", FIRST_DB, f"{vae_psnr():.1f} dB"],
        ["seconds of wall time for one of video, 100 s", FIRST_TOOK, f"{took:.2f}"],
    ]
    for name in STUDENTS:
        for end in (5, 50, 100):
            both = [shown(interval(rows[name], f"good@{end}"), percent=True) for rows in (old, systems)]
            lines.append([f"{name}: in the world to {end} s, %", *both])
    return markdown(["", "first world (commit b211562)", "landscape"], lines)


def vae_psnr() -> float:
    """What the gate measured of the embedded VAE at frames 400 to 480, in dB."""
    with tarfile.open(VAE) as made:
        report = made.extractfile("gate-vae.json")
        assert report is not None, "a plain file"
        return float(json.load(report)["psnr"]["last 81"])


def wall_time(study: Study) -> float:
    """Seconds that one of video takes, measured once, before anything else runs."""
    kept = study.out / "wall-time.json"
    if not kept.exists():
        seconds = study.shortened(SECONDS)
        took = memory.generate(study.model, study.bundle.settings.context, seconds)[-1]
        kept.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(kept, took)
    return float(kept.read_text())


def draw_videos(study: Study, folder: Path) -> None:
    """The moving pictures, and the sheets of those who look at everything."""
    end = study.shortened(SECONDS)
    videos = [study.video(STUDENTS["Self-Forcing++"], prompt, 0) for prompt in study.prompts]
    grid.draw(videos[:HEROES], study.prompts[:HEROES], folder / "hero.gif", tile=168, end=end)
    first = [study.video(system, study.prompts[0], 0) for system in STUDENTS.values()]
    grid.draw(first, list(STUDENTS), folder / "students.gif", tile=168, end=end)
    for number, video in enumerate(videos[:SHEETS]):
        info = probe(video)
        sampler = SheetSampler(min(info.frames, round(end * info.fps)), FRAMES)
        for frame in read_frames(video):
            sampler.write(np.asarray(frame)[None])
        path = folder / "sheets" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        contact_sheet(sampler.frames, sampler.times(info.fps), path, columns=8, tile=112)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=MODEL, help="the embedded model, or a folder laid out as it is")
    parser.add_argument("--road", type=Path, help="work folder of all.py, for the minutes of training")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/experiments"), help="videos; the experiments' own"
    )
    parser.add_argument("--shown", type=Path, default=HERE / "measured", help="what is to be kept")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: cores)")
    parser.add_argument("--quick", action="store_true", help="tiny: to see that it works")
    options = parser.parse_args()
    options.hours = 1e6
    return options


if __name__ == "__main__":
    main()
