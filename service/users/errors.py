"""What can go wrong with users, and how each is answered."""

from psycopg import IntegrityError, errors

from service.web.problems import Problem, Table


class UserNotFound(Exception):
    """There is no user with this id."""


class EmailTaken(Exception):
    """Another user has this email, in whatever case."""


class IdTaken(Exception):
    """Another user has this id."""


class UserReferenced(Exception):
    """Rows of another table need the user."""


class WrongCredentials(Exception):
    """The email is unknown or the password is wrong; which of the two is not told."""


# Somebody else's constraint or trigger, or a column narrower than schema.sql makes it: those of ours have rows below.
RULE_VIOLATED = Problem(
    "rule-violated", 409, "A rule of the database forbids this",
    "Nothing was done. The database has a rule of its own for users: ask whoever runs it. Its log names the rule.",
)  # fmt: skip

USER_PROBLEMS: Table = {
    IntegrityError: RULE_VIOLATED,
    errors.RaiseException: RULE_VIOLATED,
    errors.StringDataRightTruncation: RULE_VIOLATED,
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
        "Check both. Which of them is wrong is not told.",
    ),
}  # fmt: skip
