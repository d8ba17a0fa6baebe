"""Commands of the PicoGPT study, one file each; data go to stdout, progress and logs to stderr."""
