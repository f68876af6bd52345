"""The picture of a run: which curves it reads, what it draws of them, what it says of broken files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from sfpp_cli.errors import UserError
from sfpp_cli.figures import COLORS, COLUMNS, DPI, PANEL, style_axes
from sfpp_cli.training.curves import plot_run, read_series, running_median

EVERYTHING = {
    "loss": 0.5,
    "critic_loss": 0.2,
    "grad_norm": 3.0,
    "critic_grad_norm": 0.7,
    "ratio": 5,
    "step_s": 1.25,
    "critic_update_s": 0.5,
    "lr": 1e-4,
    "samples": 8.0,
    "peak_mb": 900.0,
    "preview_luma": 0.4,
    "preview_saturation": 0.3,
    "preview_clipped": 0.0,
    "preview_motion": 0.01,
}
"""Fourteen figures, eight panels, and one figure that only counts."""


def log(run: Path, records: Iterable[Mapping[str, object]], tail: str = "") -> Path:
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return run


def drawn(run: Path) -> np.ndarray:
    path = plot_run(run)
    assert path == run / "curves.png"
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def inked(picture: np.ndarray, color: str) -> int:
    """Pixels of exactly this colour."""
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((picture == wanted).all(-1).sum())


def panels(picture: np.ndarray) -> tuple[int, int]:
    """Rows and columns that the picture's size makes room for."""
    return round(picture.shape[0] / (PANEL[1] * DPI)), round(picture.shape[1] / (PANEL[0] * DPI))


def test_every_family_of_figures_has_a_panel(tmp_path: Path) -> None:
    one = [{"step": step, "loss": 1 / step} for step in range(1, 60)]
    assert panels(drawn(log(tmp_path, one))) == (1, 1)
    two = [{**record, "grad_norm": 2.0, "critic_grad_norm": 3.0} for record in one]
    assert panels(drawn(log(tmp_path, two))) == (1, 2)
    nine = [{**EVERYTHING, **record, "kl": -2.0} for record in one]
    assert panels(drawn(log(tmp_path, nine))) == (3, COLUMNS)


def test_a_panel_has_a_colour_for_each_of_its_curves(tmp_path: Path) -> None:
    records = [{"step": step, "loss": 1.0} for step in range(1, 60)]
    alone = drawn(log(tmp_path, records))
    assert inked(alone, COLORS[0]) > 100
    assert inked(alone, COLORS[1]) == 0
    both = drawn(log(tmp_path, [{**record, "critic_loss": 2.0} for record in records]))
    assert inked(both, COLORS[1]) > 100


def test_a_curve_is_where_its_values_are(tmp_path: Path) -> None:
    """Rising values are drawn rising: the curve's pixels go up the picture from left to right."""
    picture = drawn(log(tmp_path, [{"step": step, "kl": step} for step in range(1, 60)]))
    wanted = [int(COLORS[0][i : i + 2], 16) for i in (1, 3, 5)]
    rows, columns = np.nonzero((picture == wanted).all(-1))
    assert np.corrcoef(columns, rows)[0, 1] < -0.99


def test_noise_is_faint_and_its_median_is_not(tmp_path: Path) -> None:
    """One wild step among many leaves the strong line where it was."""
    calm = [{"step": step, "peak_mb": 100.0} for step in range(1, 200)]
    wild = [{**record, "peak_mb": 200.0} if record["step"] == 100 else record for record in calm]
    strong = [inked(drawn(log(tmp_path, records)), COLORS[0]) for records in (calm, wild)]
    assert strong[0] == pytest.approx(strong[1], rel=0.02)


def test_digits_of_an_axis_are_of_one_size() -> None:
    """Also on a logarithmic one of less than a decade, which numbers its smaller marks too."""
    axes = Figure().add_subplot()
    axes.plot([1, 2], [0.3, 0.7])
    axes.set_yscale("log")
    style_axes(axes, "title", "step", "unit")
    axes.figure.draw_without_rendering()
    shown = [*axes.yaxis.get_ticklabels(which="both"), *axes.xaxis.get_ticklabels()]
    assert len({text.get_fontsize() for text in shown}) == 1
    assert any(text.get_text() for text in axes.yaxis.get_ticklabels(minor=True))


@pytest.mark.parametrize("value", [1e308, -1e308, 1e16])
def test_what_no_axis_can_number(tmp_path: Path, value: float) -> None:
    """A value is left out like one that is not finite; a step is damage."""
    records = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": value}]
    assert read_series(log(tmp_path, records) / "metrics.jsonl") == {"loss": ([1], [1.0])}
    with pytest.raises(UserError, match="line 1: no record of a step"):
        plot_run(log(tmp_path, [{"step": value, "loss": 1.0}]))


def test_more_figures_than_a_picture_has_room_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds 61 figures, and at most 60 can be drawn"):
        plot_run(log(tmp_path, [{"step": 1, **{f"figure {number}": 1.0 for number in range(61)}}]))


def test_figures_keep_their_own_steps(tmp_path: Path) -> None:
    records = [
        {"step": 1, "loss": 1.5, "note": "first", "resumed": True},
        {"step": 2, "loss": float("nan"), "preview_luma": 0.25},
        {"step": 3, "loss": 0.5, "ratio": 5},
    ]
    series = read_series(log(tmp_path, records) / "metrics.jsonl")
    assert series == {"loss": ([1, 3], [1.5, 0.5]), "preview_luma": ([2], [0.25]), "ratio": ([3], [5])}


def test_the_line_being_written_is_ignored(tmp_path: Path) -> None:
    records = [{"step": step, "loss": 1.0} for step in (1, 2)]
    whole = drawn(log(tmp_path, records))
    assert np.array_equal(drawn(log(tmp_path, records, '{"step": 3, "lo')), whole)
    for tail in ('{"step": 3, "loss": 9.0}', '{"step": 3, "loss": "\ufffd', "{"):
        assert read_series(log(tmp_path, records, tail) / "metrics.jsonl") == {"loss": ([1, 2], [1.0, 1.0])}


@pytest.mark.parametrize("content", ["", '{"step": 1, "loss": 1.0', '{"step": 1}\n'])
def test_without_a_whole_line_there_is_nothing_to_draw(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match="no whole line of figures"):
        plot_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_without_a_metrics_file_the_run_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"metrics\.jsonl cannot be read \(No such file.*name the folder of a run"
    ):
        plot_run(tmp_path / "nowhere")


@pytest.mark.parametrize("line", ["{]", "[1]", "3", '{"loss": 1.0}', '{"step": null}', ""])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": 1.0}}\n{line}\n')
    with pytest.raises(UserError, match="line 2: no record of a step"):
        plot_run(tmp_path)


def test_the_picture_is_replaced_and_nothing_else_left(tmp_path: Path) -> None:
    (tmp_path / "curves.png").write_bytes(b"an older one")
    drawn(log(tmp_path, [{"step": 1, "loss": 1.0}]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_only_who_plots_imports_matplotlib_and_nobody_pyplot(tmp_path: Path) -> None:
    log(tmp_path, [{"step": 1, "loss": 1.0}])
    code = f"""
import sys, pathlib, sfpp_cli.app
assert "matplotlib" not in sys.modules
import sfpp_cli.training.curves
sfpp_cli.training.curves.plot_run(pathlib.Path({str(tmp_path)!r}))
assert not {{"matplotlib.pyplot", "torch"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_running_median_follows_steps_and_not_spikes() -> None:
    assert running_median([3.0, 1.0, 2.0]) == [3.0, 1.0, 2.0]
    spike = [1.0] * 50 + [100.0] + [1.0] * 50
    assert running_median(spike) == [1.0] * 101
    jump = [0.0] * 100 + [1.0] * 100
    assert running_median(jump) == jump
    ramp = [float(i) for i in range(400)]
    assert running_median(ramp)[10:-10] == ramp[10:-10]
