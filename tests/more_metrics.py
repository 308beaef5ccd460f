"""The service with an endpoint that counts as prometheus_client's documentation says, and nothing else."""

from fastapi import APIRouter, FastAPI, Response
from fastapi.routing import APIRoute
from prometheus_client import Counter, Gauge, Histogram, Summary

from service import app
from service.database.pool import Database
from service.users import routes as users

ORDERS = Counter("orders_total", "Orders received.", ["kind"])
ORDER_SIZE = Histogram("order_size", "Items of an order.", buckets=[1, 10, 100])
ORDER_PRICE = Summary("order_price", "Price of an order.")
ORDERS_OPEN = Gauge("orders_open", "Orders that are open.")


def create_app() -> FastAPI:
    """Return it; to be started by uvicorn as a factory."""
    usual = users.routes

    def routes(database: Database, route_class: type[APIRoute]) -> APIRouter:
        router = usual(database, route_class)

        @router.post("/orders")
        def order() -> Response:
            ORDERS.labels(kind="book").inc()
            ORDER_SIZE.observe(5)
            ORDER_PRICE.observe(2.5)
            ORDERS_OPEN.inc()
            return Response()

        return router

    users.routes = routes
    return app.create_app()
