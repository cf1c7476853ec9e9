"""Work spread over processes that end with their parent, in whatever way it ends, and a progress bar for it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

from dfbench.errors import InputError

Job = TypeVar("Job")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress_bar(
    items: Iterable[Result] | None,
    description: str,
    unit: str,
    quiet: bool,
    total: int | None = None,
    num_done: int = 0,
) -> tqdm:
    """Rate and time left, to iterate over or to `update`. Shows nothing where stderr is no terminal, or if `quiet`.

    num_done: those of `total` that an earlier run did.
    """
    options = {"unit": f" {unit}", "unit_scale": True, "initial": num_done, "dynamic_ncols": True}
    return tqdm(items, description, total, disable=True if quiet else None, **options)


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], num_workers: int, *, in_order: bool = False
) -> Iterator[tuple[Job, Result]]:
    """(job, function(job)) of each job as they end, or in the order of the jobs; one worker runs them here.

    function and jobs are sent to fresh processes, so both have to be picklable. An error in a job ends the whole.
    """
    if num_workers == 1 or len(jobs) < 2:
        yield from ((job, function(job)) for job in jobs)
        return
    # Fresh processes rather than forks: the parent has threads (progress bars, downloads).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_workers, len(jobs)), mp_context=context, initializer=_start_worker) as pool:
        with _interrupts_held_back():  # the workers that start here inherit that: Ctrl-C is the parent's to handle
            job_of = {pool.submit(function, job): job for job in jobs}
        try:
            for future in list(job_of) if in_order else as_completed(job_of):
                yield job_of.pop(future), future.result()  # popped, so that results do not pile up here
        except BrokenProcessPool:
            raise InputError(
                "A worker process was killed, perhaps for lack of memory. "
                "Repeat the command with fewer --workers; it goes on from there."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)  # an error ends the queue, not the jobs that are running


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """A Ctrl-C in the meantime comes at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def noted_signals(*numbers: signal.Signals) -> Iterator[list[int]]:
    """Gives a list that these signals are put into, in the place of what they do otherwise.

    A signal that is ignored, by nohup for one, stays so. Only for the main thread, as all handlers are.
    """
    noted: list[int] = []
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_worker() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot stop its workers, which would go on writing beside the next run."""
    multiprocessing.parent_process().join()
    os._exit(1)
