"""Statistics of layers from calibration data: second moments of inputs, outputs and gradients."""
