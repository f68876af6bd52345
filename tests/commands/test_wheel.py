"""What `pip install` puts on a machine: the package with its data, and the embedded weights inside it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sfpp_cli import DEFAULT_MODEL, __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without the network, by the tool that pyproject.toml names."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def files(root: str, folder: str = ".") -> list[str]:
    """The files of a folder of the checkout, as paths from `root`."""
    paths = [path for path in (ROOT / root / folder).rglob("*") if path.is_file()]
    return [str(path.relative_to(ROOT / root)) for path in paths if "__pycache__" not in path.parts]


def test_a_wheel_holds_code_data_and_weights_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"sfpp-{__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"sfpp_cli/{name}" for name in (*files("sfpp_cli"), *files(".", "weights"))}
    settings = f"weights/{DEFAULT_MODEL}/sfpp.json"
    for needed in ("py.typed", settings, "evaluation/report/templates/report.css"):
        assert f"sfpp_cli/{needed}" in expected
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_an_installed_wheel_finds_its_weights_and_templates(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = f"from sfpp_cli.models.hub import resolve; print(resolve('{DEFAULT_MODEL}'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(done.stdout.strip()) == (tmp_path / "site/sfpp_cli/weights" / DEFAULT_MODEL).resolve()


@pytest.mark.slow
def test_a_wheel_works_away_from_the_source_tree(wheel: Path, tmp_path: Path) -> None:
    """What a new user does first, with nothing of the checkout in sight."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    recipe = (ROOT / "examples" / "wan-1.3b" / "self-forcing-pp.toml").read_text()
    (tmp_path / "recipe.toml").write_text(recipe)

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout

    assert Path(python("-c", "import sfpp_cli; print(sfpp_cli.__file__)").strip()).is_relative_to(site)
    sfpp = ("-m", "sfpp_cli")
    python(*sfpp, "generate", "--frames", "9", "-o", "v.mp4")
    python(*sfpp, "generate", "--frames", "9", "-o", "w.mp4", "--student", f"{DEFAULT_MODEL}:self-forcing")
    python(*sfpp, "evaluate", "v.mp4", "w.mp4", "--out", "report")
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000
    assert f"{DEFAULT_MODEL}:ode" in python(*sfpp, "weights", "list")
    assert "checkpoint" in python(*sfpp, "train", "recipe.toml", "--dry-run")
