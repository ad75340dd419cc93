"""`coach evaluate`: how far the judges agree with people.

Figures go to standard output, as tables or `--json`; progress and complaints to standard error.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import trio
import typer

from ..errors import ConfigurationError
from .options import ConfigOption, DataDirOption, load

if TYPE_CHECKING:
    from rich.table import Table

    from .. import config
    from ..agreement import Agreement, Evaluation, PanelFigures, Report, ScoredEssays
    from ..evaluation import AnswerFile, Estimate, Work
    from ..ops import Prices

EVALUATED: Final = "evaluation.json"
CONFUSION: Final = "confusion.png"
PACKAGES: Final = ("numpy", "sklearn", "matplotlib")

ResultsOption = Annotated[
    Path | None,
    typer.Option("--results", help="Folder for answers and figures; default ESSAYS.coach."),
]


def evaluate(
    essays: Annotated[
        Path,
        typer.Argument(help="Scored essays: ASAP-AES' columns (tab-separated), or essay,score."),
    ],
    essay_set: Annotated[
        int | None, typer.Option("--set", min=1, help="Only this essay set of ASAP-AES.")
    ] = None,
    low: Annotated[
        float | None, typer.Option("--min", help="Lowest score there is; default from the data.")
    ] = None,
    high: Annotated[float | None, typer.Option("--max", help="Highest score there is.")] = None,
    step: Annotated[float, typer.Option(help="Between two scores.")] = 1.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    task: Annotated[
        str | None, typer.Option(help="What was to be written: a text, or @file.")
    ] = None,
    assignment: Annotated[
        str | None, typer.Option(help="Or the id of an assignment of the rubric.")
    ] = None,
    results: ResultsOption = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests at once.")] = 8,
    org: Annotated[str, typer.Option(help="Who pays, in the bill.")] = "evaluation",
    coverage: Annotated[
        float, typer.Option(min=0.5, max=0.99, help="Of the intervals around grades.")
    ] = 0.9,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be asked and cost; ask nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON value.")] = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Have the judges grade essays that people have scored, and say how far they agree.

    Judges are asked in the background lane. Stopped at any moment, the same command goes on.
    """
    from ..agreement import read_essays
    from ..evaluation import Work, estimate, open_answers
    from ..grading import load_rubric
    from ..ops import load_prices

    need_packages()
    settings = load(config_file, data_dir)
    if not settings.provider:
        raise ConfigurationError("no [[provider]] is configured: who is to judge?")
    rubric, prices = load_rubric(settings.grading.rubric), load_prices(settings)
    try:
        found = read_essays(
            _read(essays), essay_set=essay_set, low=low, high=high, step=step, count_max=limit
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"{essays}: {error}") from error
    if assignment is not None and rubric.known(assignment) == "":
        raise ConfigurationError(f"the rubric has no assignment {assignment!r}")
    work = Work(
        essays=found.essays,
        rubric=rubric,
        task=rubric.task(assignment) if task is None else _task(task),
        judges={provider.name: provider.model for provider in settings.provider},
    )
    folder = results or essays.with_name(f"{essays.name}.coach")
    with open_answers(folder) as answers:
        before = estimate(work, answers, settings, prices)
        if dry_run:
            _print_estimate(found, work, before, prices, settings, as_json=as_json)
            return
        started_at = time.monotonic()
        if before.answers:
            _ask(settings, work, answers, before, org=org, concurrency=concurrency)
        seconds = time.monotonic() - started_at
        evaluation = _evaluation(found, work, answers, source=essays.name)
        spent = _spent(work, answers, before.answers, seconds)
    (folder / EVALUATED).write_bytes(msgspec.json.format(msgspec.json.encode(evaluation)))
    _report(evaluation, rubric, coverage, spent, prices, settings, folder, as_json=as_json)


def need_packages() -> None:
    """Raises ConfigurationError where the extra's packages are missing: one line."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ConfigurationError(
            f"{', '.join(missing)} must be installed for this: pip install 'coach[evaluate]'"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read it: {error.strerror}") from error


def _task(text: str) -> str:
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--task {text}: cannot read the file: {error}") from error


def _ask(
    settings: config.Settings,
    work: Work,
    answers: AnswerFile,
    before: Estimate,
    *,
    org: str,
    concurrency: int,
) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from ..evaluation import judge_essays

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=before.answers)
        missing = trio.run(
            partial(
                judge_essays,
                settings,
                work,
                answers,
                org=org,
                concurrency=concurrency,
                on_answer=partial(progress.advance, bar),
            )
        )
    for judge, count in sorted(missing.items()):
        typer.echo(
            f"{judge} gave no answer to {count} of {len(work.essays)} essays; "
            "the same command asks again",
            err=True,
        )


def _evaluation(found: ScoredEssays, work: Work, answers: AnswerFile, *, source: str) -> Evaluation:
    """One model for each judge: the one that answered most; what others said is left out."""
    from ..agreement import Evaluation, JudgedEssay

    found_all = work.found(answers)
    answered = {judge: Counter({model: 0}) for judge, model in work.judges.items()}
    for (_, judge), saved in found_all.items():
        answered[judge][saved.answer.model] += 1
    models = {judge: counts.most_common(1)[0][0] for judge, counts in answered.items()}
    said = {
        pair: saved for pair, saved in found_all.items() if saved.answer.model == models[pair[1]]
    }
    return Evaluation(
        source=source,
        rubric=work.rubric.fingerprint(),
        judges=models,
        low=found.scale.low,
        high=found.scale.high,
        step=found.scale.step,
        rater_low=found.rater_scale.low,
        rater_high=found.rater_scale.high,
        raters_in_label=found.raters_in_label,
        essays=tuple(
            JudgedEssay(
                key=essay.key,
                id=essay.id,
                score=essay.score,
                raters=essay.raters,
                bands={
                    judge: {
                        name: judgement.band
                        for name, judgement in said[essay.key, judge].answer.criteria.items()
                    }
                    for judge in work.judges
                    if (essay.key, judge) in said
                },
            )
            for essay in found.essays
        ),
    )


def _spent(work: Work, answers: AnswerFile, asked: int, seconds: float) -> dict[str, Any]:
    """What all answers of the evaluation cost, those of earlier runs among them."""
    said = list(work.found(answers).values())
    judges = {}
    for judge in work.judges:
        of_judge = [each for each in said if each.judge == judge]
        waits = [each.seconds for each in of_judge]
        judges[judge] = {
            "answers": len(of_judge),
            "nano": sum(each.nano or 0 for each in of_judge),
            "unpriced": sum(each.nano is None for each in of_judge),
            "seconds_median": median(waits) if waits else None,
        }
    return {"asked_now": asked, "seconds": round(seconds, 1), "judges": judges}


# -- what is printed ---------------------------------------------------------------------------


def _print_estimate(
    found: ScoredEssays,
    work: Work,
    before: Estimate,
    prices: Prices,
    settings: config.Settings,
    *,
    as_json: bool,
) -> None:
    currency = settings.costs.currency
    cost = prices.from_nano(before.nano, currency)
    if as_json:
        record = {
            "essays": len(found.essays),
            "skipped": found.skipped,
            "judges": work.judges,
            "answers": before.answers,
            "input_tokens": before.input,
            "output_tokens": before.output,
            "cost": f"{cost:.4f}",
            "currency": currency,
            "unpriced": before.unpriced,
            "measured": before.measured,
        }
        typer.echo(msgspec.json.format(msgspec.json.encode(record)))
        return
    typer.echo(
        f"{len(found.essays)} essays on {found.scale}, judged by {', '.join(work.judges)}"
        + (f"; {found.skipped} rows without essay or score left out" if found.skipped else "")
    )
    typer.echo(
        f"{before.answers} answers are missing: about {before.input:,} tokens of input, "
        f"{before.output:,} of output, {cost:.2f} {currency}"
        + ("" if before.measured else " (input counted as if nothing were cached)")
    )
    if before.unpriced:
        typer.echo(f"without the price of {', '.join(before.unpriced)}, which nobody knows")


def _report(
    evaluation: Evaluation,
    rubric: Any,
    coverage: float,
    spent: Mapping[str, Any],
    prices: Prices,
    settings: config.Settings,
    folder: Path,
    *,
    as_json: bool,
) -> None:
    from ..agreement import draw_confusion, report

    found = report(evaluation, rubric, coverage=coverage)
    currency = settings.costs.currency
    for of_judge in spent["judges"].values():
        of_judge["cost"] = f"{prices.from_nano(of_judge.pop('nano'), currency):.4f}"
    try:
        draw_confusion(found, folder / CONFUSION, title=evaluation.source)
    except OSError as error:
        raise ConfigurationError(f"{folder / CONFUSION}: {error.strerror}") from error
    if as_json:
        record = {
            **msgspec.to_builtins(found),
            "spent": {**spent, "currency": currency},
            "plot": str(folder / CONFUSION),
        }
        typer.echo(msgspec.json.format(msgspec.json.encode(record)))
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 200  # for a pipe nothing is folded
    console.print(_panels_table(found))
    console.print()
    console.print(_recalibration_table(found))
    console.print()
    console.print(_bias_table(found, spent["judges"], currency))
    for line in [*_of_people(found), *_of_intervals(found)]:
        console.print(line, highlight=False)
    console.print(f"plot: {folder / CONFUSION}", highlight=False, soft_wrap=True)


def _panels_table(found: Report) -> Table:
    table = _table("as judged", *("essays", "QWK", "95 %", "exact", "adjacent", "bias", "spread"))
    for panel in found.panels:
        table.add_row(_name(panel), *_cells(panel.all))
    if found.humans is not None:
        table.add_row("second person", *_cells(found.humans))
    return table


def _recalibration_table(found: Report) -> Table:
    table = _table(
        f"{found.held_out} held-out essays",
        *("as judged", "offset", "and scale", "chosen", "bias", "then", "interval", "covered"),
    )
    for panel in found.panels:
        stages = (panel.held_out, panel.offset, panel.scale, panel.recalibrated)
        then = (panel.held_out, panel.recalibrated)
        table.add_row(
            _name(panel),
            *("–" if each is None else _two(each.qwk) for each in stages),
            *("–" if each is None else f"{each.bias:+.1f}" for each in then),
            "–" if panel.margin is None else f"± {panel.margin:g}",
            "–" if panel.covered is None else f"{panel.covered:.0%}",
        )
    return table


def _bias_table(found: Report, spent: Mapping[str, Any], currency: str) -> Table:
    criteria = list(next(iter(found.bias.values()), {}))
    table = _table("bias of 100", *criteria, "recalibration", "answers", currency, "seconds")
    for judge, biases in found.bias.items():
        line, of_judge = found.lines[judge], spent[judge]
        seconds = of_judge["seconds_median"]
        table.add_row(
            judge,
            *(f"{biases[name]:+.1f}" if name in biases else "–" for name in criteria),
            f"{line.offset:+.1f}, × {line.scale:.2f} ({found.stages[judge]})",
            str(of_judge["answers"]),
            of_judge["cost"] if not of_judge["unpriced"] else "no price",
            "–" if seconds is None else f"{seconds:.1f}",
        )
    if any(found.bias.values()):
        table.add_row(
            "mean",
            *(
                f"{fmean(each[name] for each in found.bias.values() if each):+.1f}"
                for name in criteria
            ),
        )
    return table


def _of_people(found: Report) -> list[str]:
    top = found.ceilings
    if top is None:
        return ["scores of one person only: what agreement can be reached is not known"]
    return [
        f"two people agree with QWK {_two(top.human)}; reliability {_two(top.reliability)}",
        (
            f"ceilings by classical test theory: {_two(top.perfect)} for a judge without error, "
            f"{_two(top.humanlike)} for one that errs like a person"
        ),
    ]


def _of_intervals(found: Report) -> list[str]:
    fitted = (
        f"fitted on {found.fitted_on} essays, intervals ({found.coverage:.0%}) on "
        f"{found.intervals_on}, reported on {found.held_out}"
    )
    if found.panels[-1].margin is None:
        fitted += f"; intervals need about {found.essays_needed} essays"
    return [fitted]


def _table(first: str, *headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _cells(found: Agreement) -> list[str]:
    return [
        f"{found.essays:,}",
        _two(found.qwk),
        f"{_two(found.low)} to {_two(found.high)}",
        f"{found.exact:.0%}",
        f"{found.adjacent:.0%}",
        f"{found.bias:+.1f}",
        _two(found.spread),
    ]


def _name(panel: PanelFigures) -> str:
    return " + ".join(panel.judges)


def _two(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
