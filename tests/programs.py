"""Reading compiled programs: how many loops they have, and where devices talk to each other."""

import re

_COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def collectives(text: str) -> list[str]:
    """Every collective operation in a program's text, or in a part of it."""
    return _COLLECTIVE.findall(text)


def loops_and_their_collectives(text: str) -> tuple[int, list[str]]:
    """Count a program's loops, and list the collectives in what they run.

    Args:
      text: ``compiled.as_text()``.
    """
    bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) [^\n]*{\n(.*?)^}", text, re.M | re.S))
    todo = re.findall(r"(?:body|condition)=%?([\w.-]+)", text)
    loops, seen = len(todo) // 2, set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += [word for word in re.findall(r"%?([\w.-]+)", bodies[name]) if word in bodies]
    return loops, collectives("".join(bodies[name] for name in seen))
