"""The command that imports: other people's results as records marked so, beside ours in the tables of `report`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from dne_lab.commands.arguments import Json
from dne_lab.core.errors import LabError, visible


def import_results(
    program: Annotated[str, typer.Argument(metavar="pycil|mammoth", help="What wrote the files.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="PyCIL's logs; Mammoth's mean_accs.csv or logs.pyd.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("runs/imported"),
    tasks: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Classes of each task, where the file does not say.")
    ] = None,
    prediction: Annotated[
        str | None, typer.Option(metavar="cnn|nme", help="Of PyCIL. Default: nme of iCaRL, cnn of all others.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read the results of PyCIL or Mammoth as records, marked as imported.

    Then `dne-lab report runs runs/imported` has them in its tables, as iCaRL (PyCIL), der (Mammoth). Figures, paired
    differences and gates are of runs that were trained here alone. The same file again writes the same records.
    """
    from dne_lab.core.files import file_name, refuse_file
    from dne_lab.data.stream import sizes
    from dne_lab.measure import tables
    from dne_lab.measure.imported import read

    refuse_file(out)
    split = () if tasks is None else sizes(tasks)
    found = [(file, read(program, file, split, prediction)) for file in files]
    places = {}
    for file, records in found:
        for number, record in enumerate(records, start=1):
            stem = f"{program}-{record.method}-{record.dataset}-s{record.seed}"
            place = out / f"{file_name(stem)}-{record.imported['sha256'][:8]}-{number}.json"
            if place in places:
                raise LabError(f"{file} was given twice, or a copy of it: give each file once.")
            places[place] = record
    for place, record in places.items():
        record.write(place)
    made = list(places.values())
    print(json.dumps([r.content() for r in made], indent=1) if as_json else tables.to_text(tables.summary(made)))
    for record in made:
        if not record.finished:
            done = f"{len(record.seen_accuracy)} of {len(record.tasks)} tasks"
            print(
                visible(f"{record.method} s{record.seed}: {done}. Tables leave it out until all are there."),
                file=sys.stderr,
            )
    count = f"{len(made)} record{'s' * (len(made) != 1)}"
    print(visible(f"{count} in {out}. Next: dne-lab report runs {out}"), file=sys.stderr)
