"""Access to the operating system: atomic file writes, processor name, allocator, memory, progress. No torch."""
