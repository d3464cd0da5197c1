"""Two processes on this machine train what one does, and end when one does."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests import small, test_train
from tqa_jax import processes, runner, schema

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# Every part that looks at the whole batch: GradNorm, correlations, micro-batches.
OPTIONS = (
    "--config.train.accumulation=2",
    "--config.train.batch_size=16",
    "--config.train.epochs=2",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "small"
    small.write(path)
    return path


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(workdir, data, *options, count=2, devices=1, own=((), ())):
    """Starts the processes of a run; `own` are options of single ones."""
    port = free_port()
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags}
    started = []
    for index in range(count):
        command = [
            *(sys.executable, "-m", "tqa_jax.main", "--config=configs/smoke.py"),
            *(f"--config.data.path={data}", f"--workdir={workdir}", *options),
        ]
        if count > 1:
            command += [f"--coordinator=localhost:{port}", f"--num_processes={count}"]
            command.append(f"--process_id={index}")
            # An option of its own replaces the common one.
            names = [argument.split("=")[0] for argument in own[index]]
            command = [one for one in command if one.split("=")[0] not in names]
            command += own[index]
        started.append(
            subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def finish(started, timeout=600):
    """Waits for all; returns exit statuses and what each wrote to stderr."""
    try:
        said = [process.communicate(timeout=timeout) for process in started]
    except subprocess.TimeoutExpired:
        for process in started:
            process.kill()
            process.communicate()
        raise
    return [process.returncode for process in started], said


def assert_done(started):
    statuses, said = finish(started)
    assert set(statuses) == {0}, said
    return said


def assert_equal_runs(one, other, tolerance=1e-6):
    """Compares parameters, logs and results of two run folders."""
    first, second = (test_train.saved_arrays(folder) for folder in (one, other))
    assert first.keys() == second.keys() and len(first) > 100
    for name, array in first.items():
        # No score depends on the keys' biases: their gradients are rounding errors,
        # which Adam makes as large as any.
        if "['key']['bias']" not in name:
            np.testing.assert_allclose(
                array, second[name], rtol=tolerance, atol=tolerance, err_msg=name
            )
    logs = [
        [
            json.loads(line)
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (one, other)
    ]
    assert len(logs[0]) == len(logs[1]) > 3
    for a, b in zip(*logs, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"correlation", "clips_per_second"}:
            if not name.startswith("memory/"):
                wanted = b[name]
                if isinstance(wanted, float):
                    wanted = pytest.approx(wanted, rel=1e-5, abs=1e-5)
                assert a[name] == wanted, name
    results = [
        json.loads((folder / "results.json").read_text()) for folder in (one, other)
    ]
    assert results[0]["selected"]["epoch"] == results[1]["selected"]["epoch"]
    for task, found in results[0]["tasks"].items():
        for metric in ("rmse", "srcc"):
            wanted = results[1]["tasks"][task][metric]["value"]
            assert found[metric]["value"] == pytest.approx(wanted, abs=1e-5)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """One process with one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert_done(start(workdir, data, *OPTIONS, count=1))
    return workdir


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_one_of_them_writes(
    data, alone, tmp_path
):
    (out, err), (other_out, other_err) = assert_done(
        start(tmp_path / "run", data, *OPTIONS)
    )
    assert_equal_runs(alone, tmp_path / "run")
    assert "overall" in out and "epoch 2 of 2" in err
    # Gloo, which connects the processes, writes a line of its own.
    own = [line for line in other_out.splitlines() if not line.startswith("[Gloo]")]
    assert own == [] and other_err == ""
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["processes"] == 2


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "options"),
    [(2, ("--config.data.memory_gb=0",)), (1, ("--config.train.members=2",))],
    ids=["streamed, two devices each", "ensemble"],
)
def test_processes_with_other_options_equal_one(data, tmp_path, devices, options):
    options = (*OPTIONS, *options)
    assert_done(start(tmp_path / "one", data, *options, count=1))
    assert_done(start(tmp_path / "two", data, *options, devices=devices))
    # With many parameters Adam magnifies the rounding of some tiny gradient.
    assert_equal_runs(tmp_path / "one", tmp_path / "two", tolerance=5e-6)


LONG = ("--config.train.epochs=8", "--config.train.checkpoint_every=3")


def wait_for_lines(workdir, number):
    log = workdir / "metrics.jsonl"
    until = time.monotonic() + 500
    while not log.exists() or len(log.read_text().splitlines()) < number:
        assert time.monotonic() < until, "no training"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Two processes that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert_done(start(workdir, data, *LONG))
    return workdir


@pytest.mark.slow
def test_killed_process_ends_the_other_and_the_run_resumes(data, whole, tmp_path):
    started = start(tmp_path / "run", data, *LONG)
    wait_for_lines(tmp_path / "run", 8)
    started[1].kill()
    began = time.monotonic()
    statuses, _ = finish(started)
    assert time.monotonic() - began < 2 * (
        processes.HEARTBEAT_SECONDS + processes.SHUTDOWN_SECONDS
    )
    assert all(status != 0 for status in statuses)
    assert not (tmp_path / "run" / "results.json").exists()
    assert_done(start(tmp_path / "run", data, *LONG))
    test_train.assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        (signal.SIGTERM, 1, "stopped: stopped by SIGTERM after step"),
        (signal.SIGINT, 130, "stopped; the same command continues"),
    ],
)
def test_a_signal_to_one_process_stops_all_at_the_same_step(
    data, whole, tmp_path, number, status, message
):
    started = start(tmp_path / "run", data, *LONG)
    wait_for_lines(tmp_path / "run", 5)
    started[1].send_signal(number)
    statuses, ((_, err), (_, other_err)) = finish(started)
    assert statuses == [status, status]
    assert message in err and "saved after step" in err
    assert "Traceback" not in err + other_err
    assert other_err == "" or number == signal.SIGINT
    assert_done(start(tmp_path / "run", data, *LONG))
    test_train.assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            ((), ("--config.seed=1",)),
            "process 1: it was started with config.seed = 1, not 0 as in process 0",
        ),
        (((), ("--config.data.path=/nowhere",)), "process 1: /nowhere is no data set"),
        (
            (("--config.train.batch_size=9",), ("--config.train.batch_size=9",)),
            "train.batch_size 9 does not divide over 2 devices of 2 processes",
        ),
    ],
)
def test_error_in_any_process_is_one_line_and_status_2_in_all(
    data, tmp_path, own, message
):
    statuses, ((_, err), (_, other_err)) = finish(
        start(tmp_path / "run", data, own=own)
    )
    assert statuses == [2, 2]
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert other_err == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinator": "a:1"}, "go together; give all three"),
        ({"num_processes": 2, "process_id": 0}, "go together; give all three"),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            "--process_id is 2; expected 0 to 1, since --num_processes is 2",
        ),
        (
            {"coordinator": "a:1", "num_processes": 0, "process_id": 0},
            "--num_processes is 0; expected 1 or more",
        ),
        (
            {"coordinator": "a", "num_processes": 2, "process_id": 0},
            "--coordinator is 'a'; expected HOST:PORT",
        ),
        ({"distributed": True, "process_id": 0}, "finds the other processes by itself"),
    ],
)
def test_flags_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(schema.InputError, match=message):
        processes.start(**arguments)


def test_without_flags_there_is_one_process(monkeypatch):
    processes.start()
    assert processes.group() == processes.ALONE
    assert processes.share() == (0, 1)


def test_shares_come_from_flags_or_the_launcher(monkeypatch):
    for name in ("SLURM_PROCID", "SLURM_NTASKS", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert processes.share(num_processes=4, process_id=3) == (3, 4)
    with pytest.raises(schema.InputError, match="process_id is 4; expected 0 to 3"):
        processes.share(num_processes=4, process_id=4)
    with pytest.raises(schema.InputError, match="go together"):
        processes.share(process_id=1)
    with pytest.raises(schema.InputError, match="found no variables of Slurm"):
        processes.share(distributed=True)
    monkeypatch.setenv("SLURM_PROCID", "2")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert processes.share(distributed=True) == (2, 8)


MEETING = """
import json, sys
import jax, numpy as np
from tqa_jax import batch, processes, runner, schema

port, index = map(int, sys.argv[1:])
processes.start(coordinator=f"localhost:{port}", num_processes=2, process_id=index)
group = processes.group()

def said(function):
    try:
        return function()
    except schema.InputError as error:
        return [type(error).__name__, str(error)]

def refuse(text):
    raise schema.InputError(text)

found = {"group": group, "writes": group.writes}
found["bytes"] = group.from_writer(lambda: b"of %d" % index).decode()
found["empty"] = group.from_writer(lambda: b"").decode()
found["refused"] = said(lambda: group.from_writer(lambda: refuse(f"by {index}")))
found["together"] = said(lambda: group.together(lambda: index + 10))
found["any"] = [group.any(False), group.any(index == 1)]
found["other"] = said(lambda: group.together(lambda: index and refuse("no file")))

values = np.array([-0.0, np.nan, 1e-45, 1 / 3], np.float32)
tree = {"a": values, "n": np.int32(7), "none": np.zeros((2, 0)), "b": np.array(True)}
like = jax.tree.map(np.zeros_like, tree)
got = group.arrays_from_writer(like, lambda: tree)
found["arrays"] = [
    (got[name].tobytes(), got[name].shape) == (tree[name].tobytes(), tree[name].shape)
    for name in tree
]

devices = runner.Devices(group)
order = np.arange(12).reshape(2, 6)
found["mine"] = devices.mine(order).tolist()
rows = batch.Batch({}, {}, devices.mine(order)[0].astype(np.float32), None)
double = devices.scorer(lambda factor, one: factor * one.labels)
found["scores"] = np.asarray(double(np.float32(2), rows)).tolist()
print(json.dumps(found))
"""


def test_processes_agree_and_each_works_on_its_own_rows():
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MEETING, str(port), str(index)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    said = assert_done(started)
    for index, (out, _) in enumerate(said):
        found = json.loads(out.splitlines()[-1])
        assert found["group"] == [index, 2] and found["writes"] == (index == 0)
        assert (found["bytes"], found["empty"]) == ("of 0", "")
        kind = ("InputError", "Elsewhere")[index]
        assert found["refused"] == [kind, "by 0"]
        assert found["together"] == index + 10
        assert found["any"] == [False, True]
        assert found["other"] == [kind, "process 1: no file"]
        assert all(found["arrays"]) and len(found["arrays"]) == 4
        assert (
            found["mine"] == [[[0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9, 10, 11]]][index]
        )
        assert found["scores"] == [0, 2, 4, 6, 8, 10]


NOBODY = """
from tqa_jax import processes
processes.start(
    coordinator="localhost:%d", num_processes=2, process_id=%d, connect_seconds=1
)
"""


@pytest.mark.parametrize("process_id", [0, 1])
def test_process_that_meets_no_other_says_so(process_id):
    done = subprocess.run(
        [sys.executable, "-c", NOBODY % (free_port(), process_id)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: not all processes met at localhost:")
    assert "within 1 s" in line


def test_batch_must_divide_over_the_devices():
    devices = runner.Devices()
    devices.count = 2
    devices.check(8)
    with pytest.raises(schema.InputError, match="batch_size 9 .* over 2 devices"):
        devices.check(9)


def test_one_process_works_on_all_rows():
    order = np.arange(12).reshape(3, 4)
    devices = runner.Devices()
    np.testing.assert_array_equal(devices.mine(order), order)
    assert devices.count == jax.local_device_count()
