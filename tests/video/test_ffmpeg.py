"""ffmpeg's troubles: it dies, it is missing, it gets no Ctrl-C."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from clips import save, shim, smooth

from sfpp_cli.errors import UserError
from sfpp_cli.video.writer import VideoWriter


def test_ffmpeg_is_out_of_reach_of_ctrl_c(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", (64, 48), 16) as writer:
        writer.write(smooth(2))
        pid = writer._sink._process.pid
        assert os.getsid(pid) == pid != os.getsid(0)


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_dying_ffmpeg_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shim(tmp_path, monkeypatch, "yes '[x264 @ 0x1] first cause' | head -n 20000 >&2; exit 3")
    with pytest.raises(UserError, match=r"cannot be written \(first cause\)"):
        save(tmp_path / "a.mp4", smooth(60))
    shim(tmp_path, monkeypatch, "kill -9 $$")
    with pytest.raises(UserError, match=r"\(ffmpeg stopped with code -9\)"):
        save(tmp_path / "a.mp4", smooth(60))
    assert [file.name for file in tmp_path.iterdir()] == ["ffmpeg.sh"]


def test_missing_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="no ffmpeg was found"):
        VideoWriter(tmp_path / "a.mp4", (64, 48), 16)
    assert list(tmp_path.iterdir()) == []
