"""CIFAR-100 in torchvision's files."""

from __future__ import annotations

from pathlib import Path

from dne_lab.data.source import CIFAR_MEAN, CIFAR_STD, ArraySource
from dne_lab.errors import LabError


class CIFAR100Source(ArraySource):
    """CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images, 3 x 32 x 32, alphabetical classes.

    Args:
        root: folder that holds ``cifar-100-python``.
        download: fetch it (169 MB) when it is not there. Nothing is ever fetched unasked.

    Raises:
        LabError: the files are not there, are damaged, or cannot be fetched.
    """

    def __init__(self, root: str | Path = "datasets", download: bool = False) -> None:
        from torchvision.datasets import CIFAR100

        try:  # torchvision compares md5 sums before it unpickles
            splits = [CIFAR100(str(root), train=train, download=download) for train in (True, False)]
        except (RuntimeError, OSError) as error:
            folder = Path(root).resolve() / "cifar-100-python"
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            why = why.split(" You can use download=True")[0].removesuffix(".")  # the advice below is for both doors
            raise LabError(
                f"CIFAR-100 is not complete in {folder} ({why}). "
                "Expected the files train, test and meta of cifar-100-python.tar.gz there. "
                "Get them with `dne-lab run ... --download` or dne_lab.stream('cifar100', path=..., download=True), "
                f"or unpack that archive (www.cs.toronto.edu/~kriz/cifar.html) in {Path(root).resolve()}, "
                "or set data.path to where it is."
            ) from error
        train, test = ((split.data, split.targets) for split in splits)
        names = splits[0].classes
        super().__init__(
            *train, *test, class_names=names, name="cifar100", path=str(root), mean=CIFAR_MEAN, std=CIFAR_STD
        )
