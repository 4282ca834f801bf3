"""Fine-tuning, replay and joint training on a residual network: what trains, and whose joint model D is against."""

from typing import Any

import pandas as pd
import pytest
import torch
from protocol_methods import settings, stream

from dne_lab.core.config import from_dict
from dne_lab.measure import tables
from dne_lab.methods import create
from dne_lab.methods.resnet import FineTuningResNet
from dne_lab.training.run import Run


def trained(method: str, width: int = 2, **changes: Any) -> Run:
    torch.set_num_threads(1)
    tree = settings("replay-resnet").to_dict() | {"method": method, "options": {"width": width}}
    config = from_dict(tree).with_changes({"learn.epochs": 1, "tune.epochs": 1, **changes})
    run = Run(config, stream(), None, "cpu", 3600, progress=False)
    run.train()
    return run


@pytest.mark.parametrize("name", ["finetune-resnet", "replay-resnet", "joint-resnet"])
def test_stages_and_what_trains(name: str) -> None:
    whole = stream()
    method = create(settings("replay-resnet").with_changes({"method": name}), whole)
    assert isinstance(method, FineTuningResNet)
    images = whole.images("test", whole.index("test", range(3)))
    seen = []
    for task in whole.joint() if name == "joint-resnet" else whole:
        before = method.eval().predict(images)["classifier"] if task.old else None
        for stage in method.stages(task):
            method.enter(task, stage)
            trained = set(method.parameters_to_train())
            everything = {name for name, _ in method.named_parameters()}
            encoder = {name for name in everything if name.startswith("model.encoder.")}
            assert trained == (everything if stage.name == "learn" else everything - encoder)
            seen.append((task.number, stage.name))
        if before is not None:  # old logits stay when classes come
            after = method.eval().predict(images)["classifier"]
            torch.testing.assert_close(after[:, : before.shape[1]], before)
    learn = [(number, "learn") for number in (1, 2, 3)]
    expected = {
        "finetune-resnet": learn,
        "replay-resnet": [learn[0], *((n, stage) for n in (2, 3) for stage in ("learn", "tune"))],
        "joint-resnet": learn[:1],
    }
    assert seen == expected[name]


def test_d_is_against_the_joint_model_of_the_same_network() -> None:
    joint, wide = trained("joint-resnet").record, trained("joint-resnet", 3).record
    icarl = trained("icarl", **{"learn.lr": 0.02}).record  # with a recipe of its own
    assert joint.joint and joint.tasks == [7] and joint.memory["stored"] == 0
    assert (joint.network, wide.network) == ({"name": "resnet18", "width": 2}, {"name": "resnet18", "width": 3})
    assert icarl.network == joint.network and list(icarl.other_predictions) == ["classifier"]
    table = tables.summary([joint, wide, icarl]).set_index("method")
    assert table.loc["iCaRL", "D"] == pytest.approx((joint.LA or 0) - (icarl.LA or 0))
    assert table.loc["iCaRL", "D other network"] == pytest.approx((wide.LA or 0) - (icarl.LA or 0))
    assert pd.isna(tables.summary([wide, icarl]).set_index("method").loc["iCaRL", "D"])
