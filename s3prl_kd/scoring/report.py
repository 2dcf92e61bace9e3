"""RESULTS.md and the table on the terminal, all of it from a results.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from s3prl_kd.scoring.claims import ACCURACY, EER, PAPER, REDUCTION, judge, percent, points
from s3prl_kd.scoring.plots import TITLES, best_kws
from s3prl_kd.scoring.results import TRAININGS, Dataset, Estimate, Results, Row

NOTHING = "nothing to fine-tune"
UNSCORED = "not scored"
COLUMNS = (
    "system",
    "upstream training",
    "parameters",
    "of the teacher",
    "heads",
    "KWS accuracy %",
    "to the teacher",
    "SV EER %",
    "to the teacher",
    "minDCF(0.01)",
    "minDCF(0.05)",
    "paper's claim",
)
# Above this many speakers the percentiles of a speaker bootstrap are no longer visibly coarse.
FEW_SPEAKERS = 20


def write_report(results: Results, pictures: Sequence[Path]) -> str:
    """RESULTS.md as text.

    Args:
        results: the run.
        pictures: PNGs to show, in the same directory as RESULTS.md.
    """
    parts = [
        f"# Results on {results.corpus}",
        "",
        *_markdown(COLUMNS, table(results)),
        "",
        *_notes(results),
        "",
        f"## The paper's claims ({PAPER}) and these numbers",
        "",
        *(
            f"- **{judged.verdict}**: {judged.claim}. {judged.sentence}"
            for judged in judge(results)
        ),
        "",
        *_per_class(results),
        "## How these numbers were made",
        "",
        *_provenance(results),
        "",
    ]
    if results.missing:
        parts += ["Missing, so left out:", "", *(f"- `{path}`" for path in results.missing), ""]
    for picture in pictures:
        parts += [f"![{picture.stem.replace('_', ' ')}]({picture.name})", ""]
    return "\n".join(parts)


def table(results: Results) -> list[list[str]]:
    """Cells of the table, a list per row, in the order of ``COLUMNS``."""
    rows = []
    for system in results.systems:
        for training in TRAININGS:
            row = results.row(system, training)
            if row is None:
                rows.append(_empty(results, system, training))
                continue
            rows.append(
                [
                    system,
                    TITLES[training],
                    parameters(row.upstream_params),
                    _share(row),
                    parameters(row.head_params),
                    as_percent(row.metrics.get("accuracy")),
                    _to_teacher(results, row, "accuracy"),
                    as_percent(row.metrics.get("eer")),
                    _to_teacher(results, row, "eer"),
                    as_cost(row.metrics.get("min_dcf_0.01")),
                    as_cost(row.metrics.get("min_dcf_0.05")),
                    _claim(results, row),
                ]
            )
    return rows


def _empty(results: Results, system: str, training: str) -> list[str]:
    frozen = results.row(system, "frozen")
    why = NOTHING if frozen is not None and frozen.upstream_params == 0 else UNSCORED
    blank = ["–"] * (len(COLUMNS) - 2)
    # The two columns of scores say why.
    blank[3] = blank[5] = why
    return [system, TITLES[training], *blank]


def _share(row: Row) -> str:
    return "–" if row.share_of_teacher is None else f"{percent(row.share_of_teacher)} %"


def _to_teacher(results: Results, row: Row, metric: str) -> str:
    if row.system == results.roles.get("teacher"):
        return "–"
    difference = row.differences.get("teacher", {}).get(metric)
    return UNSCORED if difference is None else points(difference)


def _claim(results: Results, row: Row) -> str:
    if (row.system, row.training) != (results.roles.get("distilled"), "joint"):
        return "–"
    return (
        f"~{percent(REDUCTION, 0)} % fewer parameters, accuracy {percent(ACCURACY, sign=True)}, "
        f"EER {percent(EER, sign=True)}"
    )


def parameters(count: int) -> str:
    """A number of parameters, readable: ``23.5 M``, ``640 k``, ``0``."""
    if count >= 1_000_000:
        return f"{count / 1e6:.2f} M"
    return f"{count / 1e3:.1f} k" if count >= 1000 else str(count)


def as_percent(estimate: Estimate | None) -> str:
    """``91.2 [88.0, 94.1]`` of an estimate in shares of 1."""
    if estimate is None:
        return UNSCORED
    if estimate.low is None or estimate.high is None:
        return f"{percent(estimate.value)} (no interval)"
    return f"{percent(estimate.value)} [{percent(estimate.low)}, {percent(estimate.high)}]"


def as_cost(estimate: Estimate | None) -> str:
    """``0.412 [0.377, 0.460]``."""
    if estimate is None:
        return UNSCORED
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f} (no interval)"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "| " + " | ".join(["---"] * len(header)) + " |",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _notes(results: Results) -> list[str]:
    sizes = []
    few = None
    kws = next((row.kws for row in results.rows if row.kws), None)
    sv = next((row.sv for row in results.rows if row.sv), None)
    if kws:
        sizes.append(f"KWS: {kws.utterances} utterances of {kws.speakers} speakers")
        few = kws.speakers
    if sv:
        sizes.append(f"SV: {sv.trials} trials ({sv.targets} target) of {sv.speakers} speakers")
        few = min(few or sv.speakers, sv.speakers)
    notes = [
        f"Tested on {'; '.join(sizes)}"
        + (f", pooled over {len(results.datasets)} folds." if len(results.datasets) > 1 else "."),
        f"Brackets: 95 % interval of {results.bootstrap} bootstrap draws of test speakers. They "
        "hold the spread between test speakers, not between training seeds; one without width "
        "means that all test speakers fared alike, not that all speakers would.",
        '"To the teacher": difference in percentage points to the teacher in the same training, '
        "its interval from the same draws of speakers.",
        "Parameters: of one upstream, without heads. Frozen, one upstream serves both tasks; "
        "fine-tuned alone, each task has an upstream of its own, so both take twice the number; "
        "fine-tuned jointly, one serves both.",
    ]
    if few is not None and few < FEW_SPEAKERS:
        notes.append(f"With {few} test speakers the intervals are coarse.")
    return [f"- {note}" for note in notes]


def _per_class(results: Results) -> list[str]:
    shown = [row for role in ("teacher", "distilled") if (row := best_kws(results, role))]
    if not shown:
        return []
    header = ["class", *(f"{row.system}, {TITLES[row.training]}" for row in shown)]
    rows = []
    for name in shown[0].kws.classes if shown[0].kws else []:
        cells = [name]
        for row in shown:
            found = row.kws.per_class.get(name) if row.kws else None
            recall, precision = (
                "–" if not found or found[key] is None else percent(found[key])
                for key in ("recall", "precision")
            )
            cells.append(f"{recall} / {precision}")
        rows.append(cells)
    return ["## KWS per class: recall / precision, %", "", *_markdown(header, rows), ""]


def _provenance(results: Results) -> list[str]:
    seconds = sum(row.seconds for row in results.rows)
    lines = [
        f"- command: `{results.command}`",
        f"- made {results.created}, at commit {results.commit or 'unknown (not in git)'}",
        f"- seed of the bootstrap: {results.seed}",
        f"- training of the downstream systems: {seconds / 60:.1f} minutes together",
        "- versions: " + ", ".join(f"{name} {v}" for name, v in results.versions.items()),
    ]
    return lines + [f"- data `{dataset.path}`: {_sizes(dataset)}" for dataset in results.datasets]


def _sizes(dataset: Dataset) -> str:
    return "; ".join(
        f"{split} {size['utterances']:.0f} utterances, {size['speakers']:.0f} speakers, "
        f"{60 * size['hours']:.1f} min"
        for split, size in dataset.splits.items()
    )


def print_table(results: Results) -> None:
    """The table without the paper's column, on the terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    shown = [0, 1, 2, 3, 5, 6, 7, 8, 9]
    drawn = Table(title=f"Results on {results.corpus} (95 % intervals over speakers)")
    for index in shown:
        drawn.add_column(COLUMNS[index], justify="left" if index < 2 else "right")
    for cells in table(results):
        drawn.add_row(*(cells[index] for index in shown))
    console.print(drawn)
    for judged in judge(results):
        console.print(f"{judged.verdict}: {judged.claim}. {judged.sentence}", markup=False)
