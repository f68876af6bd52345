"""Measure the light and colour that the landscape keeps to, for its reader to hold videos against.

    python examples/landscape/measure_bands.py

To be run again whenever the world's picture changes; a test tells. It takes a minute of one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import sfpp_cli.data.landscape
from sfpp_cli.data.landscape.features import measure_bands

TABLE = Path(sfpp_cli.data.landscape.__file__).parent / "bands.json"
SEED, SCENES, WIDTH = 1_000_003, 256, 107
"""The width is that of 160x96 pictures at the reference height."""


def main() -> None:
    options = parse()
    bands = measure_bands(SEED, options.scenes, WIDTH)
    table = {
        name: [[round(value, 4) for value in row] for row in rows.tolist()]
        for name, rows in vars(bands).items()
    }
    options.out.write_text(json.dumps(table).replace("], ", "],\n") + "\n")
    print(f"{options.out}: {options.scenes} scenes of each of {len(bands.low)} times and lands")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=SCENES, help="of each time and land")
    parser.add_argument("--out", type=Path, default=TABLE)
    return parser.parse_args()


if __name__ == "__main__":
    main()
