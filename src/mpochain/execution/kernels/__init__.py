"""Ways to run a schedule in torch, one file each."""
