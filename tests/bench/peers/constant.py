"""A limit: FastAPI with `async def`, a path parameter to validate, and one user's bytes as the answer. No database.

The answer is a Response, which is the fastest that FastAPI has: a dictionary would be validated and written each time.
"""

from fastapi import FastAPI, Response

USER = (
    b'{"id":5000,"fname":"First5000","lname":"Last5000","email":"user5000@example.com",'
    b'"created_at":"2025-01-01T00:01:23.005000+00:00","updated_at":"2025-01-01T00:01:23.005000+00:00"}\n'
)

app = FastAPI()


@app.get("/users/{user_id}")
async def read_user(user_id: int) -> Response:  # noqa: ARG001 - FastAPI reads and checks it
    return Response(USER, media_type="application/json")
