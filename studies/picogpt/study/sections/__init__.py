"""Sections of the study's page, one file each, which turn records into blocks and figures."""
