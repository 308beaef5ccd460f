"""What is asked of every contender. `wrk.lua` makes the requests; a workload's name chooses among them there."""

from dataclasses import dataclass

CONCURRENCY = (1, 8, 64, 512)


@dataclass(frozen=True)
class Workload:
    """One kind of request, or a mix."""

    name: str
    title: str
    every_round: tuple[int, ...] = (64,)  # the concurrency measured in each round; the rest only in the first
    writes: bool = False


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("one", "One user by id", CONCURRENCY),
        Workload("page", "A page of 100", CONCURRENCY),
        Workload("page1000", "A page of 1,000"),
        Workload("create", "Create", writes=True),
        Workload("update", "Update", writes=True),
        Workload("update_keyed", "Update with an Idempotency-Key", writes=True),
        Workload("update_matched", "Update with If-Match", writes=True),
        Workload("newest", "A page of 100, from the largest id"),
        Workload("ids", "100 users by their ids"),
        Workload("prefix", "A page of 100 by the beginning of a name"),
        Workload("since", "A page of 100 that were changed since a time"),
        Workload("counted", "A page of 100, with the number of all 10,000"),
        Workload("mix", "Mix: 80 % one user, 10 % a page of 100, 8 % update, 2 % create", CONCURRENCY, writes=True),
    )
}
