"""All questions that are asked of the pool: each file that asks some ends with its own ``WORKLOADS``."""

from collections.abc import Mapping

from benchmarks import calls, delivery, lending, many, sharing, spool, wire
from benchmarks.plan import Workload

WORKLOADS: Mapping[str, Workload] = {
    **lending.WORKLOADS,
    **wire.WORKLOADS,
    **sharing.WORKLOADS,
    **many.WORKLOADS,
    **spool.WORKLOADS,
    **calls.WORKLOADS,
    **delivery.WORKLOADS,
}
