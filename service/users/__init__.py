"""The resource: to add another, copy this folder and its line in app.py."""
