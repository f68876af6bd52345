"""Ranks that die, stop or are interrupted: torchrun starts them anew, or the others end with one line.

The toy run of two ranks, over gloo. All slow: every case starts four processes and more.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from toy_training import assert_equal, contents, metrics

from sfpp_cli.core.checkpoint import saved_steps

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
WORKER = TESTS / "elastic_worker.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
Ended = tuple[int, str]


def start(arguments: list[str], **variables: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **variables}
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str], seconds: float = 300) -> Ended:
    """Exit code and stderr. Killed if it takes too long, which a code of -9 tells."""
    try:
        _, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        _, err = process.communicate()
    return process.returncode, err


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    code, err = end(start([*TORCHRUN, "2", "--standalone", str(WORKER), str(run)]))
    assert code == 0, err
    return run


def check_same(run: Path, other: Path) -> None:
    assert metrics(run) == metrics(other)
    for step in (8, 12):
        assert_equal(contents(run, step), contents(other, step))
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in other.iterdir())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_started_anew(rank: int, undisturbed: Path, tmp_path: Path) -> None:
    """At a random step; the run ends with the bits of one that nothing disturbed."""
    step = random.randrange(12)
    run = tmp_path / "run"
    strike = [str(run), str(step), str(rank), str(int(signal.SIGKILL))]
    code, err = end(start([*TORCHRUN, "2", "--standalone", "--max-restarts", "3", str(WORKER), *strike]))
    assert code == 0, (step, err)
    assert (tmp_path / "struck").exists()
    check_same(run, undisturbed)


def test_two_nodes_start_their_ranks_anew(undisturbed: Path, tmp_path: Path) -> None:
    """Two agents of a rank each, on the loopback address."""
    step = random.randrange(12)
    run = tmp_path / "run"
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "toy"]
    strike = [str(run), str(step), "1", str(int(signal.SIGKILL))]
    command = [*TORCHRUN, "1", "--nnodes", "2", "--max-restarts", "3", *meeting, str(WORKER), *strike]
    agents = [start(command) for _ in range(2)]
    ends = [end(agent) for agent in agents]
    assert [code for code, _ in ends] == [0, 0], (step, ends)
    check_same(run, undisturbed)


def by_hand(run: Path, step: int, rank: int, number: int, timeout: float) -> list[subprocess.Popen[str]]:
    """Two ranks without an agent, one of which gets a signal."""
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    arguments = [sys.executable, str(WORKER), str(run), *map(str, (step, rank, number, timeout))]
    return [start(arguments, RANK=str(rank), **variables) for rank in range(2)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGINT], ids=lambda n: n.name)
def test_the_others_end_with_a_line_that_names_the_missing_one(number: int, tmp_path: Path) -> None:
    """Within the timeout: here six seconds, and five for the others to notice.

    At step 10, when the checkpoint of step 8 may be lost with the rank, and that of step 4 is whole.
    """
    first, second = by_hand(tmp_path / "run", 10, 1, number, 0.1)
    code, err = end(first, 120)
    assert code == 2, err
    told = [line for line in err.splitlines() if "does not answer" in line]
    assert told == ["rank 0: rank 1 does not answer at step 10"], err
    assert not re.search("Traceback", err)
    second.kill()
    second.communicate()
    assert saved_steps(tmp_path / "run")
