"""What is learned: the protocol (`base`) and one file a family of methods. Importing this package registers them."""

from dne_lab.methods import expansion, finetune, joint, replay
from dne_lab.methods.base import Method, Stage, create, find

__all__ = ["Method", "Stage", "create", "expansion", "find", "finetune", "joint", "replay"]
