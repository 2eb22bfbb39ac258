"""Kernels that execute notebooks, and how they end.

ipykernel closes its sockets as soon as it is told to shut down, also in the middle of a cell. The
cell's reply then fails, and the kernel prints a traceback of ZMQ. Hence two rules. Kernels started
here are killed, never told. A kernel that someone else started (papermill, JupyterLab) and told in
the middle of a cell leaves when that cell ends, before it replies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import papermill
from jupyter_client.manager import AsyncKernelManager


class Kernels:
    """Executes notebooks, each in a kernel of its own; none outlives the `with` block."""

    def __init__(self) -> None:
        self.started: list[AsyncKernelManager] = []

    def __enter__(self) -> Kernels:
        return self

    def __exit__(self, *_: object) -> None:
        left = [kernel for kernel in self.started if kernel.has_kernel]
        if left:  # interrupted: papermill reports their deaths as errors
            logging.getLogger("papermill").disabled = True
        asyncio.run(_kill(left))

    def execute(
        self,
        path: Path,
        out: Path,
        parameters: Mapping[str, Any] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Execute a notebook with papermill.

        Raises
        ------
        papermill.PapermillExecutionError
            If a cell fails.
        """
        started = self.started

        class Kernel(AsyncKernelManager):
            def __init__(self, **options: Any) -> None:
                # Unencrypted, every kernel prints a warning that others may read along.
                super().__init__(transport_encryption="auto", **options)
                started.append(self)

        papermill.execute_notebook(
            path,
            out,
            parameters,
            cwd=cwd,
            progress_bar=False,
            kernel_manager_class=Kernel,
            shutdown_kernel="immediate",
        )


async def _kill(kernels: Sequence[AsyncKernelManager]) -> None:
    for kernel in kernels:
        with contextlib.suppress(RuntimeError):  # it ended meanwhile
            await kernel.signal_kernel(signal.SIGKILL)


def leave_when_told(shell: Any) -> None:
    """Let a kernel that is told to shut down within a cell leave at the cell's end.

    Parameters
    ----------
    shell : IPython.core.interactiveshell.InteractiveShell
        That of the kernel, as `get_ipython()` returns.
    """

    def leave(_: object) -> None:
        if shell.exit_now:
            os._exit(0)

    shell.events.register("post_run_cell", leave)
