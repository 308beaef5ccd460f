"""What can go wrong with users, and how each is answered."""

from service.http.problems import Problem, Table


class UserNotFound(Exception):
    """There is no user with this id."""


class EmailTaken(Exception):
    """Another user has this email, in whatever case."""


class IdTaken(Exception):
    """Another user has this id."""


class WrongCredentials(Exception):
    """The email is unknown or the password is wrong; which of the two is not told."""


USER_PROBLEMS: Table = {
    UserNotFound: Problem(
        "user-not-found", 404, "There is no such user",
        "Check the id: GET /users lists the users that there are.",
    ),
    EmailTaken: Problem(
        "email-taken", 409, "The email is taken",
        "Use another email, or change the user who has it: GET /users?email=… finds them.",
    ),
    IdTaken: Problem(
        "id-taken", 409, "The id is taken",
        "Use another id, or leave it out to have one generated.",
    ),
    WrongCredentials: Problem(
        "wrong-credentials", 401, "The email or the password is wrong",
        "Check both. Which of them is wrong is not told.",
    ),
}  # fmt: skip
