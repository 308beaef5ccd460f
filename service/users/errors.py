"""The exceptions of users, and the problem that answers each."""

from service.web.problems import RETRY_LATER, Problem, ProblemTable
from service.web.responses import FailureWithHeaders

# Seconds: three times what a hash of 64 MiB takes, so that the time tells nothing of the stored hash. Ours take 19 ms.
FAILED_LOGIN_DURATION = 0.4


class UserNotFound(Exception):
    """No user has this id."""


class EmailTaken(Exception):
    """Another user has this email, in any case."""


class IdTaken(Exception):
    """Another user has this id."""


class UserReferenced(Exception):
    """Rows of another table refer to the user."""


class WrongCredentials(Exception):
    """The email is unknown or the password is wrong. The client does not learn which."""


class TooManyAttempts(FailureWithHeaders):
    """Too many logins failed for this email, which may be known or not."""

    def __init__(self, seconds: int) -> None:
        """Have the answer say that the next login must wait so many seconds."""
        super().__init__({"Retry-After": str(seconds)})


USER_PROBLEMS: ProblemTable = {
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
    UserReferenced: Problem(
        "user-referenced", 409, "Other rows need the user",
        "Delete or change the rows of other tables that refer to this user first.",
    ),
    WrongCredentials: Problem(
        "wrong-credentials", 401, "The email or the password is wrong",
        "Check both. Nobody learns which of them is wrong.", least_duration=FAILED_LOGIN_DURATION,
    ),
    TooManyAttempts: Problem(
        "too-many-attempts", 429, "Too many logins failed for this email",
        "Nothing was checked. Try again after the seconds in Retry-After.", RETRY_LATER,
    ),
}  # fmt: skip
