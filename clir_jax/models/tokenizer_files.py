"""The files of a tokenizer, beside which ``transformers`` writes what it does with it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from clir_jax.files import read_json, write_json

_CONFIG = "tokenizer_config.json"
LENGTH = "model_max_length"
# transformers writes 1e30 where it knows no length.
_NO_LENGTH = 10**9


def write_tokenizer(
    directory: str | Path,
    backend: Tokenizer,
    special: Mapping[str, str],
    kept: Mapping[str, Any],
    *,
    token_types: bool = False,
) -> None:
    """Write a tokenizer's three files; see ``TextTokenizer.save``.

    They are written anew, not copied from the model that training began with: markers are added to
    them, vocabularies are replaced and trimmed, and what version 5 of ``transformers`` saves is not
    loaded by version 4. What the first files said of other libraries' business is in ``kept``.

    Args:
      directory: an existing directory.
      backend: the tokenizer proper.
      special: the token that plays each role, as text.
      kept: other entries, as ``kept_settings`` finds them.
      token_types: whether the model reads which text of a pair a token is of.
    """
    directory = Path(directory)
    backend.save(str(directory / "tokenizer.json"))
    roles = {f"{role}_token": token for role, token in special.items()}
    # A token that the vocabulary lacks has no vector, and would be given an id without one.
    other = {name: token for name, token in kept.items() if name != LENGTH}
    roles |= {
        name: token for name, token in other.items() if backend.token_to_id(token) is not None
    }
    added = {
        str(i): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for i, token in sorted(backend.get_added_tokens_decoder().items())
    }
    inputs = ["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"]
    config = {
        # The one class that all versions of transformers load as tokenizer.json stands; the
        # model's own (BertTokenizer) rebuilds the tokenizer from its vocabulary in version 5.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": inputs,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": added,
        **roles,
        **({LENGTH: kept[LENGTH]} if LENGTH in kept else {}),
    }
    write_json(directory / "tokenizer_config.json", config)
    write_json(directory / "special_tokens_map.json", roles)


def special_tokens(
    path: Path, roles: Iterable[str], customary: Mapping[str, str]
) -> dict[str, str]:
    """Read which tokens play ``roles``, of the files that ``transformers`` writes beside a
    tokenizer; a role that no file names is played by the ``customary`` token, if by any.
    """
    special = dict(customary)
    for file in (_CONFIG, "special_tokens_map.json"):
        found = _read_json(path / file)
        for role in roles:
            token = found.get(f"{role}_token")
            token = token.get("content") if isinstance(token, dict) else token
            special |= {role: token} if token else {}
    return special


def kept_settings(path: Path) -> dict[str, Any]:
    """Read what other libraries do with a tokenizer and this one does not.

    Args:
      path: the tokenizer's directory.

    Returns:
      ``bos_token``, ``eos_token`` and ``model_max_length``, those of them that the files name.

    Raises:
      ValueError: if the length is not a number of at least 1.
    """
    known: dict[str, Any] = {
        f"{role}_token": token for role, token in special_tokens(path, ("bos", "eos"), {}).items()
    }
    length = read_settings(path).get(LENGTH)
    if length is None:
        return known
    if isinstance(length, bool) or not isinstance(length, int | float) or length < 1:
        raise ValueError(
            f"tokenizer_config.json: {LENGTH} is {length!r}; write the tokens of the longest text "
            "as a whole number, or leave it out"
        )
    return known | ({LENGTH: int(length)} if length < _NO_LENGTH else {})


def read_backend(file: Path) -> Tokenizer:
    """Read ``tokenizer.json``.

    Raises:
      ValueError: if it is damaged.
    """
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(
            f"{file}: not a tokenizer ({error}); restore the file as tokenizers saved it"
        ) from None


def read_settings(directory: Path) -> dict[str, Any]:
    """Read ``tokenizer_config.json``; ``{}`` where there is none."""
    return _read_json(directory / _CONFIG)


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path, dict) if path.is_file() else {}
