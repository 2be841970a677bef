"""Write bitext as a TFDS data set of ArrayRecord, or the built-in data as files.

  python -m clir_jax.prepare --source FILE --language sw --name opus_sw --out DIR
  python -m clir_jax.prepare --atlas --out DIR

The second writes the built-in data, in all their languages, as the other commands read them:
corpus.jsonl, bitext.LANGUAGE.tsv, and for each SPLIT, which is train, dev or test,
queries.LANGUAGE.SPLIT.tsv and qrels.SPLIT.trec.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clir_jax.command import Parser, carry_out


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, write, and return the exit status."""
    parser = Parser(
        prog="python -m clir_jax.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--source",
        nargs="+",
        metavar="FILE",
        help="id<TAB>English<TAB>other; or two files that are aligned line by line, the English "
        "one first; patterns name several",
    )
    add("--language", help="of the other side: sw")
    add("--name", help="of the data set: opus_sw")
    add("--atlas", action="store_true", help="the built-in data, in the place of these three")
    add(
        "--out",
        required=True,
        metavar="DIR",
        help="where data sets are kept; with --atlas, a new directory",
    )
    add("--shards", type=int, help="files to write (default: one for every 100,000 pairs)")
    add(
        "--on-bad-record",
        choices=["error", "skip"],
        help="stop at the first bad line, or leave bad lines out and count them (error)",
    )
    given = parser.parse_args(arguments)
    if given.atlas:
        return carry_out(lambda: _write_atlas(given))
    return carry_out(
        lambda: _prepare(given), "stopped; the same command goes on from the last whole shard"
    )


def _write_atlas(given: argparse.Namespace) -> int:
    for name in ("source", "language", "name", "shards", "on_bad_record"):
        if getattr(given, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"--atlas brings all that it writes; leave it or {option} out")
    _require_local(given.out)
    import jax

    from clir_jax.data import demo
    from clir_jax.models.directories import new_directory

    jax.config.update("jax_platforms", "cpu")
    with new_directory(Path(given.out)) as temporary:
        demo.write(temporary)
    languages = ", ".join(demo.LANGUAGES)
    print(f"{given.out}: {len(demo.passages()):,} passages, questions and bitext in {languages}")
    return 0


def _require_local(out: str) -> None:
    path = Path(out).absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    if "://" in out or not there.is_dir():
        raise ValueError(f"--out {out}: that is no local directory; write one, and copy it")


def _prepare(given: argparse.Namespace) -> int:
    from clir_jax.data.bitext import BitextMoses, BitextTSV

    for name in ("source", "language", "name"):
        if getattr(given, name) is None:
            raise ValueError(f"--{name} is missing; write it, or --atlas for the built-in data")
    if len(given.source) > 2:
        raise ValueError(
            f"--source names {len(given.source)} files; write one of pairs or two of lines, and "
            'put a pattern that names several in quotes: --source "bitext/*.tsv"'
        )
    _require_local(given.out)
    bad = given.on_bad_record or "error"
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
