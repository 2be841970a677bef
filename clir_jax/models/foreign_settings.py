"""A settings file of another library, of which no key is passed over unread."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clir_jax.files import read_json

_NONE: Any = object()


class Settings:
    """A JSON file that is read key by key, and in the end has no key left.

    Args:
      path: the file.
      optional: whether a file that is not there is an empty one.

    Raises:
      ValueError: if it is missing or damaged.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "config.json"
      >>> _ = path.write_text('{"bias": true, "sign": -1}')
      >>> settings = Settings(path)
      >>> settings.flag("bias")
      True
      >>> settings.finish()  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: ...config.json: key 'sign' is not known here; choose a model without it...
    """

    def __init__(self, path: Path, optional: bool = False) -> None:
        self.path = path
        missing = optional and not path.is_file()
        self.values: dict[str, Any] = {} if missing else read_json(path, dict)
        self._unread = set(self.values)

    def pop(self, key: str, default: Any = _NONE) -> Any:
        """Read a key; without a default it must be there."""
        self._unread.discard(key)
        value = self.values.get(key, default)
        if value is _NONE:
            raise ValueError(
                f"{self.path}: no {key!r}, and it is not guessed; write it as the model was trained"
            )
        return value

    def refusal(self, key: str, wanted: str, value: Any = _NONE) -> ValueError:
        """Make the error for a value that is not computed here."""
        value = self.values.get(key) if value is _NONE else value
        return ValueError(
            f"{self.path}: {key} is {value!r}, which is not computed here; choose a model with "
            f"{wanted}"
        )

    def require(self, key: str, *allowed: Any) -> None:
        """Refuse a key that is there with another value than those."""
        if self.pop(key, allowed[0]) not in allowed:
            raise self.refusal(key, " or ".join(repr(value) for value in allowed))

    def choice(self, key: str, allowed: Sequence[str], default: Any = _NONE) -> str:
        """Read one of some words; null is the default."""
        value = self.pop(key, default)
        value = default if value is None and default is not _NONE else value
        if value not in allowed:
            raise self.refusal(key, " or ".join(repr(word) for word in allowed))
        return str(value)

    def length(self, key: str, default: Any = _NONE) -> int:
        """Read a whole number of at least 1; null is the default."""
        value = self.pop(key, default)
        value = default if value is None and default is not _NONE else value
        if value is not default and (type(value) is not int or value < 1):
            raise self.refusal(key, "a whole number of at least 1")
        return int(value)

    def flag(self, key: str, default: Any = _NONE) -> bool:
        """Read true or false."""
        value = self.pop(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, "true or false")
        return value

    def text(self, key: str, default: Any = _NONE) -> Any:
        """Read a text."""
        value = self.pop(key, default)
        if value is not default and not isinstance(value, str):
            raise self.refusal(key, "a text")
        return value

    def texts(self, key: str) -> list[str]:
        """Read a list of texts."""
        value = self.pop(key)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self.refusal(key, "a list of texts")
        return value

    def ignore(self, *keys: str) -> None:
        """Read keys that change no vector."""
        self._unread -= set(keys)

    def finish(self) -> None:
        """Refuse keys that nobody has read.

        Raises:
          ValueError: if there are any.
        """
        if self._unread:
            raise ValueError(
                f"{self.path}: key {min(self._unread)!r} is not known here; choose a model without "
                "it, or remove it if it changes no vector"
            )
