r"""Makes a data set as `extract.run` does, on Apache Beam: many machines, or one.

    python -m extract.beam --runner=DirectRunner --num_workers=4 \
        --clips=my_clips/ --labels=labels.csv --out=data/mine

Options that `extract.run` has mean the same, all others are
Beam's own. Features of clips go to `<out>.features/`, so clips and `--out` must be
under the same path on every machine (a shared or mounted file system); the shards are
written at the end, by this process, and are the same bytes as those of `extract.run`.
"""

import argparse
import dataclasses
import functools
import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from tqa_jax import cli, machine, schema

with cli.imports():
    import apache_beam as beam
    from apache_beam.options import pipeline_options

    from extract import backends, jobs, measure, run

_JOB = ""  # in place of a clip's fingerprint: what ended the job
_OUTCOMES = "outcomes"


class Measure(beam.DoFn):
    """Measures a clip in a process of its own, networks in Beam's worker.

    A decoder that crashes or hangs ends the process, and the clip is rejected.
    """

    def __init__(
        self,
        store: measure.Store,
        options: backends.Options,
        names: Sequence[str],
        timeout_seconds: float | None,
        device_batch: int | None,
    ) -> None:
        """Keeps the arguments of `measure.measured` and the backends to measure."""
        self._store, self._options, self._names = store, options, names
        self._timeout_seconds, self._device_batch = timeout_seconds, device_batch

    def setup(self) -> None:
        """Starts the process and reads the weights, once in a worker."""
        self._workers = jobs.Workers(1)
        if self._options.networks:
            cli.prepare_jax()
        self._networks = measure.open_networks(
            self._options, self._names, self._device_batch
        )

    def process(
        self, element: tuple[measure.Fingerprint, measure.Job]
    ) -> Iterator[str]:
        """Yields as JSON what came of a clip."""
        key, job = element
        before = self._spent()
        seconds, stages, reason, name = 0.0, {}, None, key.clip
        try:
            ((_, clip),) = measure.observe(
                self._workers, {name: job}, self._options, self._timeout_seconds
            )
            if isinstance(clip, jobs.Failure):
                reason = clip.reason
            else:
                seconds, stages = clip.rows / schema.FPS, clip.seconds
                if clip.pending:
                    done = self._networks.add(name, clip) + self._networks.finish()
                    ((_, clip),) = done
            self._store.keep(key, clip)
        except schema.InputError as error:  # the job cannot go on, and says so once
            name, reason = _JOB, str(error)
        spent = {
            stage: seconds - before[stage] for stage, seconds in self._spent().items()
        }
        yield json.dumps([name, seconds, stages, reason, spent])

    def _spent(self) -> dict[str, float]:
        return {} if self._networks is None else self._networks.seconds

    def teardown(self) -> None:
        """Ends the process."""
        self._workers.close()


def measured(
    work: Mapping[str, measure.Job],
    store: measure.Store,
    keys: Mapping[str, measure.Fingerprint],
    *,
    options: backends.Options,
    tally: measure.Tally,
    num_workers: int | None,
    timeout_seconds: float | None = None,
    device_batch: int | None = None,
    pipeline: Sequence[str] = (),
) -> dict[str, str]:
    """Measures clips and keeps them, as `build.local` does.

    Arguments are those of `build.local`, and `pipeline`, which are Beam's options. The
    store must be on a file system that all workers share.
    """
    if not work:
        return {}
    start = time.perf_counter()
    tally.num_workers = num_workers or machine.cores()
    outcomes = store.folder / _OUTCOMES
    shutil.rmtree(outcomes, ignore_errors=True)
    names = {name for job in work.values() for name in job.names}
    step = Measure(store, options, sorted(names), timeout_seconds, device_batch)
    elements = [
        (keys[key], dataclasses.replace(job, path=job.path.absolute()))
        for key, job in work.items()
    ]
    with beam.Pipeline(options=_options(pipeline)) as job:
        (
            job
            | "clips" >> beam.Create(elements)
            | "spread" >> beam.Reshuffle()
            | "measure" >> beam.ParDo(step)
            | "outcomes" >> beam.io.WriteToText(str(outcomes / "part"))
        )
    reasons = {}
    for part in sorted(outcomes.iterdir()):
        for line in part.read_text(encoding="utf-8").splitlines():
            key, seconds, stages, reason, networks = json.loads(line)
            if key == _JOB:
                raise schema.InputError(reason)
            for stage, spent in networks.items():  # each worker has its own
                before = tally.network_seconds.get(stage, 0.0)
                tally.network_seconds[stage] = before + spent / tally.num_workers
            if reason is None:
                tally.add(seconds, stages)
            else:
                reasons[key] = reason
    shutil.rmtree(outcomes)
    tally.wall_seconds = time.perf_counter() - start
    return reasons


def _refuse(message: str) -> NoReturn:
    raise schema.InputError(f"{message}; see Beam's documentation")


def _options(given: Sequence[str]) -> pipeline_options.PipelineOptions:
    """Reads Beam's options, which by itself ignores those that it does not know.

    Raises:
        schema.InputError: for an unknown option or runner.
    """
    parser = argparse.ArgumentParser(add_help=False, conflict_handler="resolve")
    parser.error = _refuse
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
    options = backends.command_line(run.Options)
    return cli.main(_run, options, arguments, stopped=jobs.STOPPED, rest=True)


def _run(options: run.Options, others: Sequence[str]) -> int:
    for name in ("apache_beam", "root"):
        logging.getLogger(name).setLevel(logging.ERROR)
    count = options.num_workers or machine.cores()
    # The local runner's names for what other runners call `num_workers`; options that
    # are given come later and win.
    local = [
        f"--direct_num_workers={count}",
        "--direct_running_mode=multi_processing",
        "--default_sdk_harness_log_level=ERROR",
    ]
    pipeline = [f"--num_workers={count}", *local, *others]
    _options(pipeline)  # also where nothing has to be measured
    measure = functools.partial(measured, pipeline=pipeline)
    return run.make("extract.beam", options, measure)


if __name__ == "__main__":
    from extract import beam as importable  # workers must find `Measure` by its name

    sys.exit(importable.main())
