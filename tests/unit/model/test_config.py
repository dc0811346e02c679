"""ModelConfig: what a config.json says, what is refused, and the rotary frequencies."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import ModelConfig, RopeScaling, UnsupportedModelError, config_from_hugging_face, rotary_frequencies
from tests.support.errors import one_line
from tests.support.tiny_checkpoint import tiny_config_json

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def read(generation: Any = None, **changes: Any) -> ModelConfig:
    """The tiny config.json, changed, read; a change to `...` drops the key."""
    values = {key: value for key, value in tiny_config_json(**changes).items() if value is not ...}
    return config_from_hugging_face("tiny", values, generation)


def test_config_json_is_read_field_by_field() -> None:
    """Every number of the file arrives under Attend's name for it."""
    assert read() == ModelConfig(
        model_id="tiny",
        vocab_size=257,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        context_tokens=256,
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        eos_token_ids=(256,),
    )


@pytest.mark.parametrize(
    ("key", "field", "expected"),
    [
        ("head_dim", "head_dim", 16),
        ("num_key_value_heads", "num_kv_heads", 4),
        ("rope_theta", "rope_theta", 10_000.0),
        ("tie_word_embeddings", "tie_word_embeddings", False),
        ("hidden_act", "hidden_size", 64),
        ("eos_token_id", "eos_token_ids", ()),
    ],
)
def test_absent_optional_key_takes_the_llama_default(key: str, field: str, expected: Any) -> None:
    """Old config.json files leave out what newer ones state."""
    assert getattr(read(**{key: ...}), field) == expected


def test_null_optional_keys_count_as_absent() -> None:
    """Hugging Face writes null for `not set`."""
    config = read(head_dim=None, num_key_value_heads=None, eos_token_id=None, rope_scaling=None, rope_parameters=None)
    assert (config.head_dim, config.num_kv_heads, config.eos_token_ids) == (16, 4, ())
    assert config.rope_scaling == RopeScaling()


def test_rope_parameters_win_over_rope_theta() -> None:
    """Files of transformers 5 have the base inside rope_parameters; older ones have it at the top."""
    assert read(rope_theta=5e5).rope_theta == 5e5
    assert read(rope_theta=..., rope_parameters={"rope_type": "default", "rope_theta": 1e6}).rope_theta == 1e6
    assert read(rope_theta=5e5, rope_parameters={"rope_type": "default", "rope_theta": 1e6}).rope_theta == 1e6


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_llama3_scaling_is_read(key: str) -> None:
    """Both spellings of the key give the same scaling."""
    assert read(**{key: LLAMA3}).rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 64)


@pytest.mark.parametrize("kind_key", ["rope_type", "type"])
def test_linear_scaling_is_read(kind_key: str) -> None:
    """`type` is the older name of `rope_type`; the context before stretching is then the model's own."""
    scaling = read(rope_scaling={kind_key: "linear", "factor": 2}).rope_scaling
    assert (scaling.kind, scaling.factor, scaling.original_context_tokens) == ("linear", 2.0, 256)


@pytest.mark.parametrize(
    ("generation", "own", "expected"),
    [
        (None, 256, (256,)),
        ({"eos_token_id": 7}, 256, (7, 256)),
        ({"eos_token_id": [7, 256, 9]}, 256, (7, 256, 9)),
        ({"eos_token_id": None}, [3, 4], (3, 4)),
        ({}, None, ()),
    ],
)
def test_end_tokens_of_both_files_are_joined(generation: Any, own: Any, expected: tuple[int, ...]) -> None:
    """generation_config.json comes first; each id counts once."""
    assert read(generation, eos_token_id=own).eos_token_ids == expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"architectures": ...}, "none named"),
        ({"architectures": "GPT2LMHeadModel"}, "GPT2LMHeadModel"),
        ({"architectures": [5]}, "5"),
        ({"architectures": 5}, "5"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "much"}}, "much"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"rope_scaling": "linear"}, "config.json"),
        ({"num_key_value_heads": 3}, "num_kv_heads 3"),
        ({"head_dim": 24}, "head_dim is 24"),
        ({"eos_token_id": 257}, "257"),
        ({"eos_token_id": [256, -1]}, "-1"),
        ({"eos_token_id": "end"}, "end"),
        ({"eos_token_id": [[1]]}, "config.json"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_hidden_layers": -1}, "num_layers"),
        ({"num_attention_heads": 0}, "num_heads is 0"),
        ({"num_attention_heads": 0, "head_dim": None}, "config.json"),
        ({"num_attention_heads": "four"}, "four"),
        ({"vocab_size": None}, "config.json"),
        ({"vocab_size": [257]}, "config.json"),
        ({"max_position_embeddings": math.inf}, "config.json"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps"),
        ({"rope_theta": -1.0}, "rope_theta"),
    ],
)
def test_unsupported_config_is_refused_in_one_line_that_names_the_value(changes: dict[str, Any], named: str) -> None:
    """Nothing but UnsupportedModelError escapes, whatever the file holds."""
    with pytest.raises(UnsupportedModelError) as caught:
        read(**changes)
    assert named in one_line(caught.value)


NONSENSE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(LLAMA3)), inner, max_size=3),
    max_leaves=5,
)


@given(key=st.sampled_from([*tiny_config_json(), "rope_scaling", "rope_parameters"]), value=NONSENSE)
@settings(max_examples=300, deadline=None)
def test_config_with_any_value_replaced_is_usable_or_refused(key: str, value: Any) -> None:
    """Whatever JSON stands anywhere; what is accepted has finite frequencies."""
    try:
        config = read(**{key: value})
    except UnsupportedModelError as error:
        one_line(error)
    else:
        if config.head_dim < 10_000:
            assert all(math.isfinite(frequency) for frequency in rotary_frequencies(config))


@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "rms_norm_eps",
    ],
)
def test_missing_required_key_is_named(key: str) -> None:
    """Sizes are never guessed."""
    with pytest.raises(UnsupportedModelError, match=rf"config\.json lacks '{key}'"):
        read(**{key: ...})


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 2.0}, LLAMA3])
def test_geometry_survives_json(scaling: dict[str, Any] | None) -> None:
    """What the manifest stores is read back equal."""
    config = read({"eos_token_id": [1, 2]}, rope_scaling=scaling, attention_bias=True, mlp_bias=True, bos_token_id=1)
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": ...},
        {"colour": "blue"},
        {"vocab_size": "many"},
        {"num_layers": 2.5},
        {"eos_token_ids": 5},
        {"eos_token_ids": "12"},
        {"eos_token_ids": [None]},
        {"rope_scaling": 5},
        {"rope_scaling": {"kind": "yarn"}},
        {"rope_scaling": {"kind": "linear", "factor": "2"}},
        {"rope_scaling": {"colour": 1}},
        {"rope_theta": None},
        {"head_dim": 17},
    ],
)
def test_nonsense_geometry_json_is_refused(changes: dict[str, Any]) -> None:
    """A damaged manifest cannot become a geometry."""
    values = {**read().to_json(), **changes}
    with pytest.raises(UnsupportedModelError):
        ModelConfig.from_json({key: value for key, value in values.items() if value is not ...})


@pytest.mark.parametrize(
    ("scaling", "theta", "head_dim"),
    [
        (None, 10_000.0, 16),
        (None, 500_000.0, 64),
        ({"rope_type": "linear", "factor": 4.0}, 10_000.0, 64),
        (LLAMA3, 10_000.0, 32),
        ({**LLAMA3, "original_max_position_embeddings": 8192, "factor": 32.0}, 500_000.0, 128),
    ],
)
def test_rotary_frequencies_equal_those_of_transformers(
    scaling: dict[str, Any] | None, theta: float, head_dim: int
) -> None:
    """The scaling formulas are checked against the reference implementation."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    sizes = {"head_dim": head_dim, "max_position_embeddings": 65_536}
    rope = {"rope_type": "default", **(scaling or {}), "rope_theta": theta}
    rotary = LlamaRotaryEmbedding(LlamaConfig(**tiny_config_json(**sizes, rope_theta=theta, rope_parameters=rope)))
    config = read(**sizes, rope_theta=theta, rope_scaling=scaling)
    assert rotary_frequencies(config) == pytest.approx(rotary.inv_freq.tolist(), rel=1e-6)


def test_kv_bytes_count_keys_and_values_of_every_layer() -> None:
    """2 (key and value) x 2 layers x 2 heads x 16 floats of 4 bytes."""
    assert read().kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
