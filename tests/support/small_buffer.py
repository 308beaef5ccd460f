"""The service with less memory for what clients do not take, so that a few of them fill it."""

from fastapi import FastAPI

from service import app
from service.extras.http import clients

MAX_UNSENT = 2**22  # bytes


def create_app() -> FastAPI:
    """Return it; to be started by uvicorn as a factory."""
    clients.MAX_UNSENT = MAX_UNSENT
    return app.create_app()
