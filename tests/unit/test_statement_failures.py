"""What an error of the driver says about a statement: was it sent, was it carried out?"""

import pytest
from psycopg import Error, OperationalError, errors

from service.database.errors import ConnectionBroke, NotSent, OutcomeUnknown, statement_failure

REFUSED = [
    errors.CannotConnectNow("the database system is starting up"),
    errors.TooManyConnections("sorry, too many clients already"),
    errors.InvalidPassword("password authentication failed"),
    errors.InvalidCatalogName('database "users" does not exist'),
    errors.ProtocolViolation("query_wait_timeout"),
    OperationalError("FATAL:  query_wait_timeout\nserver closed the connection unexpectedly"),
    errors.ProtocolViolation("server login has been failing, try again later (server_login_retry)"),
]


@pytest.mark.parametrize("error", REFUSED, ids=str)
def test_a_session_that_could_not_begin_did_nothing(error: Error) -> None:
    assert isinstance(statement_failure(error, broke=True, cut=False), NotSent)
    assert not issubclass(NotSent, OutcomeUnknown)


@pytest.mark.parametrize("words", ["server conn crashed?", "query timeout"])
def test_a_session_that_ended_under_a_statement_may_have_carried_it_out(words: str) -> None:
    assert isinstance(statement_failure(errors.ProtocolViolation(words), broke=True, cut=False), ConnectionBroke)
