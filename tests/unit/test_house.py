"""The rooms of the service depend on each other in one direction, and nothing depends on an extra."""

from tests.house import MAY_IMPORT, forbidden, modules, room_of


def test_no_import_points_the_wrong_way() -> None:
    assert not forbidden()


def test_every_room_is_on_the_plan() -> None:
    assert {room_of(module) for module in modules() if module != "service"} == set(MAY_IMPORT)
