"""What the built-in data set knows: facts about territories, and how they are split.

All come from Unicode CLDR through Babel; nothing is random.
"""

import functools
from dataclasses import dataclass

from babel.core import Locale, UnknownLocaleError, get_global

from clir_jax.data import demo_names as names

KINDS: dict[str, str] = {  # kind: how a passage's title calls it
    "currency": "currency",
    "past": "former currency",
    "language": "languages",
    "time": "time zone",
    "week": "calendar week",
    "code": "international code",
}
MOST_ITEMS = 3  # a statement with more names than that is a list, not a sentence

# A place with fewer facts (an uninhabited island, the Eurozone) is left out; with 4, of which at
# most 2 are tested and 1 validated, every territory is trained.
_LEAST_FACTS = 4
_LEAST_SHARE = 3.0  # percent of the people; a language that fewer know is not named


@dataclass(frozen=True)
class Fact:
    """One kind of fact about one territory: ``items`` are the CLDR codes of what it names."""

    territory: str
    kind: str
    items: tuple[str, ...]
    year: int = 0

    @property
    def id(self) -> str:
        """``territory-kind``, for example ``KE-currency``."""
        return f"{self.territory}-{self.kind}"


@functools.cache
def facts() -> tuple[tuple[Fact, str], ...]:
    """Give all facts with their split, ordered by territory and kind.

    Returns:
      (fact, ``"train"``, ``"dev"`` or ``"test"``); every territory and kind has a training fact.

    Example:
      >>> [fact.kind for fact, split in facts() if fact.territory == "KE" and split == "test"]
      ['currency', 'week']
    """
    clocks = zones()
    found = []
    for code in sorted(Locale("en").territories):
        if len(code) == 2 and code.isalpha() and names.territory("en", code):
            known = [fact for fact in _facts_of(code, clocks.get(code, ())) if fact.items]
            if len(known) >= _LEAST_FACTS:
                found.append(known)
    kinds = list(KINDS)
    # Diagonals of the (territory, kind) table: each territory and kind is in train and in test.
    return tuple(
        (fact, _split(row + kinds.index(fact.kind)))
        for row, known in enumerate(found)
        for fact in known
    )


def _split(diagonal: int) -> str:
    if diagonal % 4 == 0:
        return "test"
    return "dev" if diagonal % 12 == 1 else "train"


def _facts_of(code: str, clocks: tuple[tuple[str, str], ...]) -> tuple[Fact, ...]:
    current, former, year = currencies(code)
    most = spoken(code)[:MOST_ITEMS]
    languages = tuple(row[0] for row in most if row[1] >= _LEAST_SHARE) or tuple(
        row[0] for row in most[:1]
    )
    meta_zones = tuple(sorted({meta for meta, _ in clocks}))
    first_day = week(code)[:1]
    return (
        Fact(code, "currency", current),
        Fact(code, "past", former, year),
        Fact(code, "language", languages),
        Fact(code, "time", meta_zones),
        Fact(code, "week", tuple(str(day) for day in first_day)),
        Fact(code, "code", _codes(code)),
    )


def currencies(code: str) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Tell which money a territory uses and used.

    Args:
      code: ISO 3166 two-letter code.

    Returns:
      Present currencies, the last former one (none, or one), the year in which that ended (or 0).

    Example:
      >>> currencies("DE")
      (('EUR',), ('DEM',), 2002)
    """
    tenders = [c for c in get_global("territory_currencies").get(code, ()) if c[3]]
    named = [c for c in tenders if names.item("en", "currency", c[0])]
    current = tuple(c[0] for c in named if c[2] is None)
    ended = sorted((c[2], c[0]) for c in named if c[2] is not None and c[0] not in current)
    if not current or not ended:
        return current, (), 0
    return current, (ended[-1][1],), int(ended[-1][0][0])


def spoken(code: str) -> list[tuple[str, float, bool]]:
    """List the languages of a territory that English can name.

    Args:
      code: ISO 3166 two-letter code.

    Returns:
      (language, percent of the people, whether official), most spoken first.

    Example:
      >>> [language for language, _, _ in spoken("KE")[:2]]
      ['sw', 'en']
    """
    rows: dict[str, tuple[float, bool]] = {}
    for tag, row in get_global("territory_languages").get(code, {}).items():
        language = tag.split("_")[0]  # zh_Hant is written otherwise, not spoken otherwise
        share, official = rows.get(language, (0.0, False))
        share = max(share, float(row["population_percent"] or 0))
        rows[language] = (share, official or "official" in str(row["official_status"]))
    named = [
        (language, share, official)
        for language, (share, official) in rows.items()
        if share and names.item("en", "language", language)
    ]
    return sorted(named, key=lambda row: (-row[1], row[0]))


@functools.cache
def zones() -> dict[str, tuple[tuple[str, str], ...]]:
    """List the time zones of every territory.

    Returns:
      By territory: (CLDR's meta zone, zone of the time zone database), by name of the latter.

    Example:
      >>> zones()["KE"]
      (('Africa_Eastern', 'Africa/Nairobi'),)
    """
    aliases = get_global("zone_aliases")
    # Meta zones may know a zone by its older name only: Asia/Calcutta.
    metas = {aliases.get(zone, zone): meta for zone, meta in get_global("meta_zones").items()}
    table: dict[str, tuple[tuple[str, str], ...]] = {}
    for zone, code in sorted(get_global("zone_territories").items()):
        meta = metas.get(zone)
        if meta and names.item("en", "time", meta):
            table[code] = (*table.get(code, ()), (meta, zone))
    return table


def week(code: str) -> tuple[int, ...]:
    """Tell when the week begins and when the weekend is; Monday is 0.

    Args:
      code: ISO 3166 two-letter code.

    Returns:
      First day of the week, first and last day of the weekend; empty where CLDR has no locale.

    Example:
      >>> week("EG")
      (5, 4, 5)
    """
    try:
        locale = Locale.parse(f"und_{code}")  # the locale of the most spoken language there
    except (UnknownLocaleError, ValueError):
        return ()
    if locale.territory != code:
        return ()
    return (locale.first_week_day, locale.weekend_start, locale.weekend_end)


@functools.cache
def _long_codes() -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for alias, codes in sorted(get_global("territory_aliases").items()):
        if len(alias) == 3 and alias.isalpha() and len(codes) == 1:
            table.setdefault(codes[0], []).append(alias)
    return table


def _codes(code: str) -> tuple[str, ...]:
    longs = _long_codes().get(code)
    if not longs:
        return ()
    # Withdrawn codes are listed too (DDR beside DEU); those in force resemble the short code.
    return code, max(longs, key=lambda x: (x.startswith(code), x[0] == code[0]))
