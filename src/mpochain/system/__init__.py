"""The machine and its operating system: files, processor, allocator, memory, progress. No torch."""
