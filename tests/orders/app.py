"""The service with orders."""

from fastapi import FastAPI

from service import app
from tests.orders.routes import ORDERS


def create_app() -> FastAPI:
    """Return it; uvicorn calls this factory."""
    return app.create_app(resources=[*app.RESOURCES, ORDERS])
