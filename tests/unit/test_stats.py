"""Snapshots: their documented fields, and that they are nobody else's."""

from __future__ import annotations

import attrs
import pytest

from connpool.model.states import CloseReason, PoolState
from connpool.model.stats import ConnectionInfo, EndpointInfo, Percentiles, PoolStats

FIELDS = {
    Percentiles: "p50 p95 p99 max",
    PoolStats: "name state size idle in_use shared opening closing waiting max_size min_idle checkouts opened"
    " closed timeouts connect_failures lost wait dial hold",
    ConnectionInfo: "id endpoint state uses opened_at idle_since expires_at local peer tls extra"
    " holder since origin",
    EndpointInfo: "endpoint group state since failures retry_at last_error size idle"
    " in_use opening closing checkouts opened closed connect_failures",
}


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_a_snapshot_has_the_documented_fields_and_cannot_be_changed(kind):
    names = [field.name for field in attrs.fields(kind)]
    assert names == FIELDS[kind].split()
    snapshot = kind(**dict.fromkeys(names, ()))
    for name in names:
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(snapshot, name, 1)


def test_stats_keep_their_own_copy_of_the_counters():
    values = dict.fromkeys(FIELDS[PoolStats].split(), 0)
    counters = {CloseReason.IDLE: 1}
    stats = PoolStats(**values | {"state": PoolState.OPEN, "closed": counters})
    counters[CloseReason.IDLE] = 2
    assert stats.closed == {CloseReason.IDLE: 1}
    assert stats.closed[CloseReason.BROKEN] == 0, "what never occurred"
