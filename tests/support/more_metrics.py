"""The service with an endpoint that counts as the documentation of prometheus_client says, and does no more for it."""

from fastapi import APIRouter, FastAPI, Response
from fastapi.routing import APIRoute
from prometheus_client import Counter, Gauge, Histogram, Summary

from service import app
from service.database.pool import Database
from service.web.access import allow
from service.web.resource import Resource

ORDERS = Counter("orders_total", "Orders received.", ["kind"])
ORDER_SIZE = Histogram("order_size", "Items of an order.", buckets=[1, 10, 100])
ORDER_PRICE = Summary("order_price", "Price of an order.")
ORDERS_OPEN = Gauge("orders_open", "Orders that are open.")


def routes(_database: Database, route_class: type[APIRoute]) -> APIRouter:
    """Return that endpoint."""
    router = APIRouter(route_class=route_class)

    @router.post("/orders")
    @allow("write")
    def order() -> Response:
        ORDERS.labels(kind="book").inc()
        ORDER_SIZE.observe(5)
        ORDER_PRICE.observe(2.5)
        ORDERS_OPEN.inc()
        return Response()

    return router


def create_app() -> FastAPI:
    """Return it; to be started by uvicorn as a factory."""
    return app.create_app(resources=[*app.RESOURCES, Resource("/orders", routes, {})])
