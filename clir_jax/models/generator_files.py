"""A whole generator in one directory: save it, load it, or start one from a T5.

The directory is a Hugging Face model directory with one addition::

  config.json model.safetensors                for transformers.AutoModelForSeq2SeqLM
  tokenizer.json tokenizer_config.json special_tokens_map.json      for AutoTokenizer
  clir_jax.json                                lengths, prompt, languages
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Sharding

from clir_jax.files import read_json, write_json
from clir_jax.models.directories import new_directory
from clir_jax.models.generator import Generator, GeneratorModel
from clir_jax.models.generator_tokenizer import GeneratorTokenizer, load_generator_tokenizer
from clir_jax.models.hub import resolve
from clir_jax.models.layout import PathLike, State
from clir_jax.models.t5_config import MODEL_TYPES, T5Config
from clir_jax.models.t5_files import load_t5, save_t5

FILE = "clir_jax.json"
VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedGenerator:
    """A generator in memory, with all that reading and writing text takes.

    Args:
      spec: lengths and prompt.
      t5_config: size, kind and dtype.
      graphdef: the structure of its ``GeneratorModel``.
      params: the parameters, the state that goes with ``graphdef``.
      tokenizer: its tokenizer.
    """

    spec: Generator
    t5_config: T5Config
    graphdef: nnx.GraphDef[GeneratorModel]
    params: State
    tokenizer: GeneratorTokenizer

    @property
    def model(self) -> GeneratorModel:
        """The module, made of ``graphdef`` and ``params``."""
        return nnx.merge(self.graphdef, self.params)


def abstract_generator(
    spec: Generator, t5_config: T5Config
) -> tuple[nnx.GraphDef[GeneratorModel], State]:
    """Describe a generator without making any array.

    Args:
      spec: lengths and prompt.
      t5_config: what its T5 is.

    Returns:
      The graph definition, and a state whose leaves are ``jax.ShapeDtypeStruct``.
    """
    return nnx.split(nnx.eval_shape(lambda: GeneratorModel(spec, t5_config, rngs=nnx.Rngs(0))))


def save_generator(directory: PathLike, model: LoadedGenerator) -> None:
    """Write a generator. The directory is whole, or what it was before.

    Args:
      directory: made if it does not exist; a generator saved there before is replaced.
      model: what to write, as float32. Every host must call, the first one writes.

    Raises:
      FileExistsError: if the directory holds other files than those of a saved generator.
      ValueError: if the tokenizer has more tokens than the model has embeddings.
    """
    _require_embeddings(str(directory), model.t5_config, model.tokenizer)
    about = {
        "format": VERSION,
        "generator": dataclasses.asdict(model.spec),
        "compute": {"dtype": model.t5_config.dtype, "remat": model.t5_config.remat},
    }
    with new_directory(Path(directory), is_generator, "a generator of clir_jax") as temporary:
        save_t5(temporary, model.t5_config, model.params["t5"])
        if jax.process_index() == 0:
            model.tokenizer.save(temporary)
            write_json(temporary / FILE, about)


def is_generator(directory: Path) -> bool:
    """Whether a directory holds a generator of this library."""
    path = directory / FILE
    return path.is_file() and "generator" in read_json(path, dict)


def refuse_plain_t5(directory: Path) -> None:
    """Refuse a T5 where a model is to be used as it is: its scores and texts are of no training.

    Args:
      directory: of a model that is neither a generator nor of another kind.

    Raises:
      ValueError: if it is a T5.
    """
    path = directory / "config.json"
    if path.is_file() and read_json(path, dict).get("model_type") in MODEL_TYPES:
        raise ValueError(
            f"{directory}: this is a T5, which nobody has trained to write questions or to score; "
            "train a generator from it, as init of a stage whose model is a Generator, and give "
            "that run"
        )


def load_generator(name: PathLike, *, shardings: Any = None, **overrides: Any) -> LoadedGenerator:
    """Load what ``save_generator`` wrote.

    Args:
      name: a directory, or a name as for ``hub.resolve``.
      shardings: where the parameters go: one ``Sharding`` for all, or a tree of them with the
        structure of ``abstract_generator``'s state. None: JAX's default device.
      **overrides: fields of the T5's configuration that replace the file's, such as
        ``dtype="bfloat16"`` or ``remat=True``.

    Returns:
      The generator.

    Raises:
      FileNotFoundError: if there is no such model, or a file of it is missing.
      ValueError: if the directory is not a generator of this library, or its files do not agree.
    """
    directory = resolve(name)
    path = directory / FILE
    about = read_json(path, dict) if path.is_file() else {}
    if about.get("format") != VERSION or not isinstance(about.get("generator"), dict):
        raise ValueError(
            f"{directory}: no {FILE} of a generator here that this version of clir_jax reads; give "
            "a directory that save_generator wrote, or start one from a T5"
        )
    spec = _spec(path, about["generator"])
    compute = dict(about.get("compute", {})) | overrides
    return _loaded(directory, spec, shardings, compute)


def start_generator(
    name: PathLike, spec: Generator, *, shardings: Any = None, **overrides: Any
) -> LoadedGenerator:
    """Make a generator out of a pretrained T5 or mT5, ready to be trained.

    Args:
      name: the T5 with its tokenizer, as for ``hub.resolve``.
      spec: lengths and prompt.
      shardings: as for ``load_generator``.
      **overrides: fields of the T5's configuration that replace the file's.

    Returns:
      The generator.

    Raises:
      FileNotFoundError, ValueError: as ``load_generator``.
    """
    return _loaded(resolve(name), spec, shardings, overrides)


def _loaded(
    directory: Path, spec: Generator, shardings: Any, overrides: dict[str, Any]
) -> LoadedGenerator:
    tokenizer = load_generator_tokenizer(directory)
    in_parts = shardings is not None and not isinstance(shardings, Sharding)
    places = shardings["t5"] if in_parts else shardings
    config, params = load_t5(directory, shardings=places, **overrides)
    _require_embeddings(str(directory), config, tokenizer)
    for role, own in (("eos", config.eos_token_id), ("pad", config.pad_token_id)):
        if tokenizer.id(role) != own:
            raise ValueError(
                f"{directory}: {role}_token_id is {own} in config.json and "
                f"{tokenizer.special[role]!r} is token {tokenizer.id(role)}; take the model and "
                "its tokenizer from one place"
            )
    graphdef, target = abstract_generator(spec, config)
    whole = jax.tree.unflatten(jax.tree.structure(target), jax.tree.leaves(params))
    return LoadedGenerator(spec, config, graphdef, whole, tokenizer)


def _spec(path: Path, values: dict[str, Any]) -> Generator:
    known = [field.name for field in dataclasses.fields(Generator)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(
            f"{path}: a generator has no field {unknown[0]!r}; write one of {', '.join(known)}"
        )
    try:
        return Generator(**(values | {"languages": tuple(values.get("languages", ()))}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _require_embeddings(where: str, config: T5Config, tokenizer: GeneratorTokenizer) -> None:
    if tokenizer.size > config.vocab_size:
        raise ValueError(
            f"{where}: the tokenizer has {tokenizer.size} tokens and the model "
            f"{config.vocab_size} embeddings; take the model and its tokenizer from one place"
        )
