"""What several verbs print: tables of versions, and progress bars."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from ..serving.draining import process_state
from ..serving.management import ModelVersion, Worker

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

Item = TypeVar("Item")


def standard_output(*, soft_wrap: bool = False) -> Console:
    """Return a console for tables, on which a closed pipe is the same error as for `print`.

    Args:
        soft_wrap: whether long lines are left as they are, for the terminal to wrap.
    """
    from rich.console import Console

    class _Console(Console):
        def on_broken_pipe(self) -> None:
            # Rich would end the process itself, with status 1.
            raise BrokenPipeError

    return _Console(soft_wrap=soft_wrap)


def print_versions(versions: list[ModelVersion], *, on_this_machine: bool = False) -> None:
    """Print a table with one row for each version.

    Args:
        versions: the versions.
        on_this_machine: whether the workers are processes of this machine, so that a stopped
            process can be recognised.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in ("model", "version", "default", "archive", "batch", "queue", "workers"):
        table.add_column(column)
    for version in versions:
        states = [_worker_state(worker, on_this_machine) for worker in version.workers]
        workers = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)) or "none"
        table.add_row(
            Text(version.name),
            Text(version.version),
            "yes" if version.default else "",
            Text(version.archive),
            f"{version.batch_size} in {version.max_batch_delay_ms} ms",
            f"{version.pending_requests}" + ("" if version.queue_capacity else " (full)"),
            Text(workers),
        )
    standard_output().print(table)


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int], None]]:
    """Show a bar while work goes on.

    Args:
        description: what the work is.

    Yields:
        A function that is called after each step, with the total number of steps.
    """
    with _bar() as progress:
        task = progress.add_task(description, total=None)

        def step(total: int) -> None:
            progress.update(task, total=total, advance=1)

        yield step


@contextmanager
def transfer_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar of bytes while files are copied or sent.

    Args:
        description: what the work is.

    Yields:
        A function that is called after each block, with the number of bytes in it and in all.
    """
    from rich.progress import DownloadColumn, TransferSpeedColumn

    with _bar(DownloadColumn(), TransferSpeedColumn()) as progress:
        task = progress.add_task(description, total=None)

        def advance(num_bytes: int, total: int) -> None:
            progress.update(task, total=total, advance=num_bytes)

        yield advance


def with_progress(
    items: Iterable[Item], description: str, total: int, *, visible: bool = True
) -> Generator[Item, None, None]:
    """Yield items as they come, and show a bar until the last one has come.

    Args:
        items: what is produced step by step.
        description: what the work is.
        total: expected number of items.
        visible: False shows no bar, for items that are printed one by one themselves.
    """
    with _bar(visible=visible) as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task)


@contextmanager
def reported_work(
    description: str, total: int | None = None, *, at_once: bool = True
) -> Iterator[Callable[[str], None]]:
    """Show a bar while work goes on that reports each step with a sentence.

    Args:
        description: what the work is.
        total: expected number of sentences; None: unknown, so that only the elapsed time is shown.
        at_once: False shows the bar after the first sentence, for work whose first step prints
            lines of its own.

    Yields:
        A function that prints a sentence on standard output, above the bar. A reader that has gone
        away does not end the work.
    """
    with _bar() as progress:
        task = progress.add_task(description, total=total)
        if not at_once:
            progress.stop()

        def report(sentence: str) -> None:
            # A bar that is being drawn would mix with the sentence.
            progress.stop()
            with contextlib.suppress(BrokenPipeError):
                print(sentence, flush=True)
            progress.advance(task)
            progress.start()

        yield report


def _bar(*amounts: ProgressColumn, visible: bool = True) -> Progress:
    """Make a progress bar on standard error, which shows nothing where that is no terminal.

    Args:
        amounts: columns that say how far the work is; by default steps and their total number.
        visible: False shows nothing at all.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    hidden = not visible or not sys.stderr.isatty()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *(amounts or [MofNCompleteColumn()]),
        TimeElapsedColumn(),
        console=Console(stderr=True, quiet=hidden),
        transient=True,
        # Rich would write what is printed meanwhile to standard error, even if standard output
        # is a file.
        redirect_stdout=False,
        disable=hidden,
    )


def _worker_state(worker: Worker, on_this_machine: bool) -> str:
    hindrance = process_state(worker.pid) if on_this_machine else ""
    return f"{worker.status} but {hindrance} (pid {worker.pid})" if hindrance else worker.status
