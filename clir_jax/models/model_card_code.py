"""The Python of a model card: what loads an exported model and encodes with it.

Every snippet defines ``encode``, ``score`` or ``generate``, or is the other library's own few
lines; tests run them.
"""

from clir_jax.models.cross_encoder_files import LoadedCrossEncoder
from clir_jax.models.formats import TOWERS, LoadedRetriever
from clir_jax.models.generator_files import LoadedGenerator
from clir_jax.models.retriever import Dense

Model = LoadedRetriever | LoadedCrossEncoder | LoadedGenerator

_QUESTION, _PASSAGE = '["Where is it?"]', '["It is here."]'

# Of two towers, "{query}" and "{passage}" stand for a model each; else for the same one. "{models}"
# loads them.
_SENTENCE_TRANSFORMERS = f"""\
from sentence_transformers import SentenceTransformer

{{models}}
queries = {{query}}.encode_query({_QUESTION})
passages = {{passage}}.encode_document({_PASSAGE})
scores = {{compared}}.similarity(queries, passages)"""

_PYLATE = f"""\
from pylate import models

{{models}}
queries = {{query}}.encode({_QUESTION}, is_query=True)
passages = {{passage}}.encode({_PASSAGE}, is_query=False)"""

_MULTI_VECTOR = f"""\
from sentence_transformers import MultiVectorEncoder

{{models}}
queries = {{query}}.encode_query({_QUESTION})
passages = {{passage}}.encode_document({_PASSAGE})
scores = {{compared}}.similarity(queries, passages)"""

_COLBERT = f"""\
from colbert.infra import ColBERTConfig
from colbert.modeling.checkpoint import Checkpoint


def load(directory):
    config = ColBERTConfig.load_from_checkpoint(directory)
    return Checkpoint(directory, colbert_config=config)


{{models}}
queries = {{query}}.queryFromText({_QUESTION})
passages = {{passage}}.docFromText({_PASSAGE})"""

_TORCH_MODEL = """\
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer


def load(directory):
    about = json.loads(Path(directory, "clir_jax.json").read_text())
    spec = about["retriever"]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    encoder = AutoModel.from_pretrained(directory, add_pooling_layer=False).eval()
    head = Path(directory, "1_Dense", "model.safetensors")
    head = load_file(head) if head.exists() else {{}}

    @torch.no_grad()
    def hidden(ids, mask):
        return encoder(input_ids=ids, attention_mask=mask).last_hidden_state

    def project(x):
        if not head:
            return x
        return torch.nn.functional.linear(x, head["linear.weight"], head.get("linear.bias"))
"""

_TORCH_DENSE = """
    def encode(texts, side):
        prompt, length = spec[f"{{side}}_prompt"], spec[f"{{side}}_length"]
        batch = tokenizer(
            [prompt + text for text in texts],
            padding=True, truncation=True, max_length=length, return_tensors="pt",
        )
        x = hidden(batch["input_ids"], batch["attention_mask"])
        keep = batch["attention_mask"][..., None]
        if spec["pooling"] == "cls":
            x = x[:, 0]
        elif spec["pooling"] == "max":
            x = x.masked_fill(keep == 0, float("-inf")).amax(1)
        else:
            x = (x * keep).sum(1) / keep.sum(1)
        x = project(x)
        x = torch.tanh(x) if spec["projection_activation"] == "tanh" else x
        return torch.nn.functional.normalize(x, dim=-1) if spec["normalize"] else x
"""

_TOKENS = """
    def tokens(texts, side):
        query, length = side == "query", spec[f"{{side}}_length"]
        marker = [m for m in [about["markers"][0 if query else 1]] if m is not None]
        expand = query and spec["expansion"] and not spec["content_only"]
        room = length - len(marker)
        rows = tokenizer(list(texts), truncation=True, max_length=room)["input_ids"]
        rows = [row[:1] + marker + row[1:] for row in rows]
        width = length if expand else max(map(len, rows))
        fill = tokenizer.mask_token_id if expand else tokenizer.pad_token_id
        ids = np.array([row + [fill] * (width - len(row)) for row in rows])
        mask = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        own = np.arange(width) > len(marker)
        own = own & (np.arange(width) < mask.sum(1, keepdims=True) - 1)
        keep = own if spec["content_only"] else mask == 1
        if expand:
            keep = np.ones_like(keep)
            mask = keep.astype(int) if spec["attend_to_expansion"] else mask
        if not query and spec["skip_punctuation"]:
            keep = keep & ~np.isin(ids, about["skiplist"])
        return ids, mask, keep
"""

_TORCH_LATE = """
    def encode(texts, side):
        ids, mask, keep = tokens(texts, side)
        x = project(hidden(torch.tensor(ids), torch.tensor(mask)))
        x = torch.nn.functional.normalize(x, dim=-1)
        return [vectors[kept] for vectors, kept in zip(x.numpy(), keep)]
"""

_ONNX_MODEL = """\
import json
from pathlib import Path

import numpy as np
import onnxruntime
from transformers import AutoTokenizer


def load(directory):
    about = json.loads(Path(directory, "clir_jax.json").read_text())
    spec = about["retriever"]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    session = onnxruntime.InferenceSession(Path(directory, "model.onnx"))

    def run(ids, mask):
        inputs = {{"input_ids": np.int64(ids), "attention_mask": np.int64(mask)}}
        return session.run(None, inputs)[0]
"""

_ONNX_DENSE = """
    def encode(texts, side):
        prompt, length = spec[f"{{side}}_prompt"], spec[f"{{side}}_length"]
        batch = tokenizer(
            [prompt + text for text in texts],
            padding=True, truncation=True, max_length=length, return_tensors="np",
        )
        return run(batch["input_ids"], batch["attention_mask"])
"""

_ONNX_LATE = """
    def encode(texts, side):
        ids, mask, keep = tokens(texts, side)
        return [vectors[kept] for vectors, kept in zip(run(ids, mask), keep)]
"""

_USE = f"""
    return encode


{{models}}
queries = {{query}}({_QUESTION}, "query")
passages = {{passage}}({_PASSAGE}, "passage")"""

_CROSS_ENCODER = """\
import json
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

directory = "{directory}"
spec = json.loads(Path(directory, "clir_jax.json").read_text())["cross_encoder"]
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
frame = tokenizer.backend_tokenizer.encode("", "")


def pieces(text, side):
    return tokenizer(spec[f"{{side}}_prompt"] + text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def score(pairs):
    rows, kinds = [], []
    for query, passage in pairs:
        own = pieces(query, "query")[: spec["query_length"]]
        first = frame.ids[:1] + own + frame.ids[1:-1]
        room = spec["length"] - len(first) - 1
        second = pieces(passage, "passage")[:room] + frame.ids[-1:]
        rows.append(first + second)
        kinds.append([0] * len(first) + frame.type_ids[-1:] * len(second))
    width = max(map(len, rows))
    full = [row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows]
    masks = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    types = [kind + [0] * (width - len(kind)) for kind in kinds]
    inputs = torch.tensor(full), torch.tensor(masks), torch.tensor(types)
    return model(*inputs).logits[:, 0]


scores = score([("Where is it?", "It is here."), ("Where is it?", "It was then.")])"""

_GENERATOR = """\
import json
from pathlib import Path

from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

directory = "{directory}"
spec = json.loads(Path(directory, "clir_jax.json").read_text())["generator"]
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForSeq2SeqLM.from_pretrained(directory).eval()


def prompt(passage, language):
    before, after = spec["prompt"].split("{{passage}}")
    before, after = (text.replace("{{language}}", language) for text in (before, after))
    read = tokenizer(
        before + passage + after, add_special_tokens=False, return_offsets_mapping=True
    )
    start, stop = len(before), len(before) + len(passage.rstrip())
    own = [i for i, (_, end) in enumerate(read["offset_mapping"]) if start < end <= stop]
    # What is too much is cut at the end of the passage, not of the prompt.
    excess = max(0, len(read["input_ids"]) + 1 - spec["source_length"])
    cut = own[len(own) - excess :]
    ids = [piece for i, piece in enumerate(read["input_ids"]) if i not in cut]
    return ids + [tokenizer.eos_token_id]


def generate(passages, language, **how):
    rows = [prompt(passage, language) for passage in passages]
    inputs = tokenizer.pad({{"input_ids": rows}}, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=spec["target_length"], **how)
    return tokenizer.batch_decode(written, skip_special_tokens=True)


questions = generate(["It is here."], "Swahili", num_beams=1, do_sample=False)"""


def loading(model: Model, layout: str) -> str:
    """Write how to load an export, in Markdown.

    Args:
      model: the model; of a cross-encoder or a generator, the layout is ``transformers``.
      layout: one of ``exports.LAYOUTS``.

    Returns:
      Sentences and fenced Python, which is run in the directory of the export.
    """
    if not isinstance(model, LoadedRetriever):
        code = _CROSS_ENCODER if isinstance(model, LoadedCrossEncoder) else _GENERATOR
        return _fenced(code.format(directory="."))
    dense = isinstance(model.spec, Dense)
    torch = _TORCH_MODEL + (_TORCH_DENSE if dense else _TOKENS + _TORCH_LATE) + _USE
    onnx = _ONNX_MODEL + (_ONNX_DENSE if dense else _TOKENS + _ONNX_LATE) + _USE
    codes = {
        "transformers": [(torch, "load", "encode_{}")],
        "onnx": [(onnx, "load", "encode_{}")],
        "sentence-transformers": [(_SENTENCE_TRANSFORMERS, "SentenceTransformer", "{}_model")],
        "pylate": [
            (_PYLATE, "models.ColBERT", "{}_model"),
            (_MULTI_VECTOR, "MultiVectorEncoder", "{}_model"),
        ],
        "colbert": [(_COLBERT, "load", "{}_model")],
    }[layout]
    towers = ""
    if model.passage:
        towers = "Two models: `query/` encodes queries, `passage/` passages.\n\n"
    return towers + "\n\n".join(_fenced(_loaded(model, *code)) for code in codes)


def _loaded(model: LoadedRetriever, code: str, maker: str, named: str) -> str:
    """A snippet in which ``maker`` loads the model, or each of both, under a name."""
    if model.passage is None:
        name = named.format("").strip("_")
        made = f'{name} = {maker}(".")'
        return code.format(models=made, query=name, passage=name, compared=name)
    query, passage = (named.format(tower) for tower in TOWERS)
    made = "\n".join(
        f'{name} = {maker}("{tower}")' for name, tower in zip((query, passage), TOWERS, strict=True)
    )
    # A model compares by the cosine if its vectors have length 1, else by the dot product, which
    # is right for both towers if it is for one.
    unit = isinstance(model.spec, Dense) and model.spec.normalize
    compared = passage if unit else query
    return code.format(models=made, query=query, passage=passage, compared=compared)


def _fenced(code: str) -> str:
    return f"```python\n{code}\n```"
