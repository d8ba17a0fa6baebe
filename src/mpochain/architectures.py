"""Model families of Hugging Face transformers: names of layers, attributes of configurations, as data.

Everything that the library needs to know about a family, to compress, finetune, evaluate or time its models, is one
row of :data:`FAMILIES`; to support a new family, add a row. A family without a row is treated by the defaults of
:class:`Family`, the conventions of transformers. Only attributes of models and configurations are read: neither torch
nor transformers is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "DENSE_KINDS",
    "FAMILIES",
    "MLP",
    "Attention",
    "DenseKind",
    "Family",
    "HeadCounts",
    "context_length",
    "family_of",
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
        module: the module that defines the class. Importing transformers to ask for a class costs seconds, so look it
            up in ``sys.modules``: an object of the class exists only once its module is imported.
        name: of the class.
        transposed: whether ``weight`` is stored as ``(in_features, out_features)``.
    """

    module: str
    name: str
    transposed: bool


# A subclass with a forward of its own is another kind, and needs a row.
DENSE_KINDS = (
    DenseKind("torch.nn.modules.linear", "Linear", transposed=False),
    DenseKind("transformers.pytorch_utils", "Conv1D", transposed=True),
    # Its forward adds the bias after the product; the function is that of Linear.
    DenseKind("transformers.models.falcon.modeling_falcon", "FalconLinear", transposed=False),
)


@dataclass(frozen=True)
class MLP:
    """The layers of an MLP. What lies between them acts on every hidden feature separately.

    Attributes:
        writers: names of the layers that write the hidden features.
        reader: name of the layer that reads them.
        gated: whether the one writer computes gate and features in one product, the gate first.
        distinctive: whether a module with children of these names is such an MLP in every model. If not, it is looked
            for in models of the family only: an adapter, for example, calls ``down_proj`` before ``up_proj``.
    """

    writers: tuple[str, ...]
    reader: str
    gated: bool = False
    distinctive: bool = True


@dataclass(frozen=True)
class Attention:
    """The projections of self-attention by their names.

    Attributes:
        query: layer of the queries, ``heads * head_dim`` outputs.
        key: layer of the keys, ``kv_heads * head_dim`` outputs.
        value: layer of the values, in the shape of the keys.
        output: layer after attention, ``heads * head_dim`` inputs, head by head.
        fused: name of the one layer that computes queries, keys and values, in place of the three.
        layout: how the outputs of that layer are arranged. ``"parts"``: all queries, then all keys, then all values.
            ``"groups"``: for each head of the keys its queries, its key, its value. None: in another way.
    """

    query: str | None = None
    key: str | None = None
    value: str | None = None
    output: str = "o_proj"
    fused: str | None = None
    layout: Literal["parts", "groups"] | None = None


# A configuration without a row is searched for these, the first one first.
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
    """A row of the table: the conventions of the models of one or several values of ``model_type``.

    Attributes:
        model_types: values of ``model_type`` in the configuration.
        mlps: its kinds of MLP.
        attention: its projections; None for a family without attention, and in the defaults.
        blocks: classes of the blocks that may be recomputed in a backward pass, or of their bases.
        context_length: attributes of the configuration, the first integer of which is the longest input in tokens;
            empty where inputs may be of any length.
        heads: attribute with the number of heads of the queries.
        kv_heads: attribute with the number of heads of keys and values, or a function of the configuration. Where the
            attribute is missing or None there are as many as of the queries.
        cache: attribute of the configuration, and argument of a call, that switches the cache of keys and values.
        past: attribute of an output, and argument of a call, with that cache.
        logits: attribute of an output with the logits.
        last_logits: argument of a call with the number of last positions whose logits are computed.
        attention_dropouts: attributes of modules with the rate, or the module, of dropout on attention.
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
    """Numbers of attention heads: ``query``, and ``key_value``, a divisor of it, of keys and values."""

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
    # ALiBi knows distances alone.
    Family(("bloom",), (_H_TO_4H,), _QUERY_KEY_VALUE, context_length=()),
    Family(("falcon",), (_H_TO_4H,), _QUERY_KEY_VALUE, kv_heads=_falcon_kv_heads),
    Family(("mpt",), (_UNGATED,), Attention(output="out_proj", fused="Wqkv", layout="parts")),
    # States of a fixed size in place of keys and values, and no positions.
    Family(("mamba", "falcon_mamba"), context_length=(), past="cache_params"),
    Family(("mamba2",), context_length=(), past="cache_params"),
    # Positions by distance, which old configurations still limit with n_positions.
    Family(("t5", "mt5", "umt5", "longt5"), context_length=()),
)

_DEFAULT = Family()

# Attributes with the configuration of the language model within a larger model, such as one that reads images.
_NESTED = ("text_config", "language_config", "llm_config", "thinker_config", "decoder", "generator")
# Levels of nesting that are followed, so that a configuration that contains itself has an end.
_DEPTH = 4


def text_configs(model: Any) -> Iterator[Any]:
    """Yield the configuration of a model, then the one of the language model within it, from the outside in.

    Args:
        model: a model of transformers, or its configuration; other objects have none.

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


def family_of(model: Any) -> Family:
    """Return the row of a model, or the defaults.

    Args:
        model: a model of transformers, or its configuration.

    Example:
        >>> from types import SimpleNamespace as Namespace
        >>> family_of(Namespace(model_type="gpt2")).attention.fused
        'c_attn'
        >>> family_of(object()).cache
        'use_cache'
    """
    # The innermost first: it is the language model.
    for config in reversed(list(text_configs(model))):
        for family in FAMILIES:
            if getattr(config, "model_type", None) in family.model_types:
                return family
    return _DEFAULT


def context_length(model: Any) -> int | None:
    """Return the largest number of tokens that a model can read at once; None if it is unlimited or unknown.

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
    """Whether a module is a block of a model of this family, which may be recomputed in a backward pass."""
    return any(base.__name__ in family.blocks for base in type(module).__mro__)


def mlps(model: Any) -> tuple[MLP, ...]:
    """Return the kinds of MLP to look for in a model: those of its family, then all that are distinctive.

    Example:
        >>> MLP(("fc1",), "fc2") in mlps(object())
        True
    """
    known = [mlp for family in FAMILIES for mlp in family.mlps if mlp.distinctive]
    return tuple(dict.fromkeys([*family_of(model).mlps, *known]))


def logits_names() -> tuple[str, ...]:
    """Return the attributes of an output that may have the logits."""
    return tuple(dict.fromkeys(family.logits for family in (_DEFAULT, *FAMILIES)))
