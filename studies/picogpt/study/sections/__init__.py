"""Sections of the study's page, one file each: from records to blocks and figures."""
