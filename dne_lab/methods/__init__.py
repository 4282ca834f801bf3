"""What is learned: the protocol (`base`) and one file per family of methods. Importing this package registers them."""

from dne_lab.methods import der, dytox, expansion, finetune, foster, icarl, podnet, resnet, trunk
from dne_lab.methods.base import Method, Stage, create, find

__all__ = ["Method", "Stage", "create", "find"]
__all__ += ["der", "dytox", "expansion", "finetune", "foster", "icarl", "podnet", "resnet", "trunk"]
