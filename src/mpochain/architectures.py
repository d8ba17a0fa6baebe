"""Model families of Hugging Face transformers: layer names and configuration attributes, as a table.

Each row of :data:`FAMILIES` contains everything that the library needs to compress, finetune, evaluate or time models
of a family; to support a new family, add a row. A family without a row uses the defaults of :class:`Family`, the
conventions of transformers. Only attributes of models and configurations are read: neither torch nor transformers is
imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "DENSE_KINDS",
    "EXPERTS",
    "FAMILIES",
    "MLP",
    "Attention",
    "DenseKind",
    "Family",
    "FusedExperts",
    "HeadCounts",
    "all_configs",
    "cache_names",
    "context_length",
    "families_of",
    "family_of",
    "fused_experts",
    "head_counts",
    "is_block",
    "logits_names",
    "mlps",
    "text_configs",
]


@dataclass(frozen=True)
class DenseKind:
    """A class of dense layers, ``y = x W^T + b``.

    Attributes:
        module: module that defines the class. Classes are compared by name, since importing transformers takes seconds.
        name: name of the class.
        transposed: whether ``weight`` is stored as ``(in_features, out_features)``.
    """

    module: str
    name: str
    transposed: bool


# A subclass with its own forward is another kind, and needs its own row.
DENSE_KINDS = (
    DenseKind("torch.nn.modules.linear", "Linear", transposed=False),
    DenseKind("transformers.pytorch_utils", "Conv1D", transposed=True),
    # Its forward adds the bias after the product; the function is that of Linear.
    DenseKind("transformers.models.falcon.modeling_falcon", "FalconLinear", transposed=False),
)


@dataclass(frozen=True)
class MLP:
    """Layer names of an MLP, whose functions between the layers act on every hidden feature separately.

    Attributes:
        writers: names of the layers that write the hidden features.
        reader: name of the layer that reads the hidden features.
        gated: True if a single writer computes gate and features in one product, the gate first.
        distinctive: True if a module with children of these names is such an MLP in every model. Otherwise only models
            of the family are searched: an adapter, for example, calls ``down_proj`` before ``up_proj``.
    """

    writers: tuple[str, ...]
    reader: str
    gated: bool = False
    distinctive: bool = True


@dataclass(frozen=True)
class FusedExperts:
    """Layout of a module that holds the matrices of all experts of a mixture as two parameters with three axes.

    A parameter is ``(experts, out_features, in_features)``. Its biases, if the experts have any, are the parameter of
    the same name with ``_bias``.

    Attributes:
        classes: names of the classes of transformers that have this layout and do not state it themselves.
        up: parameter that reads the hidden states.
        down: parameter that writes the result.
        transposed: whether a parameter is ``(experts, in_features, out_features)`` instead.
        tiled: True if the module is called with one copy of all tokens for each expert, ``(experts * tokens, hidden)``,
            zero where the router did not choose the expert. Otherwise it is called with the tokens, the experts of each
            token, and their weights.
    """

    classes: tuple[str, ...] = ()
    up: str = "gate_up_proj"
    down: str = "down_proj"
    transposed: bool = False
    tiled: bool = False


# Classes that transformers decorates with ``use_experts_implementation`` state their layout and need no row.
EXPERTS = (
    FusedExperts(("Step3p7Experts",)),
    FusedExperts(("Llama4TextExperts",), transposed=True, tiled=True),
)


@dataclass(frozen=True)
class Attention:
    """Layer names of the self-attention projections.

    Attributes:
        query: query projection, ``heads * head_dim`` outputs.
        key: key projection, ``kv_heads * head_dim`` outputs.
        value: value projection, with the shape of the key projection.
        output: output projection, ``heads * head_dim`` inputs, head by head.
        fused: a single layer that computes queries, keys and values, instead of the three.
        layout: order of the outputs of the fused layer. ``"parts"``: all queries, then all keys, then all values.
            ``"groups"``: for each key-value head its queries, its key, its value. None: another order.
    """

    query: str | None = None
    key: str | None = None
    value: str | None = None
    output: str = "o_proj"
    fused: str | None = None
    layout: Literal["parts", "groups"] | None = None


# Attributes to look for in configurations of families without a row, in this order.
_CONTEXT_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "max_target_positions",
    "model_max_length",
    "context_length",
)


@dataclass(frozen=True)
class Family:
    """A row of the table: the conventions of models with certain values of ``model_type``.

    Attributes:
        model_types: values of ``model_type`` in the configuration.
        mlps: kinds of MLP.
        attention: attention projections; None for a family without attention, and in the defaults.
        blocks: class names of the blocks that may be recomputed in a backward pass, or of their base classes.
        context_length: configuration attributes for the longest input in tokens; the first integer is used. Empty if
            inputs may have any length.
        heads: configuration attribute with the number of query heads.
        kv_heads: configuration attribute with the number of key-value heads, or a function of the configuration. If the
            attribute is missing or None, the number is that of the query heads.
        cache: configuration attribute and forward argument that switch the key-value cache on or off.
        past: output attribute and forward argument with the key-value cache.
        logits: output attribute with the logits.
        last_logits: forward argument with the number of last positions whose logits are computed.
        attention_dropouts: module attributes with the rate, or the module, of dropout on attention.
    """

    model_types: tuple[str, ...] = ()
    mlps: tuple[MLP, ...] = ()
    attention: Attention | None = None
    blocks: tuple[str, ...] = ("GradientCheckpointingLayer",)
    context_length: tuple[str, ...] = _CONTEXT_LENGTHS
    heads: str = "num_attention_heads"
    kv_heads: str | Callable[[Any], int] = "num_key_value_heads"
    cache: str = "use_cache"
    past: str = "past_key_values"
    logits: str = "logits"
    last_logits: str = "logits_to_keep"
    attention_dropouts: tuple[str, ...] = ("attention_dropout", "attn_dropout")


@dataclass(frozen=True)
class HeadCounts:
    """Numbers of attention heads.

    Attributes:
        query: number of query heads.
        key_value: number of key-value heads, a divisor of ``query``.
    """

    query: int
    key_value: int


def _falcon_kv_heads(config: Any) -> int:
    if config.new_decoder_architecture:
        return int(config.num_kv_heads)
    return 1 if config.multi_query else int(config.num_attention_heads)


_GATED = MLP(("gate_proj", "up_proj"), "down_proj")
_GATED_FUSED = MLP(("gate_up_proj",), "down_proj", gated=True)
_UNGATED = MLP(("up_proj",), "down_proj", distinctive=False)
_C_FC = MLP(("c_fc",), "c_proj")
_FC = MLP(("fc1",), "fc2")
_FC_IN = MLP(("fc_in",), "fc_out")
_H_TO_4H = MLP(("dense_h_to_4h",), "dense_4h_to_h")

_O_PROJ = Attention("q_proj", "k_proj", "v_proj", "o_proj")
_OUT_PROJ = Attention("q_proj", "k_proj", "v_proj", "out_proj")
_DENSE = Attention("q_proj", "k_proj", "v_proj", "dense")
_C_ATTN = Attention(output="c_proj", fused="c_attn", layout="parts")
_QUERY_KEY_VALUE = Attention(output="dense", fused="query_key_value", layout="groups")

FAMILIES: tuple[Family, ...] = (
    Family(
        (
            *("llama", "mistral", "ministral", "ministral3", "smollm3", "qwen2", "qwen3", "gemma", "gemma2"),
            *("gemma3_text", "olmo", "olmo2", "olmo3", "granite", "stablelm", "cohere", "cohere2", "helium"),
            *("exaone4", "seed_oss", "ernie4_5", "hunyuan_v1_dense"),
        ),
        (_GATED,),
        _O_PROJ,
    ),
    Family(("arcee", "apertus", "nemotron"), (_UNGATED,), _O_PROJ),
    Family(("phi3",), (_GATED_FUSED,), Attention(output="o_proj", fused="qkv_proj", layout="parts")),
    Family(("glm", "glm4"), (_GATED_FUSED,), _O_PROJ),
    Family(("starcoder2",), (_C_FC,), _O_PROJ),
    Family(("phi",), (_FC,), _DENSE),
    Family(("opt", "xglm", "biogpt"), (_FC,), _OUT_PROJ),
    Family(("gpt2", "imagegpt"), (_C_FC,), _C_ATTN),
    Family(("openai-gpt",), (_C_FC,), _C_ATTN, blocks=("Block",)),
    Family(("gpt_bigcode",), (_C_FC,), Attention(output="c_proj", fused="c_attn", layout="groups")),
    Family(("gpt_neo",), (_C_FC,), _OUT_PROJ),
    Family(("gptj",), (_FC_IN,), _OUT_PROJ),
    # Queries, values and keys in four interleaved parts.
    Family(("codegen",), (_FC_IN,), Attention(output="out_proj", fused="qkv_proj")),
    Family(("gpt_neox", "gpt_neox_japanese"), (_H_TO_4H,), _QUERY_KEY_VALUE),
    Family(("persimmon",), (_H_TO_4H,), _QUERY_KEY_VALUE),
    # ALiBi depends only on distances, so inputs may have any length.
    Family(("bloom",), (_H_TO_4H,), _QUERY_KEY_VALUE, context_length=()),
    Family(("falcon",), (_H_TO_4H,), _QUERY_KEY_VALUE, kv_heads=_falcon_kv_heads),
    Family(("mpt",), (_UNGATED,), Attention(output="out_proj", fused="Wqkv", layout="parts")),
    # A state of fixed size instead of keys and values, and no positions.
    Family(("mamba", "falcon_mamba"), context_length=(), past="cache_params"),
    Family(("mamba2", "xlstm"), context_length=(), past="cache_params"),
    # Trained up to context_length, but its state has one size for texts of any length.
    Family(("rwkv",), context_length=(), past="state"),
    # Relative positions, although old configurations limit them with n_positions.
    Family(("t5", "mt5", "umt5", "longt5"), context_length=()),
)

_DEFAULT = Family()

# Attributes with the configuration of the language model inside a larger model, such as a vision-language model.
_NESTED = ("text_config", "language_config", "llm_config", "thinker_config", "decoder", "generator")
# Largest depth of nesting that is followed, in case a configuration contains itself.
_DEPTH = 4


def text_configs(model: Any) -> Iterator[Any]:
    """Yield the configuration of a model, then that of the language model inside it, from the outside in.

    Args:
        model: a Hugging Face model, or its configuration; nothing is yielded for other objects.

    Example:
        >>> from types import SimpleNamespace as Namespace
        >>> inner = Namespace(model_type="llama")
        >>> [config.model_type for config in text_configs(Namespace(model_type="llava", text_config=inner))]
        ['llava', 'llama']
    """
    config = getattr(model, "config", model if hasattr(model, "model_type") else None)
    for _ in range(_DEPTH):
        if config is None or isinstance(config, dict):
            return
        yield config
        config = next((inner for name in _NESTED if (inner := getattr(config, name, None)) is not None), None)


def all_configs(model: Any) -> Iterator[Any]:
    """Yield every configuration that a model reads, each once: those of its parts, and those inside of them.

    A model may hold copies of its configuration (the encoder and the decoder of T5), be part of another module that has
    no configuration, or share a configuration with other models. The settings of text generation are yielded too.

    Args:
        model: a module, or a configuration.

    Example:
        >>> from types import SimpleNamespace as Namespace
        >>> sees, reads = Namespace(model_type="clip"), Namespace(model_type="llama")
        >>> [config.model_type for config in all_configs(Namespace(model_type="llava", parts=[sees], text=reads))]
        ['llava', 'clip', 'llama']
    """
    modules = list(model.modules()) if hasattr(model, "modules") else [model]
    held = [getattr(module, name, None) for module in modules for name in ("config", "generation_config")]
    waiting = [model, *held]
    own = {id(value) for value in held}
    seen: set[int] = set()
    while waiting:
        value = waiting.pop(0)
        if value is None or id(value) in seen:
            continue
        seen.add(id(value))
        parts: Iterable[Any] = ()
        if isinstance(value, dict):
            parts = value.values()
        elif isinstance(value, list | tuple):
            parts = value
        elif not hasattr(value, "modules") and (id(value) in own or hasattr(value, "model_type")):
            yield value
            parts = getattr(value, "__dict__", {}).values()
        # Names of thousands of labels hold no configuration.
        waiting[:0] = [part for part in parts if not isinstance(part, str | int | float)]


def cache_names() -> tuple[str, ...]:
    """Return all configuration attributes that switch a key-value cache on or off.

    Example:
        >>> cache_names()
        ('use_cache',)
    """
    return tuple(dict.fromkeys(family.cache for family in (_DEFAULT, *FAMILIES)))


def family_of(model: Any) -> Family:
    """Return the family of a model, or the defaults.

    Args:
        model: a Hugging Face model, or its configuration.

    Example:
        >>> from types import SimpleNamespace as Namespace
        >>> family_of(Namespace(model_type="gpt2")).attention.fused
        'c_attn'
        >>> family_of(object()).cache
        'use_cache'
    """
    # The innermost configuration first: it belongs to the language model.
    for config in reversed(list(text_configs(model))):
        for family in FAMILIES:
            if getattr(config, "model_type", None) in family.model_types:
                return family
    return _DEFAULT


def families_of(model: Any) -> tuple[Family, ...]:
    """Return the families of all models inside a module, without repetition; the defaults if there are none.

    Example:
        >>> from types import SimpleNamespace as Namespace
        >>> [family.attention.fused for family in families_of(Namespace(model_type="gpt2"))]
        ['c_attn']
    """
    modules = list(model.modules()) if hasattr(model, "modules") else [model]
    families = [family_of(module) for module in modules if hasattr(module, "config")]
    return tuple(dict.fromkeys([family_of(model), *families]))


def context_length(model: Any) -> int | None:
    """Return the longest input of a model in tokens; None if it is unlimited or unknown.

    Example:
        >>> from types import SimpleNamespace as Namespace
        >>> context_length(Namespace(model_type="gpt2", n_positions=1024)), context_length(object())
        (1024, None)
    """
    names = family_of(model).context_length
    for config in reversed(list(text_configs(model))):
        for name in names:
            length = getattr(config, name, None)
            if isinstance(length, int) and not isinstance(length, bool) and length > 0:
                return length
    return None


def head_counts(model: Any) -> HeadCounts | None:
    """Return the numbers of attention heads; None if the configuration does not have them.

    Example:
        >>> from types import SimpleNamespace as Namespace
        >>> head_counts(Namespace(model_type="llama", num_attention_heads=8, num_key_value_heads=2))
        HeadCounts(query=8, key_value=2)
    """
    family = family_of(model)
    for config in reversed(list(text_configs(model))):
        heads = getattr(config, family.heads, None)
        if isinstance(heads, int):
            kv_heads = family.kv_heads(config) if callable(family.kv_heads) else getattr(config, family.kv_heads, None)
            return HeadCounts(heads, heads if kv_heads is None else kv_heads)
    return None


def is_block(module: Any, family: Family) -> bool:
    """Return True if a module is a block of this family, which may be recomputed in a backward pass."""
    return any(base.__name__ in family.blocks for base in type(module).__mro__)


def mlps(model: Any) -> tuple[MLP, ...]:
    """Return the kinds of MLP to look for in a model: those of its family, then all distinctive ones.

    Example:
        >>> MLP(("fc1",), "fc2") in mlps(object())
        True
    """
    known = [mlp for family in FAMILIES for mlp in family.mlps if mlp.distinctive]
    return tuple(dict.fromkeys([*family_of(model).mlps, *known]))


def fused_experts(module: Any) -> FusedExperts | None:
    """Return the layout of a module of transformers that holds all experts of a mixture; None for other modules.

    Example:
        >>> fused_experts(object())
    """
    kind = type(module)
    if not kind.__module__.startswith("transformers."):
        return None
    for layout in EXPERTS:
        if kind.__name__ in layout.classes:
            return layout
    # What use_experts_implementation sets; a subclass with its own forward is another kind.
    if not (hasattr(module, "is_transposed") and hasattr(kind.forward, "__wrapped__")):
        return None
    gated = getattr(module, "has_gate", True)
    return FusedExperts(up="gate_up_proj" if gated else "up_proj", transposed=bool(module.is_transposed))


def logits_names() -> tuple[str, ...]:
    """Return all output attributes that may contain the logits."""
    return tuple(dict.fromkeys(family.logits for family in (_DEFAULT, *FAMILIES)))
