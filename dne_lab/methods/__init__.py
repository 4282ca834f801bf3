"""What is learned: the protocol (`base`) and one file a family of methods. Importing this package registers them."""

from dne_lab.methods import (
    der,
    dytox,
    expansion,
    finetune,
    foster,
    icarl,
    podnet,
    resnet,
)
from dne_lab.methods.base import Method, Stage, create, find

__all__ = ["Method", "Stage", "create", "der", "dytox", "expansion", "find", "finetune", "foster", "icarl", "joint"]
__all__ += ["podnet", "replay", "resnet"]
