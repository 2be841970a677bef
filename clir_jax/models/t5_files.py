"""T5 and mT5 in Hugging Face's files: known sizes, load, save."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from clir_jax.files import write_json
from clir_jax.models.hub import read_config, resolve
from clir_jax.models.layout import Layout, PathLike, State
from clir_jax.models.t5 import T5, T5Config
from clir_jax.models.weights import Weights, open_weights, write_weights

_SHARED, _HEAD = "shared.weight", "lm_head.weight"
_COMPARED = 4096  # rows of a table read at once


def _t5(width: int, inner: int, layers: int, heads: int, **kwargs: Any) -> T5Config:
    sizes = {"vocab_size": 32128, "d_model": width, "d_kv": 64, "d_ff": inner}
    return T5Config(**(sizes | {"num_layers": layers, "num_heads": heads} | kwargs))


def _later(vocab: int, kind: str) -> dict[str, T5Config]:
    shared: dict[str, Any] = {
        "model_type": kind, "vocab_size": vocab, "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False, "scale_decoder_outputs": False,
    }  # fmt: skip
    return {
        "small": _t5(512, 1024, 8, 6, **shared),
        "base": _t5(768, 2048, 12, 12, **shared),
        "large": _t5(1024, 2816, 24, 16, **shared),
        "xl": _t5(2048, 5120, 24, 32, **shared),
    }


# Sizes of well-known models, so that a run can be checked without a network.
KNOWN_T5: dict[str, T5Config] = {
    "t5-small": _t5(512, 2048, 6, 8),
    "t5-base": _t5(768, 3072, 12, 12),
    "t5-large": _t5(1024, 4096, 24, 16),
}
KNOWN_T5 |= {f"google-t5/{name}": config for name, config in KNOWN_T5.items()}
for _family, _sizes in (
    ("google/t5-v1_1", _later(32128, "t5")),
    ("google/flan-t5", _later(32128, "t5")),
    ("google/mt5", _later(250112, "mt5")),
):
    KNOWN_T5 |= {f"{_family}-{size}": config for size, config in _sizes.items()}

# Copies of the shared table, and a table that no version reads.
_IGNORED = (
    "encoder.embed_tokens.",
    "decoder.embed_tokens.",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.",
)


def _modules(gated: bool) -> dict[str, str]:
    modules = {"embeddings/word": "shared", "head": "lm_head"}
    for side, feed_forward in (("encoder", 1), ("decoder", 2)):
        block = f"{side}.block.{{}}.layer"
        attentions = {"attention": (0, "SelfAttention")}
        if side == "decoder":
            attentions["cross_attention"] = (1, "EncDecAttention")
        for ours, (place, theirs) in attentions.items():
            at = f"{side}/layers/{ours}"
            for name in ("query", "key", "value", "output"):
                modules[f"{at}/{name}"] = f"{block}.{place}.{theirs}.{name[0]}"
            modules[f"{at}/norm"] = f"{block}.{place}.layer_norm"
        at, dense = f"{side}/layers/mlp", f"{block}.{feed_forward}.DenseReluDense"
        modules[f"{at}/norm"] = f"{block}.{feed_forward}.layer_norm"
        modules[f"{at}/down"] = f"{dense}.wo"
        modules[f"{at}/up"] = f"{dense}.{'wi_1' if gated else 'wi'}"
        modules[f"{at}/gate"] = f"{dense}.wi_0"
        modules[f"{side}/norm"] = f"{side}.final_layer_norm"
        first = f"{side}.block.0.layer.0.SelfAttention"
        modules[f"{side}/position_bias"] = f"{first}.relative_attention_bias"
    return modules


_LAYOUTS = {gated: Layout(_modules(gated), _IGNORED, "load_t5") for gated in (False, True)}


def load_t5_config(name: PathLike, **overrides: Any) -> T5Config:
    """Read what a T5 is, without its weights.

    Args:
      name: as for ``hub.resolve``; a name in ``KNOWN_T5`` needs no network.
      **overrides: fields that replace the file's, such as ``dtype="bfloat16"`` or ``remat=True``.

    Returns:
      The configuration.

    Raises:
      FileNotFoundError: if the model or its ``config.json`` is not found.
      ValueError: if the file describes something else than a T5.
    """
    if str(name) in KNOWN_T5 and not Path(name).is_dir():
        return dataclasses.replace(KNOWN_T5[str(name)], **overrides)
    return read_config(resolve(name), T5Config.from_hf, overrides)


def abstract_t5(config: T5Config) -> tuple[nnx.GraphDef[T5], State]:
    """Describe a T5 without making any array.

    Args:
      config: what it is.

    Returns:
      The graph definition, and a state whose leaves are ``jax.ShapeDtypeStruct``.
    """
    return nnx.split(nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0))))


def load_t5(
    name: PathLike, *, shardings: Any = None, ignore: Sequence[str] = (), **overrides: Any
) -> tuple[T5Config, State]:
    """Load a T5, one parameter at a time, each straight to where it belongs.

    Every parameter is filled and every tensor of the files is used, or is a known copy. The output
    head is tied to the word embeddings if the files hold no other.

    Args:
      name: as for ``hub.resolve``.
      shardings: where the parameters go: one ``Sharding`` for all, or a tree of them with the
        structure of ``abstract_t5``'s state. None: JAX's default device.
      ignore: starts of further names in the files to leave out.
      **overrides: fields of the configuration that replace the file's (``dtype``, ``remat``).

    Returns:
      The configuration and the state; ``nnx.merge(abstract_t5(config)[0], state)`` makes the
      module.

    Raises:
      FileNotFoundError: if the model, its ``config.json`` or its weights are not found.
      ValueError: if files and configuration do not fit; the message lists every difference.
    """
    directory = resolve(name)
    config = read_config(directory, T5Config.from_hf, overrides)
    with open_weights(directory) as weights:
        if _HEAD in weights.shapes:
            tied = _one_table(weights)
            config = dataclasses.replace(config, tie_word_embeddings=tied)
            ignore = (*ignore, _HEAD) if tied else ignore
        _, target = abstract_t5(config)
        layout = _LAYOUTS[config.gated]
        return config, layout.read(directory, weights, target, "", shardings, ignore)


def _one_table(weights: Weights) -> bool:
    """Whether the head is a copy of the word embeddings."""
    shape = weights.shapes[_HEAD]
    if weights.shapes.get(_SHARED) != shape:
        return False
    for start in range(0, shape[0], _COMPARED):
        block = slice(start, min(start + _COMPARED, shape[0])), slice(None)
        if not np.array_equal(weights.read(_HEAD, block), weights.read(_SHARED, block)):
            return False
    return True


def save_t5(directory: PathLike, config: T5Config, params: State) -> None:
    """Write ``config.json`` and ``model.safetensors``, which ``transformers`` loads.

    Each file is replaced whole; what else is in the directory (a tokenizer) stays.

    Args:
      directory: made if it does not exist.
      config: what the model is.
      params: its own state, as from ``load_t5``. Every host must call; the first one writes.
    """
    tensors = dict(_LAYOUTS[config.gated].tensors(params))
    if config.tie_word_embeddings and not config.scale_decoder_outputs:
        # Transformers before version 5 knows no such model; a head of its own computes the same.
        tensors[_HEAD] = tensors[_SHARED]
    if jax.process_index() == 0:
        write_weights(directory, tensors)
        write_json(Path(directory) / "config.json", config.to_hf())
    if jax.process_count() > 1:  # no host goes on to read what is not yet written
        multihost_utils.sync_global_devices("save_t5")
