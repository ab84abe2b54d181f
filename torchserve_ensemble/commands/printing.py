"""What several verbs print: tables of versions, and a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..serving.draining import process_state
from ..serving.management import ModelVersion, Worker


def print_versions(versions: list[ModelVersion], *, here: bool = False) -> None:
    """Print versions as a table.

    Args:
        versions: one row each.
        here: whether their workers are processes of this machine, whose state can be looked up.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in ("model", "version", "default", "archive", "batch", "queue", "workers"):
        table.add_column(column)
    for version in versions:
        statuses = [_worker_state(worker, here) for worker in version.workers]
        workers = ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses)) or "none"
        table.add_row(
            Text(version.name),
            Text(version.version),
            "yes" if version.default else "",
            Text(version.archive),
            f"{version.batch_size} in {version.max_batch_delay_ms} ms",
            f"{version.pending_requests}" + ("" if version.queue_capacity else " (full)"),
            Text(workers),
        )
    Console().print(table)


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error; yields the function that is called after each step.

    Args:
        description: what is going on.

    Yields:
        A function of the total number of steps.
    """
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=None)

        def step(total: int) -> None:
            progress.update(task, total=total, advance=1)

        yield step


def _worker_state(worker: Worker, here: bool) -> str:
    hindrance = process_state(worker.pid) if here else ""
    return f"{worker.status} but {hindrance} (pid {worker.pid})" if hindrance else worker.status
