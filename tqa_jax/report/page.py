"""One page about a finished run: an HTML file without scripts that loads nothing.

The page's policy forbids it to. Names and settings come from files and are escaped.
"""

import json
import math
import pathlib
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tqa_jax.report import (
    charts,
    errors,
    files,
    interpretation,
    panels,
    projection,
    record,
    training,
)

_FEW_SOURCES = 20  # Below, intervals over sources are too narrow.
_MOST_GROUPS = 25  # Sources with a row of their own.
_METRICS = {
    "srcc": "SRCC",
    "plcc": "PLCC",
    "krcc": "Kendall τ-b",
    "rmse": "RMSE",
    "mae": "MAE",
    "medae": "Median absolute error",
    "mse": "MSE",
    "r2": "R²",
    "ccc": "CCC",
    "accuracy3": "Accuracy, 3 classes",
    "qwk": "QWK, 5 classes",
    "plcc_fit": "PLCC after logistic fit",
    "rmse_fit": "RMSE after logistic fit",
}


def build(folder: pathlib.Path, *, clips: pathlib.Path | None = None) -> str:
    """Makes the page of a finished run.

    Args:
        folder: of the run.
        clips: folder of the videos, for pictures of the worst clips; None for none.

    Returns:
        A whole HTML document.

    Raises:
        InputError: when the run cannot be read.
    """
    import jinja2

    run = record.load(folder)
    maps, maps_remark = projection.draw(run)
    figures = {
        "results": panels.metric_intervals(run),
        "agreement": panels.agreement(run),
        "groups": [],
        "confidence": panels.confidence(run),
        "curves": training.curves(run),
        "balance": training.balance(run),
        "composition": training.composition(run),
        "correlations": training.correlations(run),
        "maps": maps,
        "importance": interpretation.importance(run),
        "over_time": interpretation.over_time(run),
    }
    by_source, by_split, worst, worst_by_task = [], [], [], {}
    if run.predictions is not None:
        by_source = errors.groups(run, "sources", split="test")
        by_split = errors.groups(run, "splits")
        worst = errors.worst(run, clips=clips)
        worst_by_task = errors.worst_by_task(run)
        columns = np.array([group.by_task for group in by_source])
        figures["groups"] = panels.spread_of_sources(
            [task.name for task in run.tasks], list(columns.T)
        )
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "fixed": _fixed,
        "share": _share,
        "plain": _plain,
        "series": charts.series,
    }
    template = pathlib.Path(__file__).with_name("page.html.j2")
    page = environment.from_string(template.read_text(encoding="utf-8"))
    return page.render(
        run=run,
        results=run.results,
        name=run.audit.name if run.audit else pathlib.PurePath(run.data_path).name,
        kind=str(run.audit.provenance.get("kind", "")) if run.audit else "",
        provenance=dict(_flat(run.audit.provenance)) if run.audit else {},
        metric_names={
            name: _METRICS.get(name, name)
            for name in [*_METRICS, *run.results.average]
            if name in run.results.average
        },
        reasons=_reasons(run.results),
        few_sources=_FEW_SOURCES,
        figures=figures,
        maps_remark=maps_remark,
        interpreted=run.interpretation,
        time_keys=interpretation.keys(run),
        shades=interpretation.shades(),
        interpret="python -m experiments.interpret "
        f"--workdir={shlex.quote(str(folder))}",
        by_source=by_source,
        by_split=by_split,
        most_groups=_MOST_GROUPS,
        worst=worst,
        worst_by_task=worst_by_task,
        with_pictures=clips is not None,
        settings=_settings(run.config),
        environment=dict(_flat(run.environment or {})),
        command=_command(run.environment or {}),
    )


def _number(value: float | None, digits: int = 2) -> str:
    """A number for people: two decimals, or two digits where that would be 0."""
    if value is None or not math.isfinite(value):
        return "–"
    if 0 < abs(value) < 0.5 * 10.0**-digits or abs(value) >= 1e6:
        return f"{value:.2g}"
    return f"{value:.{digits}f}".replace("-", charts.MINUS)


def _fixed(value: float | None) -> str:
    """A number with two decimals, 0 where that is all."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{round(value, 2) + 0.0:.2f}".replace("-", charts.MINUS)


def _share(value: float | None, digits: int = 0) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%".replace("-", charts.MINUS)


def _plain(value: Any) -> str:
    """A setting as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _reasons(results: files.Results) -> dict[str, list[str]]:
    """Why metrics or intervals are undefined: the reason and metrics, then tasks."""
    found: dict[str, list[str]] = {}
    for task, row in results.metrics.items():
        by_reason: dict[str, list[str]] = {}
        for metric, value in row.items():
            if value.reason:
                names = by_reason.setdefault(value.reason, [])
                names.append(_METRICS.get(metric, metric))
        for reason, names in by_reason.items():
            found.setdefault(f"{reason} ({', '.join(names)})", []).append(task)
    return found


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{before}{name}.")
        else:
            yield f"{before}{name}", item


def _settings(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by section; those outside of one come first."""
    found: dict[str, dict[str, Any]] = {"": {}}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found[name] = dict(_flat(value))
        else:
            found[""][name] = value
    return {name: rows for name, rows in found.items() if rows}


def _command(environment: Mapping[str, Any]) -> str:
    command = environment.get("command")
    if not isinstance(command, list):
        return ""
    return "python " + shlex.join(str(part) for part in command)
