"""Studies of mpochain: experiments run from a checkout, with their records and their pages."""
