"""Hooks on a module, and changes of its forward, weight or state, which its replacement would lose."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from mpochain.errors import ArgumentError

__all__ = ["alterations", "extra_tensors", "has_movable_hook", "hooks", "require_nothing_attached"]

# Dictionaries in which torch keeps the hooks of a module, with the words for them in errors.
_HOOKS = {
    "_forward_hooks": "hooks",
    "_forward_pre_hooks": "hooks",
    "_backward_hooks": "hooks",
    "_backward_pre_hooks": "hooks",
    "_state_dict_hooks": "hooks on its state dict",
    "_state_dict_pre_hooks": "hooks on its state dict",
    "_load_state_dict_pre_hooks": "hooks on its state dict",
    "_load_state_dict_post_hooks": "hooks on its state dict",
}

# Forward hooks of torch that compute the weight from other parameters, with the call that ends this.
_REWRITING = (
    (WeightNorm, "a weight norm", "call torch.nn.utils.remove_weight_norm"),
    (SpectralNorm, "a spectral norm", "call torch.nn.utils.remove_spectral_norm"),
    (BasePruningMethod, "pruning", "call torch.nn.utils.prune.remove"),
)

_AGAIN = "remove them and register them again afterwards"


def hooks(module: nn.Module) -> Iterator[tuple[str, str]]:
    """The hooks of a module and of its parameters, each in words and with the way to remove it.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> handle = layer.register_forward_hook(print)
        >>> list(hooks(layer))
        [('hooks', 'remove them and register them again afterwards')]
    """
    for name, words in _HOOKS.items():
        if getattr(module, name, None):
            yield words, _AGAIN
    for name, parameter in module.named_parameters(recurse=False):
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            yield f"hooks on its {name}", _AGAIN


def alterations(module: nn.Module) -> Iterator[tuple[str, str]]:
    """What makes a module differ from a plain one of its class, each in words and with the way to remove it.

    A hook of accelerate does not count, since it can be moved to another module, see :func:`has_movable_hook`.

    Args:
        module: a dense or compressed layer.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> forward = layer.forward
        >>> layer.forward = lambda x: 2 * forward(x)
        >>> list(alterations(layer))
        [('its own forward, set on the instance', 'delete that attribute')]
    """
    if is_parametrized(module):
        yield (
            "parametrisations",
            "call torch.nn.utils.parametrize.remove_parametrizations, which can keep the present weight",
        )
    for kind, words, remedy in _REWRITING:
        if any(isinstance(hook, kind) for hook in module._forward_pre_hooks.values()):
            yield words, remedy
    moved = {"forward"} if has_movable_hook(module) else set()
    for name, value in vars(module).items():
        if name not in moved and callable(value) and callable(getattr(type(module), name, None)):
            yield f"its own {name}, set on the instance", "delete that attribute"
    if "_compiled_call_impl" in vars(module) and module._compiled_call_impl is not None:
        yield "a compiled forward (.compile())", "compile the model afterwards"
    if type(module).get_extra_state is not nn.Module.get_extra_state:
        yield "extra state (get_extra_state)", "use a layer without it"


def has_movable_hook(module: nn.Module) -> bool:
    """Whether a module has a hook of accelerate, such as those of ``device_map=``, around its plain forward."""
    before = vars(module).get("_old_forward")
    return "_hf_hook" in vars(module) and getattr(before, "__func__", None) is type(module).forward


def extra_tensors(layer: nn.Module) -> list[str]:
    """Names of the parameters, buffers and submodules of a dense layer besides ``weight`` and ``bias``."""
    return [
        name
        for name, value in (*layer._parameters.items(), *layer._buffers.items(), *layer._modules.items())
        if isinstance(value, Tensor | nn.Module) and name not in ("weight", "bias")
    ]


def require_nothing_attached(module: nn.Module, name: str) -> None:
    """Refuse to replace a module whose hooks or alterations would be lost.

    Args:
        module: the layer to replace.
        name: name of the layer in errors.

    Raises:
        ArgumentError: something would be lost; the message says what, and how to remove it.
    """
    for words, remedy in (*alterations(module), *hooks(module)):
        raise ArgumentError(
            f"{name} has {words}, which its replacement would lose; {remedy}, or leave the layer out with ignore="
        )
