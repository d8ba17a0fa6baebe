"""Plug-in of vLLM: it serves the folders of compressed models without any option.

vLLM finds :func:`register` by the entry point ``vllm.general_plugins`` of this package and calls it in each of its
processes. Nothing here imports vLLM before.
"""

__all__ = ["register"]


def register() -> None:
    """Let vLLM read compressed models; calling it again does nothing."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, register_quantization_config

    from mpochain.checkpoint.configuration import METHOD
    from mpochain.integrations.vllm.config import MpochainConfig

    if METHOD not in QUANTIZATION_METHODS:
        register_quantization_config(METHOD)(MpochainConfig)
