"""What the paper states in its figures and tables, each as data and a function that judges it by records.

A claim of your own is one more `Claim`: a sentence, and a function from `Evidence` to judgements.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from dne_lab.analysis.decomposition import Decomposition
from dne_lab.claims import drawings
from dne_lab.claims.evidence import AGREES, CONTRADICTS, OPEN, Evidence, Judgement, corrected
from dne_lab.core import presets
from dne_lab.measure import cost_formula, paper
from dne_lab.measure.comparison import (
    EXPANSION,
    Pair,
    depth,
    even_heads,
    heads_text,
    is_method,
    pairs,
    tasks_text,
    title,
)
from dne_lab.measure.cost_records import longest
from dne_lab.measure.metrics import interval
from dne_lab.measure.record import Record
from dne_lab.measure.significance import beside_smallest, p_value
from dne_lab.measure.tables import fixed
from dne_lab.methods.base import title_of
from dne_lab.models.variants import DNE, IA
from dne_lab.plots.series import PAPER_DATASETS, PAPER_EPOCHS, scale

RIVALS = ("icarl", "podnet", "der", "foster", "dytox")
SINGLE = ("icarl", "podnet", "foster", "dytox")
LARGER = 1.02  # a network with this many times the parameters is a larger one


@dataclass(frozen=True)
class Claim:
    """A statement of the paper: its figure or table, the sentence, the notebook that shows it, and its judge.

    ``family``: all comparisons among which a false find must be unlikely (Holm); default: those of ``judges``.
    """

    figure: str
    says: str
    notebook: int
    judges: Callable[[Evidence], list[Judgement]]
    family: Callable[[Evidence], list[Judgement]] | None = None

    def judge(self, evidence: Evidence) -> list[Judgement]:
        """Its comparisons; each is told apart only where it is after Holm's correction within the family."""
        if self not in evidence.judged:
            found = family = self.judges(evidence)
            if self.family is not None:
                if self.family not in evidence.judged:  # claims of one family share it
                    evidence.judged[self.family] = self.family(evidence)
                family = evidence.judged[self.family]
            evidence.judged[self] = corrected(found, family)
        return evidence.judged[self]


def step_of(record: Record) -> int | None:
    """Classes per task after the first 50 of 100; None for other streams."""
    steps = set(record.tasks[1:])
    return steps.pop() if len(steps) == 1 and record.tasks[0] == 50 and sum(record.tasks) == 100 else None


def outcome(mean: float, width: float | None) -> str:
    """Whether a difference that the paper states to be positive is: its 95% interval must exclude zero.

    Without an interval (one seed) nothing is told apart.
    """
    if width is None or abs(mean) <= width:
        return OPEN
    return AGREES if mean > 0 else CONTRADICTS


def judge_pair(pair: Pair, sign: int = 1, names: tuple[str, str] | None = None) -> Judgement:
    """The difference in LA, paired by seed; ``sign`` -1 if the paper states that the first is below the other.

    ``names``: what the two are called; None: method, size and precision.
    """
    mean, width = pair.difference()
    seeds = f"{len(pair.seeds)} seeds" if len(pair.seeds) > 1 else "one seed"
    half = "" if width is None else f" ± {fixed(width, 2)}"
    one, other = names or (_name(pair.one.first), _name(pair.other.first))
    found = f"{one} - {other}: {fixed(mean, 2, '+')}{half} points, {seeds}"
    small = "small scale" in scale([*pair.one.records, *pair.other.records])
    across = len({"patch" in group.first.network for group in (pair.one, pair.other)}) > 1
    return Judgement(
        outcome(sign * mean, width), pair.setting, found, small, len(pair.seeds) == 1, across,
        p=p_value(pair.values()), pooled=pair.pooled, size=beside_smallest(mean, width),
    )  # fmt: skip


def _name(record: Record) -> str:
    """The title with a size that it does not say (residual network and width, heads), and a precision of its own."""
    network, precision = record.network, record.config.get("precision", "auto")
    which = [f"{network['name']}, width {network['width']}"] if {"name", "width"} <= network.keys() else []
    which += [f"{heads_text(record)} heads"] if record.heads and record.method not in EXPANSION else []
    which += [precision] if precision != "auto" else []
    return title(record) + (f" ({', '.join(which)})" if which else "")


Test = Callable[[Record], bool]


def compare(
    one: Test,
    other: Test,
    sign: int = 1,
    steps: Iterable[int | None] | None = None,
    same_heads: bool = False,
    keep: Callable[[Pair], bool] = lambda pair: True,
) -> Callable[[Evidence], list[Judgement]]:
    """A judge: LA of runs that ``one`` accepts above (sign -1: below) that of runs that ``other`` accepts.

    Args:
        one, other: which records.
        sign: 1 or -1.
        steps: values of `step_of` that count; None: any stream.
        same_heads: compare equal heads alone.
        keep: which pairs are evidence (comparable cost, say).
    """
    allowed = None if steps is None else set(steps)

    def judge(evidence: Evidence) -> list[Judgement]:
        with_them = [g for g in evidence.groups if allowed is None or step_of(g.first) in allowed]
        return [judge_pair(pair, sign) for pair in pairs(with_them, one, other, same_heads) if keep(pair)]

    return judge


def larger(*methods: str) -> Callable[[Evidence], list[Judgement]]:
    """A judge: of each of these methods the largest network is above the smallest (by parameters)."""

    def judge(evidence: Evidence) -> list[Judgement]:
        return [judge_pair(pair) for pair in _extremes(evidence, methods)]

    return judge


def each_step(*methods: str, keep: Test = lambda record: True) -> Callable[[Evidence], list[Judgement]]:
    """A judge: of each of these methods every network is above the next smaller one (by parameters).

    A gain from the smallest to the largest alone could stop anywhere between. ``keep``: which records count.
    """

    def judge(evidence: Evidence) -> list[Judgement]:
        with_them = Evidence([record for record in evidence.records if keep(record)])
        found = [
            pair
            for method in methods
            for pair in pairs(with_them.groups, is_method(method), is_method(method))
            if _span(pair) > LARGER
        ]
        ways = {(id(pair.one), id(pair.other)) for pair in found}
        return [
            judge_pair(pair)
            for pair in found
            if not any((id(pair.one), id(middle.one)) in ways for middle in found if middle.other is pair.other)
        ]

    return judge


def no_gain(*methods: str, least: float = 1.0) -> Callable[[Evidence], list[Judgement]]:
    """A judge: the largest network of each method is not above the smallest.

    Agrees if the interval of the difference ends below ``least`` points, contradicts if it lies above zero.
    """

    def judge(evidence: Evidence) -> list[Judgement]:
        found = []
        for pair in _extremes(evidence, methods):
            (mean, width), judgement = pair.difference(), judge_pair(pair)
            known = width is not None
            result = CONTRADICTS if known and mean - width > 0 else AGREES if known and mean + width < least else OPEN
            against = least if result == AGREES else 0.0
            found.append(replace(judgement, outcome=result, p=p_value(pair.values(), against)))
        return found

    return judge


def _extremes(evidence: Evidence, methods: Sequence[str]) -> list[Pair]:
    """For each method and stream the pair of its largest and its smallest network."""
    best: dict[tuple[str, str], Pair] = {}
    for method in methods:
        for pair in pairs(evidence.groups, is_method(method), is_method(method)):
            key = (method, pair.setting)
            known = best.get(key)
            if _span(pair) > LARGER and (known is None or _span(pair) > _span(known)):
                best[key] = pair
    return list(best.values())


def _span(pair: Pair) -> float:
    one, other = ((group.first.params.get("total") or 0) for group in (pair.one, pair.other))
    return float(one / max(1, other))


def comparable(pair: Pair) -> bool:
    """Whether the other network costs at least 0.9 times as much, so that an advantage is not bought."""
    mine, theirs = pair.one.first.flops_literal, pair.other.first.flops_literal
    return mine is not None and theirs is not None and theirs >= 0.9 * mine


def multi_dytox(record: Record) -> bool:
    """Figure 1's IA: as many heads in every expert, the first too."""
    return record.method == "ia" and even_heads(record)


def deep_foster(record: Record) -> bool:
    """FOSTER with a backbone other than ResNet-18."""
    return record.method == "foster" and depth(record) not in (None, 18)


# Judges by counts -------------------------------------------------------------------------------------------------


def dne_below_der(evidence: Evidence) -> list[Judgement]:
    """F of DNE (k = 1) below that of DER after every task of 50 + 2 x 25 but the first, where neither has grown."""
    fits = {(c.method, c.k): c for c in evidence.costs if len(c.tasks) == 26}
    dne, der = fits.get(("dne", 1)), fits.get(("der", None))
    if dne is None or der is None:
        return []
    both = list(zip(dne.rows, der.rows, strict=True))
    above = [row["task"] for row, other in both[1:] if row["flops_literal"] > other["flops_literal"]]
    last, other = (row["flops_literal"] / 1e9 for row in both[-1])
    found = f"{last:.2f} and {other:.2f} GFLOPs at task 26" + (f"; above at tasks {above}" if above else "")
    return [Judgement(CONTRADICTS if above else AGREES, "CIFAR-100 geometry, counted", found)]


def printed_cost(evidence: Evidence, tolerance: float = 0.01) -> list[Judgement]:
    """Every printed F of DNE on CIFAR-100 is the literal count, within ``tolerance``."""
    counts = {(c.k, row["task"]): row["flops_literal"] / 1e9 for c in longest(evidence.costs)
              if c.method == "dne" for row in c.rows}  # fmt: skip
    found = []
    for row in paper.rows("cifar100", (10, 5, 25)):
        ours = counts.get((row["k"], row["T"]))
        if row["method"] == "dne" and ours is not None:
            same = abs(row["F (G)"] - ours) <= tolerance * ours
            text = f"k = {row['k']}, {row['T']} tasks: printed {row['F (G)']:.2f}, counted {ours:.2f} G"
            found.append(Judgement(AGREES if same else CONTRADICTS, "CIFAR-100 geometry, counted", text))
    return found


def bound(evidence: Evidence) -> list[Judgement]:
    """The paper's bound T < H^2 + (H - 1) P against the formula with 12 heads in the first expert too."""
    network = presets.resolve("imagenet100-b50-10").network
    ours = cost_formula.cheaper_until(network, DNE, IA, later=1, shape=(3, 224, 224))
    theirs = cost_formula.paper_bound(network.heads[0], (224 // network.patch) ** 2)
    text = f"up to {ours} tasks with every term and 12 heads in the first expert; the paper's orders give {theirs}"
    return [Judgement(AGREES if ours >= theirs - 1 else CONTRADICTS, "224 x 224 images, patch 16, derived", text)]


# Judges by attention statistics -----------------------------------------------------------------------------------


def attention_above(
    value: Callable[[Decomposition], float], unit: str, sign: int = 1
) -> Callable[[Evidence], list[Judgement]]:
    """A judge: ``value`` of an attention record is larger (sign -1: smaller) in STA than in IA.

    Records of one data set, stream, number of heads and schedule are paired by seed.
    """

    def judge(evidence: Evidence) -> list[Judgement]:
        by: dict[tuple[str, tuple[int, ...], tuple[int, ...], int], dict[str, dict[int, float]]] = {}
        for record in evidence.attention:
            if record.finished and record.method in ("ia", "sta"):
                key = (record.dataset, tuple(record.tasks), tuple(record.heads), record.epochs)
                by.setdefault(key, {}).setdefault(record.method, {})[record.seed] = value(record)
        found = []
        for (dataset, tasks, _, epochs), values in by.items():
            ia, sta = values.get("ia", {}), values.get("sta", {})
            seeds = sorted(ia.keys() & sta.keys())
            if seeds:
                by_seed = [sta[seed] - ia[seed] for seed in seeds]
                mean, width = interval(by_seed)
                half = "" if width is None else f" ± {width:.2g}"
                count = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
                text = f"STA - IA: {mean:+.2g}{half} {unit}, {count}"
                small = dataset not in PAPER_DATASETS or epochs < PAPER_EPOCHS
                on = f"{dataset}, {tasks_text(tasks)}"
                found.append(Judgement(outcome(sign * mean, width), on, text, small, p=p_value(by_seed)))
        return found

    return judge


def _above_rivals(figure: str, steps: Sequence[int | None], notebook: int) -> list[Claim]:
    judges = {rival: compare(is_method("dne"), is_method(rival), 1, steps) for rival in RIVALS}

    def family(evidence: Evidence) -> list[Judgement]:
        return [judgement for judge in judges.values() for judgement in judge(evidence)]

    return [
        Claim(figure, f"DNE is above {title_of(rival)}", notebook, judge, family) for rival, judge in judges.items()
    ]


CLAIMS: list[Claim] = [
    Claim("figure 1 right", "IA needs many heads: more of them in every expert are better", 9,
          each_step("ia", keep=multi_dytox)),
    Claim("figure 1 right", "DNE is above IA that costs as much or more", 9,
          compare(is_method("dne"), multi_dytox, keep=comparable)),
    Claim("figure 1 right", "DNE is above DER that costs as much or more", 9,
          compare(is_method("dne"), is_method("der"), keep=comparable)),
    Claim("figure 2", "experts of IA read no other, those of STA and DNE all before them", 2,
          drawings.who_reads_whom),
    Claim("figure 3", "a query of STA meets four kinds of key, one of IA those of its own head", 4,
          drawings.kinds_of_key),
    Claim("figure 4 left", "STA puts more of its attention on the same patch than IA", 4,
          attention_above(lambda record: record.same_patch().value, "points")),
    Claim("figure 4 right", "STA is below IA", 2,
          compare(is_method("sta"), is_method("ia"), -1, same_heads=True)),
    Claim("figure 5", "in DNE two task attention blocks take the place of the two linear layers", 3,
          drawings.parts_of_blocks),
    *_above_rivals("figure 6 a, b; table 1", (10, None), 9),
    Claim("figure 6 a, b; table 1", "DNE gains from more heads", 9, larger("dne")),
    Claim("figure 6 a, b", "single-model methods do not gain from width", 9, no_gain(*SINGLE)),
    Claim("figure 6 c, d", "DNE is above FOSTER with deeper backbones", 9,
          compare(is_method("dne"), deep_foster)),
    Claim("figure 6 e", "F of DNE is below DER's from the second task to the 26th", 8, dne_below_der),
    Claim("figure 6 f", "DNE is above DER at 50 + 2 x 25", 9,
          compare(is_method("dne"), is_method("der"), steps=(2,))),
    Claim("figure 6 f", "DNE is above FOSTER at 50 + 2 x 25", 9,
          compare(is_method("dne"), is_method("foster"), steps=(2,))),
    *_above_rivals("table 2", (5, 25), 11),
    Claim("tables 1 and 2", "the printed F of DNE is what its operations count", 8, printed_cost),
    Claim("section 3, eq. 11", "linear cross connections are below DER", 9,
          compare(is_method("progressive"), is_method("der"), -1)),
    Claim("section 3", "one head a task is cheaper than 12 up to 2,300 tasks", 8, bound),
]  # fmt: skip
