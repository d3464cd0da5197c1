r"""Makes a data set as `extract.run` does, on Apache Beam: many machines, or one.

    python -m extract.beam --runner=DirectRunner --num_workers=4 \
        --clips=my_clips/ --labels=labels.csv --out=data/mine

The one thing to know: options that `extract.run` has mean the same, all others are
Beam's own. Results of clips go to `<out>.partial/`, so clips and `--out` must be under
the same path on every machine (a shared or mounted file system); the shards are
written at the end, by this process, and are the same bytes as those of `extract.run`.
"""

import dataclasses
import functools
import json
import logging
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from tqa_jax import cli, machine, schema

with cli.imports():
    import apache_beam as beam
    from apache_beam.options import pipeline_options

    from extract import backends, pool, run, workers

_JOB = ""  # in place of a clip's fingerprint: what ended the job
_OUTCOMES = "outcomes"


class Measure(beam.DoFn):
    """Measures a clip in a process of its own, networks in Beam's worker.

    A decoder that crashes or hangs ends the process, and the clip is rejected.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        options: backends.Options,
        timeout_seconds: float,
        device_batch: int | None,
    ) -> None:
        """Keeps the arguments of `pool.measure`."""
        self._folder, self._options = folder, options
        self._timeout_seconds, self._device_batch = timeout_seconds, device_batch

    def setup(self) -> None:
        """Starts the process and reads the weights, once in a worker."""
        self._workers = workers.start(1)
        if self._options.networks:
            cli.prepare_jax()
        self._networks = pool.open_networks(self._options, self._device_batch)

    def process(self, element: tuple[str, str]) -> Iterator[str]:
        """Yields what came of a clip as JSON, given its fingerprint and its path."""
        before = self._spent()
        try:
            ((key, clip, reason),) = pool.observe(
                self._workers,
                dict([element]),
                self._folder,
                self._options,
                self._timeout_seconds,
            )
            if reason is None and self._networks is not None:
                pool.see(self._networks, self._folder, key)
                pool.finish(self._networks, self._folder)
        except schema.InputError as error:  # the job cannot go on, and says so once
            key, clip, reason = _JOB, None, str(error)
        spent = {
            name: seconds - before[name] for name, seconds in self._spent().items()
        }
        yield json.dumps([key, clip and dataclasses.asdict(clip), reason, spent])

    def _spent(self) -> dict[str, float]:
        return {} if self._networks is None else self._networks.seconds

    def teardown(self) -> None:
        """Ends the process."""
        workers.stop(self._workers)


def measure(
    work: Mapping[str, pathlib.Path],
    folder: pathlib.Path,
    options: backends.Options,
    *,
    num_workers: int,
    timeout_seconds: float,
    device_batch: int | None = None,
    pipeline: Sequence[str] = (),
) -> pool.Progress:
    """Measures the clips that have no result yet, as `pool.measure` does.

    Args:
        work: files by their fingerprints.
        folder: where results are kept, on a file system that all workers share.
        options: how clips are measured.
        num_workers: workers of the runner.
        timeout_seconds: a clip that takes longer is given up.
        device_batch: rows that a network sees at once; None takes its default.
        pipeline: Beam's options.

    Raises:
        schema.InputError: the folder cannot be written, or a network's weights do not
            fit it.
    """
    progress, todo = pool.begin(work, folder)
    if not todo:
        return progress
    start = time.perf_counter()
    progress.num_workers = num_workers
    outcomes = folder / _OUTCOMES
    shutil.rmtree(outcomes, ignore_errors=True)
    step = Measure(folder, options, timeout_seconds, device_batch)
    with beam.Pipeline(options=_options(pipeline)) as job:
        (
            job
            | "clips"
            >> beam.Create([(key, str(path.absolute())) for key, path in todo.items()])
            | "spread" >> beam.Reshuffle()
            | "measure" >> beam.ParDo(step)
            | "outcomes" >> beam.io.WriteToText(str(outcomes / "part"))
        )
    for part in sorted(outcomes.iterdir()):
        for line in part.read_text(encoding="utf-8").splitlines():
            key, clip, reason, networks = json.loads(line)
            if key == _JOB:
                raise schema.InputError(reason)
            for stage, seconds in networks.items():  # each worker has its own
                before = progress.network_seconds.get(stage, 0.0)
                progress.network_seconds[stage] = before + seconds / num_workers
            progress.add(key, clip and pool.Observed(**clip), reason)
    shutil.rmtree(outcomes)
    progress.wall_seconds = time.perf_counter() - start
    return progress


def _options(given: Sequence[str]) -> pipeline_options.PipelineOptions:
    """Reads Beam's options, which by itself ignores those that it does not know.

    Raises:
        schema.InputError: for an unknown option or runner.
    """
    parser = cli.parser(add_help=False, conflict_handler="resolve")
    parser.add_value_provider_argument = parser.add_argument
    for part in pipeline_options.PipelineOptions.__subclasses__():
        part._add_argparse_args(parser)
    known, unknown = parser.parse_known_args(given)
    if unknown:
        raise schema.InputError(
            f"unknown option {unknown[0]}; neither extract.run nor Beam has it"
        )
    if known.runner:
        try:
            beam.runners.create_runner(known.runner)
        except (ValueError, ImportError, AttributeError) as error:
            raise schema.InputError(f"--runner={known.runner}: {error}") from error
    return pipeline_options.PipelineOptions(list(given))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    given, others = run.parser("extract.beam", __doc__).parse_known_args(arguments)
    for name in ("apache_beam", "root"):
        logging.getLogger(name).setLevel(logging.ERROR)
    count = given.num_workers or machine.cores()
    # The local runner's names for what other runners call `num_workers`; options that
    # are given come later and win.
    local = [
        f"--direct_num_workers={count}",
        "--direct_running_mode=multi_processing",
        "--default_sdk_harness_log_level=ERROR",
    ]
    pipeline = [f"--num_workers={count}", *local, *others]

    def work() -> int:
        _options(pipeline)  # also where nothing has to be measured
        return run.make(
            "extract.beam", given, functools.partial(measure, pipeline=pipeline)
        )

    return cli.run(work, stopped=run.STOPPED)


if __name__ == "__main__":
    from extract import beam as importable  # workers must find `Measure` by its name

    sys.exit(importable.main())
