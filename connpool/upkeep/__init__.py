"""What happens to pools without their users' doing. Imported when there is the first pool."""

from connpool.pool.census import engage
from connpool.upkeep import exit as exit  # noqa: A004
from connpool.upkeep import fork as fork
from connpool.upkeep import watchdog as watchdog
from connpool.upkeep.reaper import REAPER

engage(REAPER)  # last: an import that was interrupted is begun anew
