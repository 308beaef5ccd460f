"""The endpoints of /orders."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.routing import APIRoute

from service.database.pool import Database
from service.web.access import allow
from service.web.idempotency import Write, WriteHeaders
from service.web.models import Id
from service.web.problems import IdempotencyKeyReused, error_responses
from service.web.resource import Resource
from service.web.responses import json_text_response
from tests.orders import queries
from tests.orders.errors import ORDER_PROBLEMS, OrderNotFound, UnknownUser
from tests.orders.models import Order, OrderCreation, Page


def routes(database: Database, route_class: type[APIRoute]) -> APIRouter:
    """Return the routes of /orders."""
    router = APIRouter(tags=["orders"], route_class=route_class)

    @router.post(
        "/orders", operation_id="createOrder", summary="Create an order", status_code=201, response_model=Order,
        responses=error_responses(ORDER_PROBLEMS, UnknownUser, IdempotencyKeyReused, has_body=True),
    )  # fmt: skip
    @allow("write")
    def create_order(new: OrderCreation, headers: Annotated[WriteHeaders, Header()]) -> Response:
        with Write(database, headers, status=201) as write, database.connection() as conn:
            write.outcome = queries.insert_order(conn, write, new.user_id, new.item)
        return write.response("/orders")

    @router.get(
        "/orders", operation_id="listOrders", summary="List orders", response_model=list[Order],
        responses=error_responses(ORDER_PROBLEMS),
    )  # fmt: skip
    @allow("read")
    def list_orders(page: Annotated[Page, Query()]) -> Response:
        """By id, 100 at a time."""
        with database.connection() as conn:
            orders = queries.select_orders(conn, page.after or 0)
        return json_text_response(orders)

    @router.get(
        "/orders/{order_id}", operation_id="readOrder", summary="Read an order", response_model=Order,
        responses=error_responses(ORDER_PROBLEMS, OrderNotFound),
    )  # fmt: skip
    @allow("read")
    def read_order(order_id: Id) -> Response:
        with database.connection() as conn:
            order = queries.select_order(conn, order_id)
        return json_text_response(order)

    return router


ORDERS = Resource("/orders", routes, ORDER_PROBLEMS)
