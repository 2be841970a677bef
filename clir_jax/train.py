"""Train a cross-lingual retriever: ``python -m clir_jax.train --config FILE``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clir_jax import config_files
from clir_jax.command import Parser, carry_out

_MISSING = {
    "gpu": "see that nvidia-smi lists one, that CUDA_VISIBLE_DEVICES does not hide it, and that "
    "this Python has clir_jax[cuda13] (clir_jax[cuda12] where nvidia-smi shows CUDA Version 12)",
    "tpu": "see that this is a TPU VM, that no other process holds its chips, and that this Python "
    "has clir_jax[tpu]",
}
"""What to look at where there is no such accelerator."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, and return the exit status."""
    parser = Parser(prog="python -m clir_jax.train", description=__doc__)
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:key=value,...]",
        help="a Python file with get_config(), with its arguments, or a run's config.json",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="replace one value, as in --set stages.distil.steps=200; may be repeated",
    )
    parser.add_argument(
        "--run-dir", help="where the run's files go (default: runs/ and the run's name)"
    )
    parser.add_argument(
        "--check",
        nargs="?",
        const="plan",
        choices=["plan", "data"],
        help="train nothing: build every stage abstractly and list missing data; with --check=data "
        "missing data are an error",
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="this is one of several processes, and process 0 listens there; auto takes it, and "
        "the two below, from what TPU VMs, SLURM and MPI tell",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="how many there are")
    parser.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")
    parser.add_argument(
        "--accelerator",
        choices=list(_MISSING),
        help="which the run must have; without one it ends, where it would train slowly on the CPU",
    )
    given = parser.parse_args(arguments)
    return carry_out(
        lambda: _train(given), "stopped; the same command goes on from the last checkpoint"
    )


def _train(given: argparse.Namespace) -> int:
    run = config_files.set_values(config_files.load(given.config), given.set)
    if given.check:
        import jax

        from clir_jax.training.check import check

        # Another process may be training on this machine's accelerators.
        jax.config.update("jax_platforms", "cpu")
        return check(run, data_required=given.check == "data")
    # Imported late: --help and errors in a configuration need no devices.
    import jax
    from rich.console import Console

    from clir_jax.evaluation.report import summary_tables
    from clir_jax.processes import join
    from clir_jax.training.loop import train

    directory = Path(given.run_dir or Path("runs") / run.name)
    if "://" in str(given.run_dir):
        raise ValueError(
            f"--run-dir {given.run_dir}: a run is written to a directory; mount the bucket, and "
            "write where (launch/README.md)"
        )
    join(given.coordinator, given.processes, given.process)
    if given.accelerator is not None:
        _refuse_others(given.accelerator)
    rows = train(run, directory)
    if jax.process_index() != 0:
        return 0
    console = Console()
    if rows:
        console.print(summary_tables(rows))
    console.print(
        f"model: {directory / 'model'}  report: {directory / 'report.html'}", markup=False
    )
    return 0


def _refuse_others(accelerator: str) -> None:
    """Refuse devices of another kind, which JAX takes without a word where it finds no such one."""
    import jax

    try:
        found = jax.default_backend()
        told = f"JAX finds {found} devices only"
    except RuntimeError as error:  # of JAX, for some ways to be without one
        found, told = None, str(error)
    if found != accelerator:
        raise ValueError(
            f"--accelerator {accelerator}: {told}; {_MISSING[accelerator]}, or train without this "
            "option"
        )


if __name__ == "__main__":
    raise SystemExit(main())
