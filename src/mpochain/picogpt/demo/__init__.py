"""The main job in one go: a dense PicoGPT, its chains at several bonds, and what they cost and keep."""

from mpochain.picogpt.demo.result import DemoResult, DemoRow
from mpochain.picogpt.demo.run import demo

__all__ = ["DemoResult", "DemoRow", "demo"]
