"""The tables of all methods follow from the committed records, and what was chosen from its trials."""

import itertools
import json

import pandas as pd
from test_committed import FIGURES, ROOT, rows_of, same

from dne_lab import fields, presets
from dne_lab.measure import record, streams, tables
from dne_lab.measure.metrics import interval
from dne_lab.methods import base

DIGITS100 = ("digits100", "digits100-steps", "digits100-baselines", "digits100-baselines-steps")
CIFAR = ("cifar100-small", "cifar100-small-baselines")
MAIN = [50, 10, 10, 10, 10, 10]
OURS = ["method", "seeds", "LA", "LA +-", "AA", "AA +-", "D", "forgetting", "F literal (G)", "F spent (G)"]
OURS += ["params (M)", "seconds"]
PAPERS = ["paper LA", "paper AA", "paper F"]
ELSEWHERE = ["LA elsewhere", "AA elsewhere", "elsewhere with"]
ON_CIFAR = ["method", "LA", "AA", "D", "forgetting", "F", "params (M)", "seconds", *PAPERS, *ELSEWHERE]
REPLAY = "replay-resnet"
ON_RESNETS = ("icarl", "podnet", "der", "foster")


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def said() -> str:
    """The README without its line breaks."""
    return " ".join(readme().split())


def runs_of(*names: str) -> list[record.Record]:
    return [run for name in names for run in record.find(FIGURES / "records" / name)]


def main_stream() -> list[record.Record]:
    return [run for run in runs_of(*DIGITS100) if run.joint or run.tasks == MAIN]


def all_columns(runs: list[record.Record]) -> pd.DataFrame:
    return tables.compare(runs).merge(tables.summary(runs), how="left", on=["method", "tasks"], suffixes=("", "_"))


def check(title: str, frame: pd.DataFrame) -> None:
    """The first table under a heading is this one."""
    wanted = tables.to_markdown(frame).splitlines()[2:]
    assert rows_of(readme(), title) == [[cell.strip() for cell in line.strip("|").split("|")] for line in wanted]


def test_the_table_of_all_methods() -> None:
    check("### digits100", all_columns(main_stream())[OURS + PAPERS])


def test_the_table_of_all_streams() -> None:
    check("#### Larger and smaller steps", streams.by_stream(runs_of(*DIGITS100)))


def test_the_table_of_the_widths() -> None:
    check("#### Wider and deeper", width_table())


def width_table() -> pd.DataFrame:
    """Widened networks beside DNE, from cheap to dear."""
    runs = [run for run in main_stream() if run.method in (*ON_RESNETS, "dytox", "dne")] + runs_of("digits100-widths")
    frame = tables.summary([run for run in runs if run.seed == 0])
    return frame.sort_values("F literal (G)", kind="stable")[["method", "F literal (G)", "params (M)", "LA", "AA"]]


def test_what_the_readme_says_of_widths() -> None:
    wide = runs_of("digits100-widths")
    plain = [run for run in main_stream() if run.seed == 0 and run.config["precision"] == "auto"]
    by: dict[str, list[record.Record]] = {}
    for run in sorted([*plain, *wide], key=lambda run: run.flops_literal or 0):
        by.setdefault(run.method, []).append(run)
    widths = {m: [r for r in by[m] if r.config["options"].get("network", "resnet18") == "resnet18"] for m in ON_RESNETS}
    last = {method: [run.LA or 0.0 for run in runs] for method, runs in widths.items()}
    ends = [last[method][-1] - last[method][0] for method in ("icarl", "podnet", "foster", "der")]
    text = "iCaRL is {:.1f}, PODNet {:.1f} and FOSTER {:.1f} points above their narrowest network"
    assert f"with 11 times the FLOPs {text.format(*ends)}" in said() and [len(last[m]) for m in last] == [4, 4, 3, 4]
    assert 10.5 < (widths["icarl"][-1].flops_literal or 0) / (widths["icarl"][0].flops_literal or 1) < 11.5
    assert f"DER of width 22 {-ends[3]:.1f} below that of width 13" in said()
    spread = [interval([r.LA for r in main_stream() if r.method == m])[1] for m in ("icarl", "podnet", "foster")]
    assert "(± {:.1f}, {:.1f} and {:.1f})".format(*spread) in said()
    deep = sorted((r for r in by["foster"] if r.network["width"] == 16), key=lambda r: int(r.network["name"][6:]))
    assert "ends at {:.1f}, {:.1f}, {:.1f}, {:.1f} and {:.1f}%".format(*(run.LA for run in deep)) in said()
    first = [run.accuracy[0][0] for run in sorted(by["dytox"], key=lambda run: run.heads[0])]
    assert "{:.0f}% with 3 heads, then {:.0f}, {:.0f} and {:.0f}% with 7, 9 and 12".format(*first) in said()
    (check,) = runs_of("digits100-widths-check")
    assert check.heads == [12] and check.config["learn"]["lr"] == 1e-3 and check.validation == 0.2 and check.finished
    assert f"learn task 1 to {check.accuracy[0][0]:.0f}% and end at {check.LA:.0f}%" in said()
    assert "by less ({:.1f}, {:.1f}, {:.1f} and {:.1f}%)".format(*(run.LA for run in by["dne"])) in said()


def test_the_table_of_cifar() -> None:
    check("### CIFAR-100", all_columns(runs_of(*CIFAR))[ON_CIFAR])


def test_what_the_readme_says_of_cifar() -> None:
    small = [run for run in runs_of(*CIFAR) if run.heads in ([], [4], [4, 1, 1, 1, 1, 1])]
    la = {run.method: run.LA or 0.0 for run in small}
    values = [f"{la[method]:.1f}" for method in ("der", "foster", "icarl", "podnet")]
    text = "DER ({}%, with six networks), FOSTER ({}), iCaRL ({}) and PODNet ({}) follow each other".format(*values)
    assert text in said() and la["der"] > la["foster"] > la["icarl"] > la["podnet"]
    runs = {run.method: run for run in small}
    assert len(runs) == len(small) == 15
    assert f"the transformer is at {runs['dne'].accuracy[0][0]:.1f}%" in said()
    gain, size = la["dne"] - la["ia"], runs["dne"].params["total"] / runs["ia"].params["total"]
    assert f"keep DNE {gain:.1f} points above IA, with {size:.1f} times the parameters" in said()
    learned = [runs[method].accuracy[0][0] for method in ("foster", "dne")]
    assert "({:.0f} against {:.0f}% after task 1)".format(*learned) in said()
    assert f"Plain replay on the same network ({la[REPLAY]:.1f}) is between FOSTER and iCaRL" in said()
    assert la["foster"] > la[REPLAY] > la["icarl"]
    kept = ("ia", "sta", "dne", "progressive", "dytox", "replay")  # transformers with exemplars
    assert max(kept, key=lambda method: la[method]) == "replay" and min(kept, key=lambda method: la[method]) == "dytox"
    assert max(kept, key=lambda method: runs[method].forgetting or 0.0) == "replay"
    above, size = la["replay"] - la["dne"], runs["replay"].params["total"] / runs["dne"].params["total"]
    assert (
        f"plain replay ({la['replay']:.1f}) is above all that grow, by {above:.1f} points above DNE (k = 1) with "
        in said()
    )
    assert f"DNE (k = 1) with {size:.2f} times its parameters" in said()
    assert f"the last of them, {la['dne'] - la['dytox']:.1f} below DNE" in said()
    assert f"Joint training reaches no more than {la['joint']:.1f}%" in said() and la["joint"] - la["dytox"] < 12
    (even,) = (run for run in runs_of(*CIFAR) if run.method == "ia" and run.heads == [4] * 6)
    told = f"four heads in every expert ends at {even.LA:.1f}%, DNE (k = 1) at {la['dne']:.1f}%"
    dear = (even.flops_literal or 0) / (runs["dne"].flops_literal or 1)
    assert f"{told}, for {dear:.1f} times DNE's literal FLOPs" in said()


def test_what_was_chosen() -> None:
    trials = runs_of("digits100-baselines-tuning")
    assert all(r.finished and r.validation == 0.2 and r.seed == 0 for r in trials)
    same(FIGURES / "digits100_baselines_tuning.csv", tables.summary(trials))
    for method in (*ON_RESNETS, "dytox"):
        mine = [trial for trial in trials if trial.method == method]
        assert 2 <= len(mine) <= 6
        best = max(mine, key=lambda r: (r.LA or 0.0, r.AA or 0.0)).config
        chosen = presets.resolve(f"digits100,{method}-small")
        own = base.find(method).Options  # reads text and numbers alike
        assert fields.build(own, best["options"]) == fields.build(own, chosen.options)
        assert best["learn"]["lr"] == chosen.learn.lr
        assert method in ("icarl", "foster") or best["tune"]["lr"] == chosen.tune.lr  # those two have no second stage


def newest(run: record.Record, first: int = 1) -> list[float]:
    """Accuracy on the newest classes after each task from ``first`` (0: the first one) on."""
    return [row[-1] for row in run.accuracy[first:]]


def test_what_the_readme_says_of_new_classes() -> None:
    def told(method: str, first: int) -> str:
        runs = [run for run in runs_of("digits100-baselines") if run.method == method]
        found = [value for run in runs for value in newest(run, first)]
        return f"{int(min(found))} to {int(max(found))}%"

    assert f"({told('dytox', 4)} on those of the last two tasks; replay {told('replay', 4)})" in said()
    assert f"({told('finetune-resnet', 2)} on the newest classes of tasks 3 to 6)" in said()
    fosters = [run for run in runs_of("digits100-baselines-tuning") if run.method == "foster"]
    alike = [
        run for run in fosters if run.config["learn"]["lr"] == 0.2 and "lr" not in run.config["options"]["compress"]
    ]
    students = {float(run.config["options"].get("compress_beta", 0.97)): run for run in alike}
    for beta in (0.97, 0.5):
        values = newest(students[beta])
        assert f"{min(values):.0f} to {max(values):.0f}% with {beta}" in said()
    tested = [run for run in main_stream() if run.method == "foster"]
    values = [value for run in tested for value in newest(run)]
    teachers = [run.other_predictions["teacher"]["LA"] for run in tested]
    assert f"it gets {int(min(values))} to {max(values):.0f}% of the newest classes" in said()
    assert f"its teacher ends at {min(teachers):.1f} to {max(teachers):.1f}%" in said()


Network = tuple[str, tuple[int, ...]]  # method and heads


def by_network() -> dict[Network, dict[int, record.Record]]:
    runs: dict[Network, dict[int, record.Record]] = {}
    for run in main_stream():
        runs.setdefault((run.method, tuple(run.heads)), {})[run.seed] = run
    return runs


def difference(one: Network, other: Network) -> str:
    """LA of one minus the other, paired by seed, with its 95% interval."""
    first, second = (by_network()[network] for network in (one, other))
    gains = [(first[seed].LA or 0.0) - (second[seed].LA or 0.0) for seed in sorted(first.keys() & second.keys())]
    return "{:.1f} ± {:.1f}".format(*interval(gains))


def test_what_the_readme_says_of_the_variants() -> None:
    ia, sta, dne, progressive = ((name, (3, 1, 1, 1, 1, 1)) for name in ("ia", "sta", "dne", "progressive"))
    text = f"DNE (LA {difference(dne, ia)} above IA, paired by seed) and the plain linear cross connections of eq. 11 "
    text += f"({difference(progressive, ia)} above IA) are the better variants; "
    assert text + f"STA's gain over IA ({difference(sta, ia)})" in said()
    text = f"DNE is not told apart from STA ({difference(dne, sta)} above it) nor from the linear connections "
    assert text + f"({difference(dne, progressive)})" in said()
    costs = [by_network()[network][0] for network in (dne, progressive)]
    literal, spent = costs[0].flops_literal or 0, costs[0].flops_spent or 0
    assert round(literal / (costs[1].flops_literal or 1)) == 4 and round(spent / (costs[1].flops_spent or 1)) == 2


def test_what_the_readme_says_of_heads() -> None:
    runs = by_network()
    dne = {k: ("dne", (3, *[k] * 5)) for k in (1, 4, 7)}
    ia = {k: ("ia", (k,) * 6) for k in (1, 4, 12)}
    first = [run.accuracy[0][0] for run in runs[ia[1]].values()]
    assert f"{min(first):.0f} to {max(first):.0f}% of its classes" in said()
    cost = {key: (seeds[0].flops_literal or 0) / (runs[dne[1]][0].flops_literal or 1) for key, seeds in runs.items()}
    text = (
        f"DNE (k = 1) is {difference(dne[1], ia[4])} above IA with four, which costs {cost[ia[4]]:.1f} times as much, "
    )
    text += f"and {difference(dne[1], ia[12])} above IA with twelve, which costs {cost[ia[12]]:.0f} times as much"
    assert text in said()
    assert f"(k = 4: {difference(dne[1], dne[4])} below k = 1; k = 7: {difference(dne[1], dne[7])})" in said()


def test_what_the_readme_says_of_methods_against_replay() -> None:
    last = {name: {r.seed: r.LA or 0.0 for r in main_stream() if r.method == name} for name in (*ON_RESNETS, REPLAY)}
    told = []
    for method in ON_RESNETS:
        mean, width = interval([last[method][seed] - last[REPLAY][seed] for seed in last[REPLAY]])
        told.append(f"{abs(mean):.1f} ± {width:.1f}")
        assert (mean > 0) == (method == "icarl")
    icarl, podnet, der, foster = told
    text = f"iCaRL is {icarl} above, DER {der}, PODNet {podnet} and FOSTER {foster} below (paired by seed)"
    assert text in said()
    for one, other in itertools.combinations(ON_RESNETS, 2):  # "no two of the four are told apart"
        mean, width = interval([last[one][seed] - last[other][seed] for seed in last[one]])
        assert abs(mean) < width, (one, other)


def test_podnet_starts_slowly() -> None:
    losses = pd.read_csv(FIGURES / "records" / "digits100_podnet_task1_curves.csv")["nca"].tolist()
    assert len(losses) == 15 and losses[1] > 0.95 * losses[0] and losses[3] < 0.5 * losses[0]


def test_every_method_learns_and_the_bounds_hold() -> None:
    """Each learns its newest classes; replay is above fine-tuning and joint training above all, network by network.

    IA with one head in every expert is left out: it hardly learns the first 50, as the README says.
    """
    last: dict[str, list[float]] = {}
    for run in runs_of(*DIGITS100):
        if run.heads == [1] * 6:
            continue
        last.setdefault(run.method, []).append(run.LA or 0.0)
        for number, row in enumerate(run.accuracy, start=1):
            assert row[-1] > 3 * 100 / sum(run.tasks[:number]), (run.id, number)
    means = {method: interval(values)[0] for method, values in last.items()}
    for network, methods in (("", ["dytox", "ia", "sta", "dne", "progressive"]), ("-resnet", ON_RESNETS)):
        assert means[f"finetune{network}"] < means[f"replay{network}"] < means[f"joint{network}"]
        assert all(means[method] < means[f"joint{network}"] for method in methods)


def test_other_predictions_are_in_the_records() -> None:
    others = {"icarl": ["classifier"], "foster": ["teacher"]}
    for run in runs_of(*DIGITS100, *CIFAR):
        assert list(run.other_predictions) == others.get(run.method, [])


def test_the_cost_of_the_baselines_in_the_readme() -> None:
    rows = {row[0]: row[3:] for row in rows_of(readme(), "ours agrees\nwith their code.")}
    names = {"iCaRL": "icarl", "PODNet": "podnet", "DyTox": "dytox", "DER": "der", "FOSTER": "foster"}
    assert len(rows) == 9
    for label, cells in rows.items():
        title, tasks = label.split(", ")
        file = FIGURES / "records" / "cost" / f"{names[title]}-{tasks.replace(' ', '')}.json"
        last = json.loads(file.read_text())[-1]
        assert cells[:2] == [f"{last[name] / 1e9:.3f}" for name in ("flops_literal", "flops_spent")]
        assert cells[2] == f"{last['params_total'] / 1e6:.2f}"


def test_fine_tuning_needs_more_steps() -> None:
    """What the README says of its newest classes: with four times the epochs it learns them."""
    runs = {run.config["learn"]["epochs"]: run for run in runs_of("digits100-finetune-check") if run.LA}
    assert (round(min(newest(runs[60]))), round(max(newest(runs[60])))) == (82, 92)
    others = [run for run in runs_of("digits100-finetune-check") if run.epochs == 15]
    assert len(others) == 3 and all(min(newest(run, 2)) < 66 for run in others)
