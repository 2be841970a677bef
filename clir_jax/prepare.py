"""Write bitext as a TFDS data set of ArrayRecord: ``python -m clir_jax.prepare --source ...``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clir_jax.command import Parser, carry_out


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, write, and return the exit status."""
    parser = Parser(prog="python -m clir_jax.prepare", description=__doc__)
    parser.add_argument(
        "--source",
        required=True,
        nargs="+",
        metavar="FILE",
        help="id<TAB>English<TAB>other; or two files that are aligned line by line, the English "
        "one first; patterns name several",
    )
    parser.add_argument("--language", required=True, help="of the other side: sw")
    parser.add_argument("--name", required=True, help="of the data set: opus_sw")
    parser.add_argument("--out", required=True, metavar="DIR", help="where data sets are kept")
    parser.add_argument(
        "--shards", type=int, help="files to write (default: one for every 100,000 pairs)"
    )
    parser.add_argument(
        "--on-bad-record",
        choices=["error", "skip"],
        default="error",
        help="stop at the first bad line, or leave bad lines out and count them",
    )
    given = parser.parse_args(arguments)
    return carry_out(
        lambda: _prepare(given), "stopped; the same command goes on from the last whole shard"
    )


def _prepare(given: argparse.Namespace) -> int:
    from clir_jax.data.bitext import BitextMoses, BitextTSV

    if len(given.source) > 2:
        raise ValueError(
            f"--source names {len(given.source)} files; write one of pairs or two of lines, and "
            'put a pattern that names several in quotes: --source "bitext/*.tsv"'
        )
    out = Path(given.out).absolute()
    there = next(place for place in (out, *out.parents) if place.exists())
    if "://" in given.out or not there.is_dir():
        raise ValueError(f"--out {given.out}: that is no local directory; write one, and copy it")
    bad = given.on_bad_record
    source: BitextTSV | BitextMoses
    if len(given.source) == 2:
        english, other = given.source
        source = BitextMoses(english, other, given.language, on_bad_record=bad)
    else:
        source = BitextTSV(given.source[0], given.language, on_bad_record=bad)

    # Imported late: --help and mistakes in the options need none of it.
    import jax
    from rich.console import Console

    from clir_jax.data.builders.bitext import prepare
    from clir_jax.training.logging import WorkLog

    # Another process may be training on this machine's accelerators.
    jax.config.update("jax_platforms", "cpu")
    console = Console(highlight=False, soft_wrap=True)
    records = source.open(".")
    with WorkLog(f"prepare {given.name}", console) as log:
        for reason, count in records.report.skipped.items():
            log.say(f"left out: {count:,} x {reason}")
        for place in records.report.places:
            log.say(f"  {place}")
        written = prepare(records, given.name, Path(given.out), given.shards, log.progress)
    console.print(
        f'{len(records):,} pairs in {written}; read them with TFDS("{given.name}", '
        f'data_dir="{given.out}")',
        markup=False,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
