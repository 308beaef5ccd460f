"""What a resource such as service/users/ provides to create_app."""

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.routing import APIRoute

from service.database.pool import Database
from service.web.problems import ProblemTable


@dataclass(frozen=True)
class Resource:
    """A set of routes, and the problems that only they answer with."""

    path: str  # such as "/users": GET / links to it
    routes: Callable[[Database, type[APIRoute]], APIRouter]
    problems: ProblemTable
