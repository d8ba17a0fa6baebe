"""Demonstration: a language model from the package index, compressed and measured beside the dense one.

Run it with ``make demo``, or ``python -m demo`` from the root of a checkout.
"""
