"""The upper bound: one transformer trained on all classes at once."""

from dne_lab.methods.expansion import Expansion


class Joint(Expansion):
    """Joint training on all classes: not incremental, the upper bound that D is measured against."""

    name = "joint"
    title = "Joint"
    uses_memory = False
    joint = True
    shares_first_task = False
