"""Demo: a dense PicoGPT and its chains at several bonds, their cost and their quality."""

from studies.picogpt.demo.result import DemoResult, DemoRow
from studies.picogpt.demo.run import demo

__all__ = ["DemoResult", "DemoRow", "demo"]
