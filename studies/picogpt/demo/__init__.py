"""PicoGPT demo: cost and quality of a dense model and of its chains at several bonds."""

from studies.picogpt.demo.result import DemoResult, DemoRow
from studies.picogpt.demo.run import demo

__all__ = ["DemoResult", "DemoRow", "demo"]
