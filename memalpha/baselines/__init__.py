"""The systems of the tables, one file each."""
