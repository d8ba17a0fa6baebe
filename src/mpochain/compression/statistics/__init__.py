"""Calibration statistics of layers: second moments of inputs, outputs and gradients."""
