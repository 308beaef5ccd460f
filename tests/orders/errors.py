"""The exceptions of orders, and the problem that answers each."""

from service.web.problems import Problem, ProblemTable


class OrderNotFound(Exception):
    """No order has this id."""


class UnknownUser(Exception):
    """No user has the id in a new order."""


ORDER_PROBLEMS: ProblemTable = {
    OrderNotFound: Problem(
        "order-not-found", 404, "There is no such order",
        "Check the id: GET /orders lists the orders.",
    ),
    UnknownUser: Problem(
        "unknown-user", 409, "The user of the order does not exist",
        "Check user_id: GET /users lists the users.",
    ),
}  # fmt: skip
