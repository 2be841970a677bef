"""A word alignment to look at: as a table for the terminal, a page, or a picture."""

import html
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from clir_jax.data.words import Words
from clir_jax.evaluation.alignment import WordAlignment
from clir_jax.evaluation.pictures import drawable, plan_html, plan_picture
from clir_jax.files import replacing, write_text

# Noto's faces by script, for systems that have them; others take what they have.
_FONTS = ", ".join(
    f'"Noto Sans{script}"'
    for script in (
        "",
        " Arabic",
        " Hebrew",
        " Devanagari",
        " Bengali",
        " Tamil",
        " Telugu",
        " Sinhala",
        " Thai",
        " Ethiopic",
        " CJK SC",
        " CJK JP",
        " CJK KR",
    )
)
_CSS = f"""
:root {{ color-scheme: light dark; }}
body {{ margin: 0 auto; padding: 2rem 1.25rem; max-width: 76rem; font: 16px/1.5 {_FONTS},
  system-ui, sans-serif; }}
p {{ margin: 0 0 .5rem; }}
.note {{ opacity: .7; font-size: .85rem; }}
.scroll {{ overflow-x: auto; margin: 1rem 0; }}
"""


def links_table(alignment: WordAlignment, source: Words, target: Words) -> Table:
    """Lay an alignment out for a terminal: a line for each word of the first sentence.

    Args:
      alignment: of the two sentences.
      source: the first.
      target: the second.

    Returns:
      A table for ``rich.print``: each word, the words it is linked to, and the share of its mass
      that they have; below, the words of the second sentence without a link.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("source", "target"):
        table.add_column(name)
    table.add_column("share", justify="right")
    words = target.words
    shares = _shares(alignment)
    for word, share_of, linked in zip(source.words, shares, alignment.linked, strict=True):
        others = " ".join(words[j] for j in linked.nonzero()[0])
        share = f"{share_of[linked].sum():.2f}" if others else ""
        table.add_row(Text(word), Text(others) if others else Text("-", "dim"), share)
    for word, linked in zip(words, alignment.linked.T, strict=True):
        if not linked.any():
            table.add_row(Text("-", "dim"), Text(word), "")
    return table


def scores_table(scores: Mapping[str, Mapping[str, float]]) -> Table:
    """Lay scores of alignments out for a terminal: a line for each aligner, a column for each."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("aligner", overflow="fold")
    metrics = list(next(iter(scores.values())))
    for metric in metrics:
        table.add_column(metric, justify="right")
    for name, values in scores.items():
        table.add_row(Text(name), *(f"{values[metric]:.3f}" for metric in metrics))
    return table


def save_picture(path: Path, alignment: WordAlignment, source: Words, target: Words) -> None:
    """Save an alignment as a heat map with the words along its sides and links marked.

    Args:
      path: a page (``.html``), which needs no other file and shows every script that the reader's
        browser shows; or a picture (``.png``).
      alignment: of the two sentences.
      source: the first, from top to bottom.
      target: the second, from left to right.

    Raises:
      ValueError: if a picture cannot show the script.
    """
    plan = _shares(alignment), source.words, target.words
    if path.suffix == ".png":
        for word in (*source.words, *target.words):
            if not drawable(word):
                raise ValueError(
                    f"{path}: {word!r} cannot be drawn in a picture; write a page, *.html"
                )
        with replacing(path) as unfinished:
            plan_picture(*plan, unfinished, links=alignment.linked)
        return
    title = html.escape(f"{source.text} · {target.text}")
    texts = "".join(f'<p dir="auto">{html.escape(words.text)}</p>\n' for words in (source, target))
    table = plan_html(*plan, links=alignment.linked)
    write_text(
        path,
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{texts}"
        f'<div class="scroll">{table}</div>\n'
        '<p class="note">Tint: share of the row\'s word. Frame: linked words.</p>\n'
        "</body>\n</html>\n",
    )


def _shares(alignment: WordAlignment) -> Float[np.ndarray, "X Y"]:
    """Where the mass of each word of the first sentence went, whatever the number of its pieces."""
    total = alignment.mass.sum(axis=1, keepdims=True)
    shares: np.ndarray = alignment.mass / np.where(total > 0, total, np.ones_like(total))
    return shares
