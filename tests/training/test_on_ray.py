"""Runs as tasks of a Ray cluster: the runs that are made here, whatever is killed."""

import json
import os
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from two_nodes import CANNOT

from dne_lab.core.errors import LabError
from dne_lab.training.engines import Needs
from dne_lab.training.on_ray import Ray

HERE = Path(__file__).parent
ALONE = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]  # Ray binds every network that there is


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened on two nodes (`two_nodes`)."""
    if find_spec("ray") is None:
        pytest.skip('needs ray: pip install "dne-lab[ray]"')
    if not shutil.which("unshare") or not shutil.which("ip") or subprocess.run([*ALONE, "true"]).returncode:
        pytest.skip("needs unshare and ip, and to be allowed to make network and process namespaces (root)")
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")])
    variables = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*ALONE, sys.executable, "-W", "ignore", HERE / "two_nodes.py", tmp_path_factory.mktemp("nodes")],
        capture_output=True, text=True, env={**os.environ, **variables}, timeout=400, start_new_session=True,
    )  # fmt: skip
    if done.returncode == CANNOT:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found, indent=1))
    return found


def test_a_grid_on_two_nodes_is_the_grid_here_whatever_is_killed(told: dict[str, Any]) -> None:
    assert told["nodes"] == 2 and told["statuses"] == [130, -9]  # of the commands that were stopped and killed
    assert list(told["seconds"])[2:5] == ["worker", "worker again", "node"]
    assert told["same"] == {"tiny-other": True, "tiny": True}
    assert told["shared"] == ["tiny-other"] and told["threads"] == [1]
    assert told["resumed"]["tiny"] >= 4  # after both commands and the worker, and behind its first task
    assert told["resumed"][told["moved"]] >= (5 if told["moved"] == "tiny" else 1)  # after the node


def test_without_ray_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LabError, match=r'ray, which is not installed here: pip install "dne-lab\[ray\]"'):
        Ray(Needs())


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "nowhere.invalid:6379"])
def test_a_cluster_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    pytest.importorskip("ray", reason='needs ray: pip install "dne-lab[ray]"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", address.format(port=free.getsockname()[1]))  # nobody listens there
        with pytest.raises(LabError, match=r"RAY_ADDRESS=.*: nobody answers there \(.*Name the head of a cluster"):
            Ray(Needs())


def test_what_ray_does_not_take_is_said() -> None:
    pytest.importorskip("ray", reason='needs ray: pip install "dne-lab[ray]"')
    with pytest.raises(LabError, match="--minutes limits a job of SLURM"):
        Ray(Needs(minutes=30))
    with pytest.raises(LabError, match="give amounts, such as big_nodes=1"):
        Ray(Needs(more=(("partition", "gpu"),)))
