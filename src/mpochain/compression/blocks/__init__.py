"""Work on a model block by block: stacks of blocks and their calls, sequential correction, refinement."""
