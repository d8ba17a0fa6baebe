"""Compression of models larger than memory: blocks run one after another over all batches, with files in between."""
