"""What a report is made of: a finished run, read and checked.

The one thing to know: only `config.json` and `results.json` must be there. A file that
is missing leaves its field None and the page says so; a file that is damaged is an
error that names it.
"""

import contextlib
import csv
import dataclasses
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqa_jax import evaluate, run, schema
from tqa_jax.report import files, interpreted


@dataclasses.dataclass(frozen=True)
class Record:
    """A finished run; the fields that may be None are files that may be missing."""

    folder: pathlib.Path
    config: Mapping[str, Any]
    tasks: Sequence[schema.Task]
    modalities: Sequence[schema.Modality]
    data_path: str
    results: files.Results
    predictions: evaluate.Predictions | None
    log: files.Log | None
    audit: files.Audit | None
    environment: Mapping[str, Any] | None
    representation: files.Representation | None
    has_reference: bool
    interpretation: interpreted.Interpretation | None
    stale_interpretation: bool


def load(folder: pathlib.Path) -> Record:
    """Reads the folder of a finished run.

    Args:
        folder: of the run.

    Raises:
        InputError: when there is no run, it is not finished, or a file is damaged.
    """
    found = run.Run.load(folder)
    with _reading(folder / "config.json"):
        config = dict(found.description["config"])
        described = found.data_schema
        data_path = str(found.description["data"]["path"])
    tasks = described.task_names
    with _reading(folder / "results.json"):
        results = files.results(found.results, tasks)
    interpretation = _file(folder / interpreted.FILE, interpreted.read, tasks)
    there = (folder / interpreted.FILE).is_file()
    predicted = (folder / "predictions.csv").is_file()
    return Record(
        folder=folder,
        config=config,
        tasks=described.tasks,
        modalities=described.modalities,
        data_path=data_path,
        results=results,
        predictions=found.predictions() if predicted else None,
        log=_file(folder / "metrics.jsonl", files.log, tasks),
        audit=_file(folder / "audit.json", files.audit),
        environment=_file(folder / "environment.json", files.json_object),
        representation=_file(folder / "representation.npz", files.representation),
        has_reference=(folder / "reference.npz").is_file(),
        interpretation=interpretation,
        stale_interpretation=there and interpretation is None,
    )


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    """Turns what goes wrong when a file does not hold what it should into one line."""
    try:
        yield
    except schema.InputError as error:
        raise schema.InputError(f"{path} is damaged: {error}") from error
    except KeyError as error:
        raise schema.InputError(f"{path} is damaged: no {error}") from error
    except (
        *(TypeError, ValueError, AttributeError, IndexError, OverflowError),
        *(RuntimeError, MemoryError, EOFError),
        *(csv.Error, zipfile.BadZipFile, zlib.error),
    ) as error:
        raise schema.InputError(f"{path} is damaged: {error}") from error


def _file(path: pathlib.Path, read, *arguments) -> Any:
    if not path.is_file():
        return None
    with _reading(path):
        return read(path, *arguments)
