"""A users API whose database connections hold under load."""
