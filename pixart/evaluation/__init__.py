"""Prompt sets drawn picture by picture, with a sheet and a table: see ``__main__``."""
