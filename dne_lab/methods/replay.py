"""Fine-tuning with exemplars: the simplest method that remembers."""

from dne_lab.methods.finetune import FineTuning


class Replay(FineTuning):
    """Fine-tuning with exemplars of old classes mixed in, and a balanced tuning of the classifier after each task."""

    name = "replay"
    title = "Replay"
    uses_memory = True
