"""Names of territories, currencies, languages, zones and days for the built-in data set.

All come from Unicode CLDR through Babel. A name that CLDR does not have in a language is None
here, never the English one, so that the data set can leave it out.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from babel.core import Locale
from babel.lists import format_list

# English names that take "the" ("in the Netherlands", but "in Kenya").
_ENGLISH_THE = re.compile(
    r"(Islands|Republic|Territor(y|ies)|Emirates|Kingdom|States|Netherlands|Bahamas|Gambia"
    r"|Maldives|Philippines|Comoros|Seychelles)$|^Isle of "
)
_ENGLISH_NO_THE = frozenset({"GS"})  # "South Georgia & South Sandwich Islands" is two names

# German names with an article, or on islands: the preposition by territory; all others take "in".
_GERMAN = {
    "in der": "AQ CF CH DO EH HK MD MN MO SK TR UA VA",
    "in den": "AE BQ NL PS TF US",
    "im": "GB IO IQ IR LB NE SD SN SS TD XK YE",
    "auf den": "AX BS CC CK FK FO HM IC KM KY MH MP MV PH PN SB SC TC UM VG VI",
    "auf der": "BV CP CX IM NF",
}
_GERMAN_PREPOSITION = {code: words for words, codes in _GERMAN.items() for code in codes.split()}

# Spanish names with an article, by how they begin.
_SPANISH_ARTICLE = (
    (re.compile(r"(Islas|Bahamas|Bermudas|Comoras|Maldivas|Filipinas)\b"), "las"),
    (re.compile(r"(Isla|República|RAE|Antártida|Ciudad)\b"), "la"),
    (re.compile(r"(Países|Estados|Emiratos|Territorios)\b"), "los"),
    (re.compile(r"(Reino|Territorio|Sáhara|Caribe)\b"), "el"),
)


@functools.cache
def _locale(language: str) -> Locale:
    return Locale(language)


def _clean(name: str) -> str:
    # CLDR uses no-break spaces; the data set promises plain ones, and neither tab nor newline.
    return " ".join(name.split())


def _lookup(table: Mapping[str, Any], code: str) -> str | None:
    name = table.get(code)
    return _clean(name) if isinstance(name, str) and name.strip() and name != code else None


def territory(language: str, code: str) -> str | None:
    """Name a territory.

    Args:
      language: BCP-47 tag of the language of the name.
      code: ISO 3166 two-letter code, for example ``"KE"``.

    Returns:
      The name, or None where CLDR has none.

    Example:
      >>> territory("sw", "DE")
      'Ujerumani'
    """
    name = _lookup(_locale(language).territories, code)
    if name is None:
        return None
    if language == "ru":  # CLDR abbreviates "islands" and "island"
        return name.replace("о-ва", "острова").replace("о-в ", "остров ")
    conjunction = {"en": "and", "so": "iyo"}.get(language)
    return name.replace("&", conjunction) if conjunction else name


def forms(language: str, code: str) -> dict[str, str] | None:
    """Give the forms of a territory's name that the phrasings need.

    Args:
      language: BCP-47 tag of the language of the name.
      code: ISO 3166 two-letter code.

    Returns:
      ``t`` the bare name, ``the`` with its article, ``in`` "in the …", ``of`` "of the …" (the
      last three differ from ``t`` in English, German and Spanish only); None where CLDR has no
      name.

    Example:
      >>> forms("en", "NL")["in"]
      'in the Netherlands'
    """
    name = territory(language, code)
    if name is None:
        return None
    if language == "en":
        takes_the = _ENGLISH_THE.search(name) and code not in _ENGLISH_NO_THE
        the = f"the {name}" if takes_the else name
        return {"t": name, "the": the, "in": f"in {the}", "of": f"of {the}"}
    if language == "de":
        return {"t": name, "the": name, "in": _german_in(name, code), "of": name}
    if language == "es":
        article = next((word for start, word in _SPANISH_ARTICLE if start.match(name)), "")
        the = f"{article} {name}".strip()
        of = f"del {name}" if article == "el" else f"de {the}"
        return {"t": name, "the": the, "in": f"en {the}", "of": of}
    return {"t": name, "the": name, "in": name, "of": name}


def _german_in(name: str, code: str) -> str:
    name = name.replace(" und die ", " und den ")
    words = _GERMAN_PREPOSITION.get(code)
    if words is None:
        return f"in {name}"
    name = re.sub(r"(\w*(?:isch|igt|lich))(?:es|e)\b", r"\1en", name)  # weak dative adjective
    plural = words.endswith("den") and name.endswith(("e", "er"))
    return f"{words} {name}{'n' if plural else ''}"


def item(language: str, kind: str, code: str) -> str | None:
    """Name what a fact is about: a currency, a language, a time zone or a day.

    Args:
      language: BCP-47 tag of the language of the name.
      kind: kind of the fact; ``"code"`` answers the code itself.
      code: what CLDR calls it: ``"KES"``, ``"sw"``, ``"Africa_Eastern"``, ``"0"`` for Monday.

    Returns:
      The name, or None where CLDR has none, or only a copy of the English one.

    Example:
      >>> item("sw", "currency", "KES")
      'Shilingi ya Kenya'
    """
    name = _item(language, kind, code)
    # "Euro" is German too, but several words that equal the English were never translated.
    copied = language != "en" and name is not None and " " in name
    if copied and kind != "language" and name == _item("en", kind, code):
        return None
    return name


def _item(language: str, kind: str, code: str) -> str | None:
    locale = _locale(language)
    if kind in ("currency", "past"):
        return _lookup(locale.currencies, code)
    if kind == "language":
        return _lookup(locale.languages, code)
    if kind == "time":
        labels = locale.meta_zones.get(code, {}).get("long", {})
        # Where summer time exists, "generic" covers both; elsewhere CLDR has "standard" only.
        return _lookup(labels, "generic") or _lookup(labels, "standard")
    if kind == "week":
        return _clean(locale.days["stand-alone"]["wide"][int(code)])
    return code


def city(zone: str) -> str:
    """Name the city that stands for a time zone, in English.

    Args:
      zone: name in the time zone database, for example ``"America/Sao_Paulo"``.

    Returns:
      CLDR's name of the city, or the last part of the zone's name.

    Example:
      >>> city("Africa/Nairobi")
      'Nairobi'
    """
    named = _lookup(_locale("en").time_zones.get(zone, {}), "city")
    return named or zone.split("/")[-1].replace("_", " ")


def listed(language: str, names: Sequence[str]) -> str:
    """Join names as the language does ("Swahili and English").

    Args:
      language: BCP-47 tag.
      names: at least one name.

    Returns:
      The list as text.

    Example:
      >>> listed("sw", ["Kiswahili", "Kiingereza"])
      'Kiswahili na Kiingereza'
    """
    return _clean(format_list(list(names), locale=_locale(language)))
