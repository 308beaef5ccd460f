"""The resource /users."""
