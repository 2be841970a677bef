"""The parts of other libraries' retrievers: what the files of each module say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clir_jax.files import read_json
from clir_jax.models.foreign_settings import Settings
from clir_jax.models.retriever import RetrieverSpec
from clir_jax.models.tokenizer import TextTokenizer

TRANSFORMER = "sentence_bert_config.json"
_POOLINGS = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}
_OTHER_POOLINGS = ("mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
}
# What a Transformer module is for, and what it gives: the task, the model's output, its name.
_VECTORS = ("feature-extraction", "last_hidden_state", "token_embeddings")
_SCORES = ("sequence-classification", "logits", "scores")


def transformer_settings(transformer: Path, scores: bool = False) -> Settings:
    """What sentence-transformers says of an encoder, in a file that is named after its kind.

    Args:
      transformer: its directory.
      scores: whether it is that of a cross-encoder.
    """
    files = sorted(transformer.glob("sentence_*_config.json")) or [transformer / TRANSFORMER]
    settings = Settings(files[0], optional=True)
    task, output, name = _SCORES if scores else _VECTORS
    forward = {"text": {"method": "forward", "method_output_name": output}}
    settings.require("transformer_task", task)
    settings.require("modality_config", None, forward)
    settings.require("module_output_name", name)
    for key in ("model", "tokenizer", "processor", "config"):
        for end in ("args", "kwargs"):
            settings.require(f"{key}_{end}", None, {})
    settings.require("processing_kwargs", None, {})
    settings.ignore("unpad_inputs")
    return settings


def longest_text(settings: Settings, transformer: Path, positions: int) -> int:
    """Tokens of the longest text: what the settings say, at most what has a position."""
    named = settings.length("max_seq_length", 0)
    if not named:
        config = transformer / "tokenizer_config.json"
        found = read_json(config, dict) if config.is_file() else {}
        named = int(found.get("model_max_length") or positions)
    return min(named, positions)


def pooling_of(directory: Path, width: int) -> str:
    """How a Pooling module makes one vector of many, in either layout."""
    settings = Settings(directory / "config.json")
    size = "embedding_dimension" if "embedding_dimension" in settings.values else None
    settings.require(size or "word_embedding_dimension", width)
    settings.require("include_prompt", True)
    if "pooling_mode" in settings.values:
        chosen = settings.pop("pooling_mode", None)
        chosen = [chosen] if isinstance(chosen, str) else chosen
        settings.finish()
        if not isinstance(chosen, list) or len(chosen) != 1 or chosen[0] not in _POOLINGS.values():
            raise settings.refusal("pooling_mode", "'cls', 'mean' or 'max'", chosen)
        return str(chosen[0])
    for name in _OTHER_POOLINGS:
        settings.require(f"pooling_mode_{name}", False)
    modes = [n for name, n in _POOLINGS.items() if settings.flag(f"pooling_mode_{name}", False)]
    settings.finish()
    if len(modes) != 1:
        raise settings.refusal("pooling_mode", "one of cls, mean and max", modes)
    return modes[0]


def dense_of(directory: Path, width: int, reads: str) -> dict[str, Any]:
    """What a Dense module does to the feature that ``reads`` names: out, bias, activation."""
    settings = Settings(directory / "config.json")
    settings.require("in_features", width)
    settings.require("use_residual", False)
    settings.require("module_input_name", reads)
    settings.require("module_output_name", reads)
    allowed = list(_ACTIVATIONS)[: 2 if reads == "sentence_embedding" else 1]
    head = {
        "out": settings.length("out_features"),
        "bias": settings.flag("bias"),
        "activation": _ACTIVATIONS[settings.choice("activation_function", allowed)],
    }
    settings.finish()
    return head


def check_normalize(directory: Path, reads: str) -> None:
    """Refuse a Normalize module of another feature than ``reads``."""
    settings = Settings(directory / "config.json", optional=True)
    settings.require("module_input_name", reads)
    settings.require("module_output_name", reads)
    settings.finish()


def prompts_of(about: Settings) -> dict[str, str]:
    """Prompts by name, "" for none."""
    prompts = about.pop("prompts", None) or {}
    if not isinstance(prompts, dict) or any(
        not isinstance(p, str | None) for p in prompts.values()
    ):
        raise about.refusal("prompts", "texts by name", prompts)
    return {name: prompt or "" for name, prompt in prompts.items()}


def inserted_marker(
    about: Settings, key: str, tokenizer: TextTokenizer, optional: bool = False
) -> str:
    """A marker that stands for one token of its own; where it is optional, "" is none."""
    marker: str = about.text(key)
    if optional and not marker:
        return ""
    found = tokenizer.backend.token_to_id(marker)
    if found is None or found == tokenizer.id("unk"):
        raise about.refusal(
            key, "a token of its vocabulary: this one is read as the unknown token", marker
        )
    return marker


def prepended_marker(about: Settings, prompt: str, tokenizer: TextTokenizer) -> str:
    """The marker that a prompt is read as, where the library puts it before the text."""
    if not prompt:
        return ""
    for marker in (prompt, prompt.strip()):
        found = tokenizer.backend.token_to_id(marker)
        if found not in (None, tokenizer.id("unk")) and tokenizer.encode([prompt]) == [[found]]:
            return marker
    raise about.refusal("prompts", "markers that are one token of its vocabulary each", prompt)


def skiplist_ids(words: Sequence[str], tokenizer: TextTokenizer) -> tuple[int, ...]:
    """Tokens of a skiplist; words that the vocabulary lacks would all be the unknown token."""
    found = {tokenizer.backend.token_to_id(word) for word in words}
    return tuple(sorted(i for i in found if i is not None and i != tokenizer.id("unk")))


def refuse_upper_case(settings: Settings, tokenizer: TextTokenizer) -> None:
    """Refuse a model of lower-cased text whose tokenizer does not lower-case."""
    normalizer = tokenizer.backend.normalizer
    if settings.flag("do_lower_case", False) and (
        normalizer is None or normalizer.normalize_str("A") != "a"
    ):
        raise settings.refusal("do_lower_case", "False, or a tokenizer that lower-cases", True)


def refuse_long(spec: RetrieverSpec, positions: int, settings: Settings) -> None:
    """Refuse texts that are longer than the encoder has positions for."""
    for name in ("query_length", "passage_length"):
        if getattr(spec, name) > positions:
            raise ValueError(
                f"{settings.path}: {name} is {getattr(spec, name)} and the encoder has positions "
                f"for {positions} tokens; write at most that"
            )
