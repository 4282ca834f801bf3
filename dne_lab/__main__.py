"""``python -m dne_lab`` is ``dne-lab``."""

from dne_lab.commands.cli import main

main()
