"""The sections of the page, a file each: from records to blocks and figures."""
