"""What pyproject.toml cannot say: a wheel holds the notebooks, and the records and models that they read."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

MATERIAL = (
    *("notebooks/*.ipynb", "notebooks/*.md", "figures/*.md", "figures/explorer.*"),
    *("figures/records/**/*", "figures/checkpoints/**/*"),
)


class WithNotebooks(build_py):
    """Copies them into the package; an editable installation finds them where they are."""

    def run(self) -> None:
        super().run()
        to = Path(self.build_lib) / "dne_lab" / "material"
        shutil.rmtree(to, ignore_errors=True)  # of an earlier build
        if self.editable_mode:
            return
        here = Path(__file__).parent
        for file in sorted({file for pattern in MATERIAL for file in here.glob(pattern) if file.is_file()}):
            target = to / file.relative_to(here)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


setup(cmdclass={"build_py": WithNotebooks})
