"""What an error response says, beyond what the tests of the API see."""

from fastapi.exceptions import RequestValidationError

from service.telemetry import metrics
from service.web.bodies import BodyTooSlow
from service.web.problems import MAX_ERRORS, MAX_NAME, MEDIA_TYPE, PROBLEMS, Problem, invalid_fields, problem_responses


def invalid(count: int, *loc: str | int) -> RequestValidationError:
    return RequestValidationError([{"loc": loc, "msg": "no", "type": "t", "input": "secret", "ctx": {}}] * count)


def test_a_body_of_many_mistakes_gets_the_first_of_them_only() -> None:
    assert len(invalid_fields(invalid(MAX_ERRORS))) == MAX_ERRORS
    assert len(invalid_fields(invalid(MAX_ERRORS + 1))) == MAX_ERRORS


def test_a_long_name_is_cut_and_a_position_stays_a_number() -> None:
    (error,) = invalid_fields(invalid(1, "body", 7, "x" * MAX_NAME + "y"))
    assert error == {"loc": ["body", 7, "x" * MAX_NAME], "msg": "no", "type": "t"}


def test_openapi_does_not_declare_that_a_connection_is_closed() -> None:
    assert "headers" not in problem_responses([PROBLEMS[BodyTooSlow]])[408]


def test_a_code_is_counted_from_nought_before_it_is_sent() -> None:
    Problem("never-sent", 400, "title", "detail")
    (counter,) = metrics.PROBLEMS.collect()
    assert next(each.value for each in counter.samples if each.labels.get("code") == "never-sent") == 0


def test_the_example_of_an_invalid_request_names_what_does_not_fit() -> None:
    (example,) = problem_responses([PROBLEMS[RequestValidationError]])[422]["content"][MEDIA_TYPE]["examples"].values()
    (error,) = invalid_fields(invalid(1, "body", "fname"))
    assert [list(each) for each in example["value"]["errors"]] == [list(error)]
