"""Several processes of one job: how they start, agree, and which of them writes.

The processes of a training run do the same things in the same order, since each
collective waits for all of them. Only the first touches the run's folder; what it reads
or decides there reaches the others by `from_writer`. The runs of a sweep need no other
process: they take a `share` and never meet.
"""

import dataclasses
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from tqa_jax import schema

# A process that died is noticed at once where its connection breaks, and after this
# long where it does not (a machine without power). The others then end with an error.
HEARTBEAT_SECONDS = 60
# How long a process that ends waits for the others to end.
SHUTDOWN_SECONDS = 30
CONNECT_SECONDS = 300

# What the launchers tell each process: its number, and how many there are.
_LAUNCHERS = (
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Options of a job of several processes: what `start` and `share` take."""

    distributed: bool = False
    """One process of several, which the launcher describes: Slurm, Open MPI; not for a
    sweep: TPU pods, GKE."""
    coordinator: str | None = None
    """Without --distributed: HOST:PORT at which process 0 can be reached; not for a
    sweep, whose processes need not meet."""
    num_processes: int | None = None
    """With --coordinator, or alone for a sweep: how many processes there are."""
    process_id: int | None = None
    """With --num_processes: which of them this is, from 0."""

    def given(self) -> dict[str, Any]:
        """These options by name, without those of a class that extends this one."""
        names = [field.name for field in dataclasses.fields(Job)]
        return {name: getattr(self, name) for name in names}


def start(
    *,
    distributed: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    connect_seconds: int = CONNECT_SECONDS,
) -> None:
    """Joins the other processes; without any argument there are none.

    Comes before anything asks JAX for a device. A process that the others do not meet
    within `connect_seconds` says so in one line and exits with 2.

    Args:
        distributed: the launcher says where the coordinator is, and who this is.
        coordinator: host and port of process 0, where no launcher does.
        num_processes: how many there are.
        process_id: which of them this is.
        connect_seconds: how long to wait for the others.

    Raises:
        InputError: for arguments that do not fit together, or an unknown launcher.
    """
    given = (coordinator, num_processes, process_id)
    if distributed and given != (None, None, None):
        raise schema.InputError(
            "--distributed finds the other processes by itself; leave out "
            "--coordinator, --num_processes and --process_id"
        )
    if not distributed:
        if given == (None, None, None):
            return
        if None in given:
            raise schema.InputError(
                "--coordinator, --num_processes and --process_id go together; "
                "give all three, or --distributed alone under a launcher"
            )
        _check_share(process_id, num_processes)
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise schema.InputError(
                f"--coordinator is {coordinator!r}; expected HOST:PORT"
            )
    # SIGTERM is for the training loop, which saves the state first.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX aborts with a stack trace when it meets nobody; this is earlier.
    where = coordinator or "the launcher's address"
    alarm = threading.Timer(connect_seconds, _nobody, [where, connect_seconds])
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=connect_seconds + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        raise schema.InputError(
            f"--distributed found no launcher that it knows ({error}) give "
            "--coordinator, --num_processes and --process_id"
        ) from error
    except RuntimeError as error:
        line = str(error).splitlines()[0]
        raise schema.InputError(f"cannot start at {where}: {line}") from error
    finally:
        alarm.cancel()


def _nobody(where: str, seconds: int) -> None:
    """Ends the process out of a timer: the main thread waits inside of JAX."""
    print(
        f"error: not all processes met at {where} within {seconds} s; look for one "
        "that did not start, a wrong --coordinator or --num_processes, or a firewall",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def share(
    *,
    distributed: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> tuple[int, int]:
    """Says which process of how many this is, for work that needs no other one.

    Nothing is connected: a process that dies takes no other with it.

    Args:
        distributed: ask the variables of Slurm or Open MPI.
        coordinator: refused, since nobody is met.
        num_processes: how many there are, without a launcher.
        process_id: which of them this is.

    Returns:
        The process's number and how many there are; (0, 1) without arguments.

    Raises:
        InputError: for arguments that do not fit together, an unknown launcher, or
            variables of it that are no numbers.
    """
    if coordinator is not None:
        raise schema.InputError(
            f"--coordinator is {coordinator!r}, but the processes of a sweep need not "
            "meet; leave it out and give --num_processes and --process_id"
        )
    if distributed:
        if (num_processes, process_id) != (None, None):
            raise schema.InputError(
                "--distributed asks the launcher; leave out --num_processes and "
                "--process_id"
            )
        for names in _LAUNCHERS:
            if not all(name in os.environ for name in names):
                continue
            index, count = (os.environ[name] for name in names)
            if not (
                index.isdecimal() and count.isdecimal() and int(index) < int(count)
            ):
                raise schema.InputError(
                    f"{names[0]} is {index!r} and {names[1]} is {count!r}; expected "
                    "the number of this process, from 0, and how many there are"
                )
            return int(index), int(count)
        raise schema.InputError(
            "--distributed found no variables of Slurm or Open MPI; give "
            "--num_processes and --process_id"
        )
    if (num_processes is None) != (process_id is None):
        raise schema.InputError("--num_processes and --process_id go together")
    if num_processes is None:
        return 0, 1
    _check_share(process_id, num_processes)
    return process_id, num_processes


def _check_share(process_id: int, num_processes: int) -> None:
    if num_processes < 1:
        raise schema.InputError(
            f"--num_processes is {num_processes}; expected 1 or more"
        )
    if not 0 <= process_id < num_processes:
        raise schema.InputError(
            f"--process_id is {process_id}; expected 0 to {num_processes - 1}, since "
            f"--num_processes is {num_processes}"
        )


class Elsewhere(schema.InputError):
    """An error that the writing process tells the user about."""


class Group(NamedTuple):
    """Processes that work on one run.

    Attributes:
        index: which of them this is.
        count: how many there are; one needs no other and never waits.
    """

    index: int
    count: int

    @property
    def writes(self) -> bool:
        """Whether this process writes the run's folder and speaks to the user."""
        return self.index == 0

    def from_writer(self, make: Callable[[], bytes]) -> bytes:
        """Calls a function in the writing process and returns its result in all.

        Raises:
            InputError: in all processes, when it does in the writing one; in the
                others an `Elsewhere`.
        """
        if self.count == 1:
            return make()
        said = b""
        if self.writes:
            try:
                said = b"\0" + make()
            except schema.InputError as error:
                said = b"\1" + str(error).encode()
        # In 32 bits: JAX has no others.
        length = multihost_utils.broadcast_one_to_all(np.uint32(len(said)))
        buffer = np.zeros(int(length), np.uint8)
        if self.writes:
            buffer[:] = np.frombuffer(said, np.uint8)
        said = multihost_utils.broadcast_one_to_all(buffer).tobytes()
        if said[:1] == b"\1":
            raise self._error(said[1:].decode())
        return said[1:]

    def _error(self, message: str) -> schema.InputError:
        return schema.InputError(message) if self.writes else Elsewhere(message)

    def arrays_from_writer(self, like: Any, make: Callable[[], Any]) -> Any:
        """Does what `from_writer` does for a tree of arrays, bit for bit.

        Args:
            like: a tree of the same structure, shapes and types.
            make: returns the tree.

        Returns:
            The tree, in NumPy where there are several processes.
        """
        if self.count == 1:
            return make()
        data = self.from_writer(
            lambda: b"".join(
                np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(make())
            )
        )
        found, start = [], 0
        for leaf in jax.tree.leaves(like):
            part = np.frombuffer(data, leaf.dtype, leaf.size, start)
            found.append(part.reshape(leaf.shape).copy())
            start += part.nbytes
        return jax.tree.unflatten(jax.tree.structure(like), found)

    def together(self, make: Callable[[], Any]) -> Any:
        """Calls a function that needs no other process, in each.

        Returns:
            What it returned here.

        Raises:
            InputError: in all processes, when it does in any; see `from_writer`.
        """
        if self.count == 1:
            return make()
        found, said = None, b""
        try:
            found = make()
        except schema.InputError as error:
            said = str(error).encode()[:1024]
        line = np.frombuffer(said.ljust(1024, b"\0"), np.uint8)
        for index, other in enumerate(multihost_utils.process_allgather(line)):
            text = other.tobytes().rstrip(b"\0").decode(errors="replace")
            if text:
                where = f"process {index}: " if index else ""
                raise self._error(where + text)
        return found

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        return bool(multihost_utils.process_allgather(np.array(flag)).any())


ALONE = Group(0, 1)


def group() -> Group:
    """The processes that `start` has joined."""
    return Group(jax.process_index(), jax.process_count())
