"""Commands of the PicoGPT study, one file each. Data on stdout, progress and logs on stderr."""
