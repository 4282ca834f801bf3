"""What is learned: the protocol (`base`) and one file a family of methods. Importing this package registers them."""

from dne_lab.methods import dytox, expansion, finetune, icarl, joint, podnet, replay, resnet
from dne_lab.methods.base import Method, Stage, create, find

__all__ = ["Method", "Stage", "create", "dytox", "expansion", "find", "finetune", "icarl", "joint", "podnet", "replay"]
__all__ += ["resnet"]
