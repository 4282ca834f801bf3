"""A run's network at moments that left no file: untrained, or with its newest expert at its start."""

import torch

from dne_lab.errors import LabError
from dne_lab.methods import base
from dne_lab.models.expandable import ExpandableViT
from dne_lab.training import saving
from dne_lab.training.run import Run
from dne_lab.training.state import Cursor


def untrained(run: Run, tasks: int | None = None) -> ExpandableViT:
    """The network of ``tasks`` tasks (default: all) with every expert at its start, as the run's seed draws it.

    Raises:
        LabError: a method without experts.
    """
    count = len(run.stream) if tasks is None else tasks
    method = base.create(run.config, run.stream)
    saving.replay(run, method, Cursor(count + 1), begun=False)
    network = getattr(method, "model", None)
    if not isinstance(network, ExpandableViT):
        raise LabError(
            f"the network of method {run.config.method} has no experts whose attention could be sorted into groups. "
            "Take a run of ia, sta, dne, progressive or another method built on ExpandableViT."
        )
    return network.to(run.device).eval()


def newcomer(run: Run, task: int) -> ExpandableViT:
    """The network before task ``task`` (2, 3, ...) is learned: earlier experts as trained, its own at its start.

    Raises:
        LabError: a task that does not exist, or whose predecessors are not finished.
    """
    if not 2 <= task <= len(run.stream) or task > run.cursor.task:
        done = min(run.cursor.task, len(run.stream))
        raise LabError(f"task {task}: this run has newcomers of tasks 2 to {done}. Train it further for later ones.")
    network = untrained(run, task)
    with torch.no_grad():
        for number, expert in enumerate(list(network.experts)[:-1]):
            expert.load_state_dict(run.model.experts[number].state_dict())
    return network
