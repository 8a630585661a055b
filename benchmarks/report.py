"""The results of a run: as JSON for programs, and as tables for people."""

import dataclasses
import datetime as dt
import json
import math
import os
import pathlib
import platform
import statistics
from typing import Any

from benchmarks.aims import Aim, aims
from benchmarks.measure import Measure, Result
from benchmarks.system import OURS

BEGIN, END = "<!-- figures: written by make bench -->", "<!-- end of figures -->"
Report = dict[str, Any]
"""The JSON of a run: see `assembled`."""


def machine() -> dict[str, str]:
    model = ""
    cpus = pathlib.Path("/proc/cpuinfo")
    if cpus.exists():
        models = [line.partition(":")[2].strip() for line in cpus.read_text().splitlines() if "model name" in line]
        model = models[0] if models else ""
    return {
        "processor": model or platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def assembled(
    plan: str, begun: dt.datetime, seconds: float, server: dict[str, str], systems: dict[str, Any],
    missing: dict[str, str], places: dict[str, dict[str, str]], found: list[tuple[Measure, list[Result]]],
) -> Report:  # fmt: skip
    """`measures` has rows by the name of the measure. A row has medians by column and samples, or a reason without."""
    measures = {measure.name: _measure(measure, results) for measure, results in found}
    return {
        "plan": plan,
        "begun": begun.isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "machine": machine(),
        "server": server,
        "systems": systems,
        "missing": missing,
        "places": places,
        "measures": measures,
        "aims": [dataclasses.asdict(aim) for aim in aims(measures)],
    }


def write(report: Report, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")


def publish(report: Report, page: pathlib.Path) -> None:
    """Write the tables between the two markers of a page. Raises ValueError if the page does not have them."""
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page}: the lines {BEGIN!r} and {END!r} are not in it")
    page.write_text(f"{before}{BEGIN}\n\n{markdown(report)}\n{END}{after}")


def markdown(report: Report) -> str:
    parts = [_head(report), _aims(report), *map(_section, report["measures"].values()), _systems(report)]
    return "\n".join(part for part in parts if part)


def _measure(measure: Measure, results: list[Result]) -> dict[str, Any]:
    return {
        "title": measure.title,
        "said": measure.said,
        "columns": [dataclasses.asdict(column) for column in measure.columns],
        "rows": [_row(measure, result) for result in results],
    }


def _row(measure: Measure, result: Result) -> dict[str, Any]:
    medians = {}
    for column in measure.columns:
        values = [sample[column.name] for sample in result.samples if column.name in sample]
        if values and all(map(math.isfinite, values)):
            medians[column.name] = statistics.median(values)
    return {
        "label": result.subject.label,
        "system": result.subject.system,
        "medians": medians,
        "samples": result.samples,
        "reason": result.reason,
    }


def _head(report: Report) -> str:
    told = report["machine"]
    places = [f" {place}: {_settings(told)}." for place, told in report["places"].items()]
    return (
        f'Plan "{report["plan"]}", begun {report["begun"]}, {report["seconds"]:,.0f} s; {told["processor"]}, '
        f"{told['cores']} cores for clients and server together, {told['system']}, Python {told['python']}. "
        f"PostgreSQL with {_settings(report['server'])}; everything else as `initdb` sets it.{''.join(places)} "
        "The figures are medians of the rounds.\n"
    )


def _settings(told: dict[str, str]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in told.items())


def _aims(report: Report) -> str:
    reached: list[Aim] = [Aim(**aim) for aim in report["aims"]]
    if not reached:
        return ""
    rows = [f"| {one.what} | {one.aim} | {one.found} | {'yes' if one.is_reached else 'no'} |" for one in reached]
    return "\n".join(["### Aims", "", "| | aim | found | reached |", "|---|---|---|---|", *rows, ""])


def _section(measure: dict[str, Any]) -> str:
    columns = [one for one in measure["columns"] if any(one["name"] in row["medians"] for row in measure["rows"])]
    columns = columns or measure["columns"][:1]
    main = columns[0]["name"]
    ours = [row for row in measure["rows"] if row["system"] == OURS and main in row["medians"]]
    first = ours[0]["medians"][main] if ours else None
    heads = ["", *(one["heading"] for one in columns), *(f"to {one['label'].partition(',')[0]}" for one in ours[:1])]
    lines = [f"### {measure['title']}", "", measure["said"], "", _line(heads), _line(["---"] * len(heads))]
    for row in sorted(measure["rows"], key=lambda row: -row["medians"].get(main, -math.inf)):
        lines.append(_line([row["label"], *_cells(row, columns, first)]))
    return "\n".join([*lines, "", *_curves(measure)])


def _cells(row: dict[str, Any], columns: list[dict[str, Any]], ours: float | None) -> list[str]:
    if not row["medians"]:
        return [f"- ({row['reason']})", *[""] * (len(columns) - 1 + (ours is not None))]
    cells = [
        f"{row['medians'][one['name']]:,.{one['digits']}f}" if one["name"] in row["medians"] else "-" for one in columns
    ]
    first = row["medians"].get(columns[0]["name"])
    return [*cells, *([f"{first / ours:.2f}" if first is not None and ours else "-"] if ours is not None else [])]


def _curves(measure: dict[str, Any]) -> list[str]:
    lines = []
    for row in measure["rows"]:
        for sample in row["samples"][:1]:
            if "curve" in sample:
                lines += [f"{row['label']}: {', '.join(f'{one:,.0f}' for one in sample['curve'])}.", ""]
    return lines


def _systems(report: Report) -> str:
    lines = ["### Versions and settings", "", _line(["", "version", "settings"]), _line(["---"] * 3)]
    for name, told in report["systems"].items():
        settings = "; ".join(f"{key}: {value}" for key, value in told["settings"].items())
        lines.append(_line([name, told["version"], settings]))
    lines += [_line([name, "-", f"left out: {reason}"]) for name, reason in report["missing"].items()]
    return "\n".join([*lines, ""])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"
