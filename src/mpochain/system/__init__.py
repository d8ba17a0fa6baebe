"""Operating system access: atomic file writes, processor name, allocator, memory, progress. Does not import torch."""
