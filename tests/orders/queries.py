"""SQL: each statement stands above the one function that runs it."""

from psycopg import errors

from service.database.connection import PooledConnection
from service.database.sql import utc
from service.web.idempotency import Outcome, Write
from tests.orders.errors import OrderNotFound, UnknownUser

COLUMNS = f"id, user_id, item, {utc('created_at')}"

INSERT_ORDER = f"""
    INSERT INTO public.orders
           (user_id, item)
    VALUES (%(user_id)s, %(item)s)
    RETURNING id, NULL::bigint, row_to_json((SELECT o FROM (SELECT {COLUMNS}) AS o))::text
"""


def insert_order(conn: PooledConnection, write: Write, user_id: int, item: str) -> Outcome:
    """Create an order. Raises UnknownUser."""
    try:
        created = write.execute(conn, INSERT_ORDER, {"user_id": user_id, "item": item})
    except errors.ForeignKeyViolation as exc:
        if exc.diag.constraint_name == "orders_user_id_fkey":
            raise UnknownUser from exc
        raise
    assert created
    return created


SELECT_ORDERS = f"""
    SELECT coalesce('[' || string_agg(row_to_json(o)::text, ',') || ']', '[]')
    FROM (SELECT {COLUMNS}
          FROM public.orders
          WHERE id > %(after)s
          ORDER BY id
          LIMIT 100) AS o
"""


def select_orders(conn: PooledConnection, after: int) -> str:
    """Return the first 100 orders after the id `after`, as a JSON array."""
    orders: str
    [(orders,)] = conn.execute(SELECT_ORDERS, {"after": after})
    return orders


SELECT_ORDER = f"""
    SELECT row_to_json(o)::text
    FROM (SELECT {COLUMNS}
          FROM public.orders
          WHERE id = %(id)s) AS o
"""


def select_order(conn: PooledConnection, order_id: int) -> str:
    """Return the JSON of an order. Raises OrderNotFound."""
    row = conn.execute(SELECT_ORDER, {"id": order_id}).fetchone()
    if row is None:
        raise OrderNotFound
    order: str = row[0]
    return order
