"""Several videos at several moments, all moving at once: a GIF with a row for each video.

    python examples/experiments/grid.py ode.mp4 self-forcing.mp4 pp.mp4 \\
        --names ODE Self-Forcing Self-Forcing++ -o grid.gif
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sfpp_cli.video import Frames
from sfpp_cli.video.reader import probe, read_frames
from sfpp_cli.video.writer import VideoWriter

MARGIN, LINE = 4, 14
"""Pixels between pictures, and of a line of text."""


def main() -> None:
    options = parse()
    names = options.names or [video.stem for video in options.videos]
    draw(options.videos, names, options.out, options.moments, options.seconds, options.every, options.tile)


def draw(
    videos: Sequence[Path],
    names: Sequence[str],
    out: Path,
    moments: int = 5,
    seconds: float = 2.0,
    every: int = 2,
    tile: int = 96,
    end: float | None = None,
) -> None:
    """Write the grid: a row for each video, `moments` stretches of so many seconds, every so many frames; of
    no more than the first `end` seconds."""
    infos = [probe(video) for video in videos]
    fps, shortest = infos[0].fps, min(info.frames for info in infos)
    if end is not None:
        shortest = min(shortest, round(end * fps))
    length = round(seconds * fps)
    starts = [round(share * (shortest - length)) for share in np.linspace(0, 1, moments)]
    cells = [[cut(video, start, length)[::every] for start in starts] for video in videos]
    heads = [f"{start / fps:.0f} s" for start in starts]
    pictures = [
        lay_out([[cell[i] for cell in row] for row in cells], names, heads, tile)
        for i in range(len(cells[0][0]))
    ]
    height, width = pictures[0].shape[:2]
    with VideoWriter(out, (width, height), fps / every) as writer:
        writer.write(np.stack(pictures))


def cut(video: Path, start: int, length: int) -> Frames:
    """`length` frames [T, H, W, 3] from frame `start` on."""
    return np.stack(list(islice(read_frames(video), start, start + length)))


def lay_out(rows: list[list[Frames]], names: Sequence[str], heads: list[str], tile: int) -> Frames:
    """One picture [H, W, 3] of all cells, `tile` pixels wide, named by row and column."""
    height, width = rows[0][0].shape[:2]
    high = round(tile * height / width)
    across = tile + MARGIN
    down = high + MARGIN + LINE
    sheet = Image.new("RGB", (len(heads) * across + MARGIN, LINE + len(rows) * down + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        pen.text((MARGIN + column * across, 1), head, fill="black")
    for place, (name, row) in enumerate(zip(names, rows, strict=True)):
        top = LINE + place * down
        pen.text((MARGIN, top + 1), name, fill="black")
        for column, frame in enumerate(row):
            picture = Image.fromarray(frame).resize((tile, high), Image.Resampling.BICUBIC)
            sheet.paste(picture, (MARGIN + column * across, top + LINE))
    return np.asarray(sheet)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--names", nargs="+", help="of the rows (default: the files' names)")
    parser.add_argument(
        "--moments", type=int, default=5, help="columns, evenly spaced from the beginning to the end"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each plays")
    parser.add_argument("--every", type=int, default=2, help="keep every so many frames")
    parser.add_argument("--tile", type=int, default=96, help="pixels of a picture's width")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    if options.names and len(options.names) != len(options.videos):
        parser.error(f"{len(options.names)} names for {len(options.videos)} videos")
    return options


if __name__ == "__main__":
    main()
