"""What is seen of a run while it runs: a bar a task in a terminal or notebook, otherwise a line a task."""

import sys
from typing import Any


class Progress:
    """A task's progress. ``total`` steps, ``done`` of which were made before."""

    def __init__(self, wanted: bool, title: str, total: int, done: int) -> None:
        self.title, self.wanted = title, wanted
        self.bar: Any = None
        if wanted:
            from tqdm.auto import tqdm

            in_notebook = tqdm.__module__.endswith("notebook") or "ipykernel" in sys.modules
            if in_notebook or sys.stderr.isatty():
                self.bar = tqdm(total=total, initial=done, desc=title, unit="step", leave=True)

    def stage(self, name: str) -> None:
        """Names what is done now."""
        if self.bar is not None:
            self.bar.set_description(f"{self.title} {name}")

    def step(self, loss: float | None, rate: float) -> None:
        """One more step."""
        if self.bar is not None:
            values = {"lr": f"{rate:.1e}"} | ({} if loss is None else {"loss": f"{loss:.3f}"})
            self.bar.set_postfix(values, refresh=False)
            self.bar.update(1)

    def close(self, result: str = "") -> None:
        """The end of the task (or an interruption, without a result)."""
        if self.bar is not None:
            if result:
                self.bar.set_description(f"{self.title} {result}")
            self.bar.close()
        elif self.wanted and result:
            print(f"{self.title}: {result}", file=sys.stderr, flush=True)
