"""A user at work in a notebook: a real kernel, a cell that is interrupted in mid-epoch, and the cells after it."""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

jupyter_client = pytest.importorskip("jupyter_client")
pytest.importorskip("ipykernel")
ROOT = Path(__file__).parent.parent

START = """
import json, torch
import dne_lab as lab

small = {"learn__epochs": 2, "tune__epochs": 1, "learn__batch": 8, "network__depth": 2, "network__head_width": 4}
small |= {"network__heads": (2, 1), "network__patch": 4, "memory__budget": 20}
stream = lab.stream("digits", tasks=(4, 6))
run = lab.start("dne", stream, preset="digits", **small)
"""
LOOK = """
images = stream.test_images(8).images
with torch.no_grad():
    scores = run.method.predict(images)["classifier"]
weights = {name: value.clone() for name, value in run.model.state_dict().items()}
print(json.dumps({
    "cursor": list(run.cursor), "finished": run.record.finished, "rows": len(run.record.table()),
    "scores": list(scores.shape),
    "experts": run.model.heads, "training": run.model.training, "finite": bool(scores.isfinite().all()),
}))
"""
COMPARE = """
whole = lab.train("dne", lab.stream("digits", tasks=(4, 6)), preset="digits", **small)
one, other = run.model.state_dict(), whole.model.state_dict()
print(json.dumps({
    "finished": run.record.finished, "records": run.record.without_timing() == whole.record.without_timing(),
    "weights": one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one),
    "curves": run.curves == whole.curves,
    "moved": any(not torch.equal(one[n], weights[n]) for n in weights if n in one),
}))
"""


def stepped(kind: str, content: dict[str, Any]) -> bool:
    """Whether a message shows a progress bar that has moved: a widget's value, or text such as ``| 3/126 [``."""
    if kind == "stream":
        return re.search(r"\| *[1-9]\d*/\d+ \[", content["text"]) is not None
    value = content["data"].get("state", {}).get("value") if kind == "comm_msg" else None
    return isinstance(value, int | float) and value >= 1


class Kernel:
    """A Jupyter kernel, cell by cell; ``shown`` is what a cell shows of the error it ended with."""

    def __init__(self, folder: Path) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self.manager = jupyter_client.KernelManager(kernel_name="python3")
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.manager.start_kernel(cwd=str(folder), env=environment)
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, cell: str, interrupt: bool = False) -> tuple[str, str]:
        """Runs a cell; what it printed, and the name of the error it ended with. ``interrupt``: the stop button, a
        moment after the progress bar has begun to move."""
        asked = self.client.execute(cell)
        printed, error, pressed = "", "", False
        self.shown = ""
        while True:
            message: dict[str, Any] = self.client.get_iopub_msg(timeout=90)
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream" and content["name"] == "stdout":
                printed += content["text"]
            if kind == "error":
                error, self.shown = content["ename"], "\n".join(content["traceback"])
            if kind == "status" and content["execution_state"] == "idle":
                return printed, error
            if interrupt and not pressed and stepped(kind, content):
                pressed = True
                time.sleep(0.1)
                self.manager.interrupt_kernel()

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    made = Kernel(tmp_path)
    yield made
    made.close()


def test_an_interrupted_cell_leaves_a_run_to_look_at_that_goes_on_to_the_same_end(kernel: Kernel) -> None:
    assert kernel.run(START) == ("", "")
    assert kernel.run("run.train()", interrupt=True)[1] == "KeyboardInterrupt"
    printed, error = kernel.run(LOOK)
    assert error == "", printed
    seen = json.loads(printed)
    assert not seen["finished"] and (1, 0, 0, 0) < tuple(seen["cursor"]) < (2, 0, 0, 0)
    assert seen["scores"][0] == 8 and seen["finite"] and not seen["training"] and seen["experts"][0] == 2
    assert seen["rows"] == seen["cursor"][0] - 1
    assert kernel.run("run.train()")[1] == ""
    printed, error = kernel.run(COMPARE)
    assert error == ""
    assert json.loads(printed) == {"finished": True, "records": True, "weights": True, "curves": True, "moved": True}


def test_an_error_of_the_user_is_one_sentence_in_the_cell(kernel: Kernel) -> None:
    assert kernel.run("import dne_lab as lab\n\n\ndef mine(path):\n    return lab.open(path)")[1] == ""
    assert kernel.run("here = 1\nmine('no such run')")[1] == "LabError"
    line, sentence = kernel.shown.split("\n")
    assert line == "in: mine('no such run')"
    assert sentence.startswith("LabError: no such run ") and "Traceback" not in kernel.shown
    assert kernel.run("mine(3 / 0)")[1] == "ZeroDivisionError"
    assert "Traceback" in kernel.shown
