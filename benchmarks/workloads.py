"""All questions that are asked of the pool: each file that asks some ends with its own ``WORKLOADS``."""

from collections.abc import Mapping

from benchmarks import (
    calls,
    delivery,
    footprint,
    growth,
    interrupts,
    lending,
    many,
    outages,
    sharing,
    spool,
    wire,
)
from benchmarks.plan import Workload

WORKLOADS: Mapping[str, Workload] = {
    **lending.WORKLOADS,
    **wire.WORKLOADS,
    **outages.WORKLOADS,
    **growth.WORKLOADS,
    **footprint.WORKLOADS,
    **interrupts.WORKLOADS,
    **sharing.WORKLOADS,
    **many.WORKLOADS,
    **calls.WORKLOADS,
    **delivery.WORKLOADS,
    **spool.WORKLOADS,
}
