"""Frontier of quality against size of all-MiniLM-L6-v2, an encoder of sentences."""
