"""Which videos are measured, in which order."""

from __future__ import annotations

from pathlib import Path

from sfpp_cli.evaluation.targets import find_targets


def test_prompts_go_to_the_videos_of_their_numbers(tmp_path: Path) -> None:
    """Names that other programs write, without leading zeros."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"prompt number {number}\n" for number in range(12)))
    (tmp_path / "videos").mkdir()
    for number in range(12):
        (tmp_path / "videos" / f"{number}-0_ema.mp4").touch()
    targets, failed = find_targets([tmp_path / "videos"], None, prompts, compare=False)
    assert not failed
    assert [(target.path.name, target.prompt) for target in targets] == [
        (f"{number}-0_ema.mp4", f"prompt number {number}") for number in range(12)
    ]
