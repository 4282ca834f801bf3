"""``python -m dne_lab`` is ``dne-lab``."""

from dne_lab.cli import main

main()
