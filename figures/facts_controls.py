"""What the page of controls may ask: tables of controls that were trained, from the committed records."""

import math
from functools import cached_property

import pandas as pd
from facts import FIGURES, Difference, Runs, n

from dne_lab.analysis.controls_seen import KINDS, PROBES, seen
from dne_lab.analysis.decomposition import Decomposition
from dne_lab.analysis.read_outs import ProbeRecord
from dne_lab.core.errors import LabError
from dne_lab.measure import tables, trained_controls
from dne_lab.measure.comparison import groups
from dne_lab.measure.metrics import interval
from dne_lab.measure.significance import LEVEL
from dne_lab.measure.trained_controls import Control
from dne_lab.methods.base import title_of

# Attention and linear probes of networks of controls; beside the records, which are of the methods as they are.
SEEN = FIGURES / "controls_seen"


class Rates:
    """LA on validation images by network and learning rate, of the committed search."""

    def __init__(self, found: Runs) -> None:
        self.frame = trained_controls.rates(found.records)
        self.last: dict[tuple[str, float], dict[int, float]] = {}  # by network and rate: LA by seed
        for group in groups(found.records):
            name = trained_controls.network_words(group.first)
            self.last[name, float(group.first.config["learn"]["lr"])] = group.last_by_seed()

    def best(self, network: str) -> float:
        """The rate at which a network ends highest, by the mean over seeds."""
        return float(self._rates(network).idxmax())

    @property
    def best_of_all(self) -> list[float]:
        """The rates at which the networks with several of them end highest."""
        several = self.frame.drop(columns="seeds").count(axis=1) > 1
        return sorted({self.best(str(name)) for name in self.frame.index[several]})

    def highest(self, network: str) -> float:
        """LA at the best rate, mean over seeds."""
        return float(self._rates(network).max())

    def gap(self, one: str, other: str) -> Difference:
        """LA of a network minus that of another one, each at its best rate, paired by seed."""
        mine, theirs = (self.last[name, self.best(name)] for name in (one, other))
        return Difference(*interval([mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]))

    def reach(self, rate: float) -> float:
        """The most by which seeds of one network lie apart at a rate."""
        return max(max(by.values()) - min(by.values()) for (_, at), by in self.last.items() if at == rate)

    def otherwise(self) -> int:
        """Single seeds of networks that end highest at another rate than their network does by the mean."""
        found = 0
        for name in {name for name, _ in self.last}:
            mine = {rate: by for (network, rate), by in self.last.items() if network == name}
            seeds = set.intersection(*(set(by) for by in mine.values())) if len(mine) > 1 else set()
            found += sum(max(mine, key=lambda rate: mine[rate][seed]) != self.best(name) for seed in seeds)
        return found

    def table(self) -> str:
        """All of it."""
        names = [c for c in self.frame.columns if c != "seeds"]
        rows = [
            {"network": name, "seeds": int(row["seeds"])} | {f"rate {c:g}": _percent(row[c]) for c in names}
            for name, row in self.frame.iterrows()
        ]
        return tables.to_markdown(pd.DataFrame(rows))

    def _rates(self, network: str) -> "pd.Series[float]":
        if network not in self.frame.index:
            raise LabError(f"no search of rates of {network!r}: there are {', '.join(map(str, self.frame.index))}.")
        return self.frame.loc[network].drop("seeds")


class Controlled:
    """The controls of one folder of records, by method and words: ``controlled(runs("digits100-controls"))``."""

    def __init__(self, found: Runs) -> None:
        self.records = found.records
        self.by_method = trained_controls.controls(found.records)
        self.steps = trained_controls.ladder(found.records)

    @cached_property
    def seen(self) -> pd.DataFrame:
        """What the networks look at and hold (`controls_seen.seen`), by network."""
        made = seen(self.records, Decomposition.among(SEEN), ProbeRecord.among(SEEN))
        return made.set_index("network")

    def looks(self) -> str:
        """`seen` as a table: numbers of one seed, in percent."""
        shown = self.seen.sort_values("LA", ascending=False)
        columns = ["LA", *KINDS, *PROBES]
        return tables.to_markdown(
            pd.DataFrame([{"network": name} | {c: _percent(row[c]) for c in columns} for name, row in shown.iterrows()])
        )

    def one(self, method: str, words: str) -> Control:
        for control in self.by_method.get(method, []):
            if control.words == words:
                return control
        raise LabError(f"no control {words!r} of {method}.")

    def gap(self, method: str, words: str) -> Difference:
        """LA under a control minus that of the method itself."""
        return Difference(*self.one(method, words).pair.difference())

    def told_apart(self, method: str, words: str) -> bool:
        """Whether the difference is told apart after Holm's correction within the method's controls."""
        p = self.one(method, words).adjusted
        return p is not None and p < 1 - LEVEL

    def seeds(self, method: str, words: str) -> int:
        """How many seeds a control and its method have in common."""
        return len(self.one(method, words).pair.seeds)

    def between(self, method: str, words: str, other: str) -> Difference:
        """LA under a control minus that of another method as it is, paired by seed."""
        mine = self.one(method, words).pair.one.last_by_seed()
        plain = Runs([r for r in self.records if r.method == other and not trained_controls.options_of(r)])
        theirs = {r.seed: float(r.LA or 0) for r in plain.records if r.heads[-1] == 1 and r.network == _first(plain)}
        return Difference(*interval([mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]))

    def by_size(self, other: str, method: str = "dne") -> list[Control]:
        """A method minus another one, as they are, for each size of that, the smallest first."""
        found = [c for c in trained_controls.sizes(self.records, method) if c.pair.other.first.method == other]
        return sorted(found, key=lambda control: control.pair.other.first.params["total"])

    def beside(self, other: str, method: str = "dne") -> Control:
        """A method minus another one in its smallest size."""
        return self.by_size(other, method)[0]

    def beside_largest(self, other: str, method: str = "dne") -> Control:
        """A method minus another one in its largest size."""
        return self.by_size(other, method)[-1]

    def apart(self, other: str, method: str = "dne") -> bool:
        """Whether a method is told apart from another one of any size, after Holm's correction."""
        return any(c.adjusted is not None and c.adjusted < 1 - LEVEL for c in self.by_size(other, method))

    def reach(self, *methods: str) -> float:
        """How far LA of these methods as they are, in their smallest size, lies apart, on the first seed."""
        plain = [r for r in self.records if r.method in methods and not trained_controls.options_of(r) and not r.seed]
        last = [
            float(min((r for r in plain if r.method == m), key=lambda r: r.params["total"]).LA or 0) for m in methods
        ]
        return max(last) - min(last)

    def rounding(self, older: Runs) -> float:
        """The largest difference in LA, in points, to older records of the same methods, networks and seeds."""
        known = {(r.method, r.seed, str(r.network)): float(r.LA or 0) for r in older.records}
        plain = [r for r in self.records if not trained_controls.options_of(r)]
        both = [(float(r.LA or 0), known.get((r.method, r.seed, str(r.network)))) for r in plain]
        return max(abs(mine - before) for mine, before in both if before is not None)

    def table(self, method: str) -> str:
        """All controls of a method, those of most seeds first."""
        found = sorted(self.by_method[method], key=lambda c: (-len(c.pair.seeds), -c.pair.difference()[0]))
        return _text(found, f"minus {title_of(method)}")

    def ladder(self) -> str:
        """The steps from IA to DNE, on the seeds that all have."""
        rows = trained_controls.ladder_table(self.steps).to_dict("records")
        return tables.to_markdown(
            pd.DataFrame(
                [
                    {
                        "step": row["step"],
                        "seeds": row["seeds"],
                        "LA": n(row["LA"]),
                        "adds": "" if step.added == () else str(Difference(*interval(step.added))),
                    }
                    | {"p (Holm)": "" if step.adjusted is None else f"{step.adjusted:.2g}"}
                    | {"parameters (M)": n(row["parameters (M)"], 2), "F spent (M)": n(row["F spent (M)"])}
                    for row, step in zip(rows, self.steps, strict=True)
                ]
            )
        )

    def step(self, number: int) -> Difference:
        """What a step from IA to DNE (1, 2, ...) adds to the one before, in points."""
        return Difference(*interval(self.steps[number].added))

    def sizes(self, method: str = "dne") -> str:
        """A method beside the others as they are, and widened to what it costs."""
        return _text(trained_controls.sizes(self.records, method), f"{title_of(method)} minus it", size=True)


def points(control: Control) -> Difference:
    """The difference of a control, or of one size beside another."""
    return Difference(*control.pair.difference())


def controlled(found: Runs) -> Controlled:
    """The controls among these runs."""
    return Controlled(found)


def searched(found: Runs) -> Rates:
    """The search of rates among these runs."""
    return Rates(found)


def _percent(value: float) -> str:
    return "" if math.isnan(value) else n(value)


def _first(found: Runs) -> object:
    return min(found.records, key=lambda record: record.params["total"]).network


def _text(found: list[Control], minus: str, size: bool = False) -> str:
    rows = []
    for control, row in zip(found, trained_controls.table(found, minus).to_dict("records"), strict=True):
        last = [float(record.LA or 0) for record in (control.pair.other if size else control.pair.one).records]
        rows.append(
            {"control" if not size else "beside": control.words, "seeds": row["seeds"], "LA": n(sum(last) / len(last))}
            | {minus: str(Difference(*control.pair.difference()))}
            | {"p (Holm)": "" if control.adjusted is None else f"{control.adjusted:.2g}"}
            | ({} if size else {"new / old before stage 2": _before(row)})
        )
    return tables.to_markdown(pd.DataFrame(rows))


def _before(row: dict[str, float]) -> str:
    return f"{n(row['new before stage 2'])} / {n(row['old before stage 2'])}"
