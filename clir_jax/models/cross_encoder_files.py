"""A whole cross-encoder in one directory: save it, load it, or start one from an encoder.

The directory is a Hugging Face model directory with one addition::

  config.json model.safetensors          for transformers.AutoModelForSequenceClassification
  tokenizer.json tokenizer_config.json special_tokens_map.json      for AutoTokenizer
  clir_jax.json                          lengths, prompts

What ``transformers`` and ``sentence_transformers.CrossEncoder`` (before and of version 6) save is
loaded too, with the length and the default prompt that are said there.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from clir_jax.files import read_json, write_json
from clir_jax.models.cross_encoder import CrossEncoder, CrossEncoderModel, Head
from clir_jax.models.directories import new_directory
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.foreign import CONFIG, MODULES, module_directories
from clir_jax.models.foreign_parts import longest_text, prompts_of, transformer_settings
from clir_jax.models.foreign_settings import Settings
from clir_jax.models.hub import (
    ENCODER_MODULES,
    encoder_prefix,
    load_config,
    load_encoder,
    resolve,
)
from clir_jax.models.layout import Layout, PathLike, State
from clir_jax.models.tokenizer import TextTokenizer, load_tokenizer
from clir_jax.models.weights import Weights, open_weights, write_weights

FILE = "clir_jax.json"
VERSION = 1
_ARCHITECTURES = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "xlm-roberta": "XLMRobertaForSequenceClassification",
}
# A score is a logit; these of sentence-transformers keep the order of logits.
_ACTIVATIONS = ("torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid")
_QUERY_LENGTH = 64
_SCORE = {"bert": "classifier", "roberta": "classifier.out_proj"}
_DENSE = {"bert": "bert.pooler.dense", "roberta": "classifier.dense"}


def _layout(family: str) -> Layout:
    modules = {f"encoder/{ours}": f"{family}.{name}" for ours, name in ENCODER_MODULES.items()}
    modules |= {"head/dense": _DENSE[family], "head/score": _SCORE[family]}
    # Constant buffers; and the pooler of a RoBERTa, which its head does not read.
    unread = ["embeddings.position_ids", "embeddings.token_type_ids"]
    unread += ["pooler."] if family == "roberta" else []
    return Layout(modules, tuple(f"{family}.{name}" for name in unread), "load_cross_encoder")


_LAYOUTS = {family: _layout(family) for family in _SCORE}


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedCrossEncoder:
    """A cross-encoder in memory, with all that scoring text takes.

    Args:
      spec: lengths and prompts.
      encoder_config: size, kind and dtype of its encoder.
      graphdef: the structure of its ``CrossEncoderModel``.
      params: the parameters, the state that goes with ``graphdef``.
      tokenizer: its tokenizer.
    """

    spec: CrossEncoder
    encoder_config: EncoderConfig
    graphdef: nnx.GraphDef[CrossEncoderModel]
    params: State
    tokenizer: TextTokenizer

    @property
    def model(self) -> CrossEncoderModel:
        """The module, made of ``graphdef`` and ``params``."""
        return nnx.merge(self.graphdef, self.params)


def abstract_cross_encoder(
    spec: CrossEncoder, encoder_config: EncoderConfig
) -> tuple[nnx.GraphDef[CrossEncoderModel], State]:
    """Describe a cross-encoder without making any array.

    Args:
      spec: lengths and prompts.
      encoder_config: what its encoder is.

    Returns:
      The graph definition, and a state whose leaves are ``jax.ShapeDtypeStruct``.
    """
    return nnx.split(
        nnx.eval_shape(lambda: CrossEncoderModel(spec, encoder_config, rngs=nnx.Rngs(0)))
    )


def save_cross_encoder(directory: PathLike, model: LoadedCrossEncoder) -> None:
    """Write a cross-encoder. The directory is whole, or what it was before.

    Args:
      directory: made if it does not exist; a cross-encoder saved there before is replaced.
      model: what to write, as float32. Every host must call, the first one writes.

    Raises:
      FileExistsError: if the directory holds other files than those of a saved cross-encoder.
      ValueError: if the tokenizer has more tokens than the encoder has embeddings.
    """
    config = model.encoder_config
    _require_embeddings(str(directory), config, model.tokenizer)
    about = {
        "format": VERSION,
        "cross_encoder": dataclasses.asdict(model.spec),
        "compute": {"dtype": config.dtype, "remat": config.remat},
    }
    label = "LABEL_0"  # one label: the logit is the score
    described = config.to_hf() | {
        "architectures": [_ARCHITECTURES[config.model_type]],
        "id2label": {"0": label},
        "label2id": {label: 0},
    }
    with new_directory(Path(directory), _is_saved, "a cross-encoder of clir_jax") as temporary:
        tensors = dict(_LAYOUTS[_family(config)].tensors(model.params))
        if jax.process_index() == 0:
            write_weights(temporary, tensors)
            write_json(temporary / "config.json", described)
            # Other libraries cut a pair to what the tokenizer says: to what this one was made for.
            numbered, length = _numbers_texts(model.tokenizer), model.spec.length
            model.tokenizer.save(temporary, positions=length, reads=length, token_types=numbered)
            write_json(temporary / FILE, about)


def is_cross_encoder(directory: Path) -> bool:
    """Whether a directory holds a cross-encoder, of this library or of ``transformers``."""
    if (directory / FILE).is_file():
        return _is_saved(directory)
    return _architecture(directory) in _ARCHITECTURES.values()


def load_cross_encoder(
    name: PathLike, *, shardings: Any = None, **overrides: Any
) -> LoadedCrossEncoder:
    """Load what ``save_cross_encoder`` or ``transformers`` wrote.

    A head of two labels becomes one: the difference of its logits, which is the log-odds of the
    second label, the relevant.

    Args:
      name: a directory, or a name as for ``hub.resolve``.
      shardings: where the parameters go: one ``Sharding`` for all, or a tree of them with the
        structure of ``abstract_cross_encoder``'s state. None: JAX's default device.
      **overrides: fields of the encoder's configuration that replace the file's, such as
        ``dtype="bfloat16"`` or ``remat=True``.

    Returns:
      The cross-encoder. Its scores are logits, before any activation. One of another library reads
      as many tokens of a pair as its files say, or as it has positions; the query's are cut to 64
      here, where that library cuts the longer of the two texts.

    Raises:
      FileNotFoundError: if there is no such model, or a file of it is missing.
      ValueError: if the directory holds no cross-encoder, files that do not agree, or a setting
        that is not computed here.
    """
    directory = resolve(name)
    if not is_cross_encoder(directory):
        raise ValueError(
            f"{directory}: this is no cross-encoder: there is no {FILE} of one, and config.json "
            f"names none of {', '.join(_ARCHITECTURES.values())}; give a run, its model/, or "
            "another directory that holds one"
        )
    spec, compute = _read_own(directory) if (directory / FILE).is_file() else (None, {})
    tokenizer = load_tokenizer(directory)
    config = load_config(directory, **(compute | overrides))
    _require_embeddings(str(directory), config, tokenizer)
    if spec is None:
        spec = _read_foreign(directory, config)
    graphdef, target = abstract_cross_encoder(spec, config)
    with open_weights(directory) as weights:
        encoder_prefix(weights)  # for its modern names
        labels = _labels(directory, config, weights)
        wanted = _with_labels(target, labels)
        params = _LAYOUTS[_family(config)].read(directory, weights, wanted, "", shardings)
    return LoadedCrossEncoder(spec, config, graphdef, _one_label(params, labels), tokenizer)


def start_cross_encoder(
    name: PathLike, spec: CrossEncoder, *, seed: int = 0, **overrides: Any
) -> LoadedCrossEncoder:
    """Make a cross-encoder out of a pretrained encoder, ready to be trained.

    BERT's pooler is taken over where the files hold one; the rest of the head starts at random.

    Args:
      name: an encoder with its tokenizer, as for ``hub.resolve``.
      spec: lengths and prompts.
      seed: of the new parameters.
      **overrides: fields of the encoder's configuration that replace the file's.

    Returns:
      The cross-encoder.

    Raises:
      FileNotFoundError: if there is no such model.
      ValueError: if its files do not fit, or it has no positions for the specification's length.
    """
    directory = resolve(name)
    tokenizer = load_tokenizer(directory)
    config, encoder = load_encoder(directory, **overrides)
    _require_embeddings(str(directory), config, tokenizer)
    graphdef, target = abstract_cross_encoder(spec, config)
    head: Any = nnx.state(Head(config, rngs=nnx.Rngs(seed)))
    if _family(config) == "bert":
        head["dense"] = _pooler(directory, head["dense"])
    leaves = jax.tree.leaves(encoder) + jax.tree.leaves(head)
    params = jax.tree.unflatten(jax.tree.structure(target), leaves)
    return LoadedCrossEncoder(spec, config, graphdef, params, tokenizer)


def _pooler(directory: Path, dense: Any) -> Any:
    """The pooler's parameters, or those that are there where the files have none."""
    with open_weights(directory) as weights:
        name = f"{encoder_prefix(weights)}pooler.dense"
        if f"{name}.weight" not in weights.shapes:
            return dense
        found = {"kernel": weights.read(f"{name}.weight").T, "bias": weights.read(f"{name}.bias")}
    for part, value in found.items():
        dense[part] = dense[part].replace(jnp.asarray(value, dense[part].get_value().dtype))
    return dense


def _family(config: EncoderConfig) -> str:
    return "bert" if config.model_type == "bert" else "roberta"


def _numbers_texts(tokenizer: TextTokenizer) -> bool:
    """Whether the tokenizer numbers the two texts of a pair."""
    return any(tokenizer.backend.encode("", "").type_ids)


def _is_saved(directory: Path) -> bool:
    path = directory / FILE
    return path.is_file() and "cross_encoder" in read_json(path, dict)


def _architecture(directory: Path) -> str:
    path = directory / "config.json"
    names = read_json(path, dict).get("architectures") if path.is_file() else None
    return str(names[0]) if isinstance(names, list) and names else ""


def _read_own(directory: Path) -> tuple[CrossEncoder, dict[str, Any]]:
    path = directory / FILE
    about = read_json(path, dict)
    values, compute = about.get("cross_encoder"), about.get("compute", {})
    if about.get("format") != VERSION or not isinstance(values, dict):
        raise ValueError(
            f"{path}: format is {about.get('format')!r} and this version of clir_jax reads "
            f"{VERSION}; update clir_jax, or save the cross-encoder again"
        )
    known = [field.name for field in dataclasses.fields(CrossEncoder)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(
            f"{path}: a cross-encoder has no field {unknown[0]!r}; write one of {', '.join(known)}"
        )
    try:
        return CrossEncoder(**values), dict(compute)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_foreign(directory: Path, config: EncoderConfig) -> CrossEncoder:
    """What ``transformers`` or sentence-transformers says of one; nothing is guessed."""
    if (directory / MODULES).is_file():
        names = [name for name, _ in module_directories(directory)]
        if names != ["Transformer"]:
            raise ValueError(
                f"{directory / MODULES}: type: the modules of this cross-encoder are "
                f"{', '.join(names)}, and Transformer alone is computed here; choose a model with "
                "a head for sequence classification"
            )
    about = Settings(directory / CONFIG, optional=True)
    prompts, default = prompts_of(about), about.text("default_prompt_name", None)
    if default is not None and default not in prompts:
        raise about.refusal("default_prompt_name", "one of its prompts, or null")
    about.choice("activation_fn", _ACTIVATIONS, _ACTIVATIONS[0])
    about.require("truncate_dim", None)
    about.ignore("__version__", "model_type", "requirements", "keep_in_fp32_modules")
    about.finish()
    _check_older_activation(directory)
    settings = transformer_settings(directory, scores=True)
    length = longest_text(settings, directory, config.max_length)
    settings.ignore("do_lower_case")  # The tokenizer's own file says it.
    settings.finish()
    # Other prompts than the default one are put before a text only where somebody asks for them.
    prompt = prompts[default] if default is not None else ""
    return CrossEncoder(length, min(_QUERY_LENGTH, length - 5), query_prompt=prompt)


def _check_older_activation(directory: Path) -> None:
    """Refuse what sentence-transformers before version 6 says in ``config.json``."""
    path = directory / "config.json"
    about = read_json(path, dict)
    own = about.get("sentence_transformers")
    for key, value in (
        ("sentence_transformers.activation_fn", own.get("activation_fn") if own else None),
        ("sbert_ce_default_activation_function", about.get("sbert_ce_default_activation_function")),
    ):
        if value not in (None, *_ACTIVATIONS):
            raise ValueError(
                f"{path}: {key} is {value!r}, which is not computed here; choose a model with "
                f"{' or '.join(map(repr, _ACTIVATIONS))}"
            )


def _labels(directory: Path, config: EncoderConfig, weights: Weights) -> int:
    name = f"{_SCORE[_family(config)]}.weight"
    labels = weights.shapes.get(name, (1,))[0]
    if labels > 2:
        raise ValueError(
            f"{directory}: its head {name} has {labels} labels, and a score is of one or two; "
            "choose a model with one label, or with two of which the second is the relevant"
        )
    return int(labels)


def _with_labels(target: State, labels: int) -> State:
    """The abstract state with so many labels."""
    wanted: State = jax.tree.map(lambda leaf: leaf, target)
    score: Any = wanted["head"]["score"]
    for name, shape in (("kernel", (score["kernel"].shape[0], labels)), ("bias", (labels,))):
        leaf = score[name].get_value()
        score[name] = score[name].replace(jax.ShapeDtypeStruct(shape, leaf.dtype))
    return wanted


def _one_label(params: State, labels: int) -> State:
    if labels == 1:
        return params
    one: State = jax.tree.map(lambda leaf: leaf, params)
    score: Any = one["head"]["score"]
    for name in ("kernel", "bias"):
        value = score[name].get_value()
        score[name] = score[name].replace(value[..., 1:] - value[..., :1])
    return one


def _require_embeddings(where: str, config: EncoderConfig, tokenizer: TextTokenizer) -> None:
    if tokenizer.size > config.vocab_size:
        raise ValueError(
            f"{where}: the tokenizer has {tokenizer.size} tokens and the encoder "
            f"{config.vocab_size} embeddings; take both from one model"
        )
