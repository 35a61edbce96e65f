"""A disk that is really full: a small one, mounted for a process of its own, where that is allowed.

Where it is not, and besides, a process whose files may not grow any more: a quota looks like that.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from connpool import SQLiteSpool
from tests.helpers.scripts import run_program

MOUNT = """
    import ctypes, os, sys
    libc = ctypes.CDLL(None, use_errno=True)
    NEW_MOUNTS, PRIVATE = 0x20000, 1 << 14 | 1 << 18
    if libc.unshare(NEW_MOUNTS) or libc.mount(b"none", b"/", None, PRIVATE, None):
        sys.exit("not allowed")
    if libc.mount(b"tmpfs", sys.argv[1].encode(), b"tmpfs", 0, b"size=3m"):
        sys.exit("not allowed")
"""
LIMIT = """
    import os, resource, sys
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, usual[1]))
"""
DISKS = {
    "small disk": MOUNT,
    "small files": LIMIT.format(size=3_000_000),
    "no room in the log": LIMIT.format(size=400_000),
}
DEEDS = """
    from connpool import SpoolError, SQLiteSpool
    path = os.path.join(sys.argv[1], "spool.db")
    size = 10_000

    def fill(spool):
        put = 0
        try:
            while True:
                spool.put(["a"], bytes(size), put.to_bytes(16, "big"))
                put += 1
        except SpoolError as error:
            assert path + ": " in str(error), error
            assert "full" in str(error) or "(SQLITE_IOERR_WRITE)" in str(error), error
        return put

    def put_sixty(spool):
        for n in range(60):
            spool.put(["a"], bytes(size), n.to_bytes(16, "big"))

    def drain(spool):
        seen = []
        while items := spool.peek("a", 20, 10_000_000):
            seen += [int.from_bytes(item.id, "big") for item in items]
            spool.remove([item.position for item in items])
        return seen
"""


def on_a_small_disk(folder: Path, text: str, disk: str = "small disk", status: int = 0) -> list[str]:
    ran = run_program("".join(map(textwrap.dedent, (DISKS[disk], DEEDS, text))), folder)
    if ran.err.strip() == "not allowed":
        pytest.skip("no file system may be mounted here")
    assert (ran.err, ran.status) == ("", status)
    return ran.out.splitlines()


@pytest.mark.parametrize("disk", DISKS)
def test_what_a_full_disk_holds_can_be_sent_once_and_then_it_takes_messages_again(tmp_path, disk) -> None:
    said = on_a_small_disk(
        tmp_path,
        """
        spool = SQLiteSpool(path, max_age=1_000_000)
        for _ in range(3):
            put = fill(spool)
            assert put > 5 and spool.count("a") == put, put
            assert drain(spool) == list(range(put))
            assert spool.counts() == {}
        spool.close()
        spool = SQLiteSpool(path)
        print(spool.counts(), spool.damage, os.listdir(sys.argv[1]))
        spool.close()
        """,
        disk,
    )
    assert said[0].startswith("{} None")
    assert "damaged" not in said[0]


@pytest.mark.parametrize("disk", ["small files", "no room in the log"])
def test_what_was_taken_before_a_disk_was_full_and_when_it_has_space_again_is_there(tmp_path, disk) -> None:
    said = on_a_small_disk(
        tmp_path,
        """
        spool = SQLiteSpool(path)
        taken = fill(spool)
        for _ in range(3):
            fill(spool)
            try:
                spool.put(["a", "b"], bytes(size), bytes(16))
            except SpoolError:
                pass
        print(spool.count("a") == taken, spool.count("b"))
        first = spool.peek("a", 3, 10_000_000)
        spool.remove([item.position for item in first])
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        spool.put(["a", "b"], b"new", taken.to_bytes(16, "big"))
        spool.adopt()
        os.kill(os.getpid(), 9)
        """,
        disk,
        status=-9,
    )
    assert said == ["True 0"]
    spool = SQLiteSpool(tmp_path / "spool.db")
    assert spool.damage is None
    ids = [int.from_bytes(item.id) for item in spool.peek("a", 1_000, 10_000_000)]
    assert ids == list(range(3, len(ids) + 3))
    assert len(ids) > 3
    assert spool.count("b") == 1
    spool.close()


def test_what_others_have_filled_keeps_no_message_from_being_sent_once(tmp_path: Path) -> None:
    said = on_a_small_disk(
        tmp_path,
        """
        spool = SQLiteSpool(path)
        put_sixty(spool)
        ballast = open(os.path.join(sys.argv[1], "ballast"), "wb", 0)
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            pass
        more = fill(spool)
        first = [item.position for item in spool.peek("a", 20, 10_000_000)]
        spool.remove(first)
        spool.remove(first)
        print(spool.count("a") == 40 + more, spool.move("a", ["b"], 0))
        ballast.truncate(0)
        ballast.close()
        spool.adopt()
        spool.close()
        spool = SQLiteSpool(path)
        ids = [int.from_bytes(item.id, "big") for item in spool.peek("a", 1_000, 10_000_000)]
        print(ids == [*range(20, 60), *range(more)], spool.damage)
        spool.close()
        """,
    )
    assert said == ["True 0", "True None"]


def test_a_file_begun_anew_for_which_there_is_no_space_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    said = on_a_small_disk(
        tmp_path,
        """
        import resource
        usual = resource.getrlimit(resource.RLIMIT_FSIZE)
        for free in range(65_536, 81_920, 4_096):
            spool = SQLiteSpool(path)
            put_sixty(spool)
            items = spool.peek("a", 1_000, 10_000_000)
            resource.setrlimit(resource.RLIMIT_FSIZE, (32_768, usual[1]))
            spool.remove([item.position for item in items])  # the file is removed: a new one takes no less
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
            ballast = open(os.path.join(sys.argv[1], "ballast"), "wb", 0)
            disk = os.statvfs(sys.argv[1])
            ballast.write(bytes(disk.f_bavail * disk.f_frsize - free))
            try:
                spool.put(["a"], b"x", bytes(16))
            except SpoolError:
                pass
            spool.close()
            ballast.truncate(0)
            ballast.close()
            spool = SQLiteSpool(path)
            print(spool.counts(), spool.damage)
            spool.close()
        """,
    )
    assert said == ["{} None"] * 4


def test_on_a_full_disk_a_spool_is_opened_and_what_it_holds_is_sent(tmp_path: Path) -> None:
    said = on_a_small_disk(
        tmp_path,
        """
        spool = SQLiteSpool(path)
        put_sixty(spool)
        spool.close()
        ballast = open(os.path.join(sys.argv[1], "ballast"), "wb", 0)
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            pass
        spool = SQLiteSpool(path)
        print(drain(spool) == list(range(60)), spool.counts(), spool.damage)
        ballast.close()
        print(fill(spool) > 5)
        spool.close()
        """,
    )
    assert said == ["True {} None", "True"]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("max_messages=5", "10 True 5"),
        ("max_age=60", "0 False 0"),
        ("max_messages=60", "10 True 10"),
    ],
    ids=["a smaller limit", "their age", "free space"],
)
def test_what_there_is_to_do_at_opening_is_left_for_later_on_a_full_disk(tmp_path, setting, expected) -> None:
    said = on_a_small_disk(
        tmp_path,
        f"""
        import time
        from connpool import clock
        from connpool.delivery import segment
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        spool = SQLiteSpool(path)
        put_sixty(spool)
        segment.STEP = 0  # no space is given back
        spool.remove([item.position for item in spool.peek("a", 50, 10_000_000)])
        segment.STEP = 64
        spool.close()
        clock.wall = lambda: time.time() + 61
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, usual[1]))
        spool = SQLiteSpool(path, {setting})
        items = spool.peek("a", 60, 10_000_000)
        spool.release([item.position for item in items])
        print(len(items), [item.id[-1] for item in items] == list(range(50, 60)), end=" ")
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        spool.adopt()
        print(spool.count("a"))
        spool.close()
        """,
        "small files",
    )
    assert said == [expected]


@pytest.mark.parametrize("disk", DISKS)
def test_a_spool_that_has_filled_the_disk_is_opened_again_and_what_it_holds_is_sent(tmp_path, disk) -> None:
    said = on_a_small_disk(
        tmp_path,
        """
        size = 3_000
        spool = SQLiteSpool(path, durable=False)
        taken = fill(spool)
        spool.close()
        spool = SQLiteSpool(path)
        print(taken > 5, drain(spool) == list(range(taken)), spool.damage)
        spool.close()
        """,
        disk,
    )
    assert said == ["True True None"]


def test_a_spool_is_opened_where_no_file_may_grow_and_loses_nothing(tmp_path: Path) -> None:
    said = on_a_small_disk(
        tmp_path,
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        spool = SQLiteSpool(path)
        put_sixty(spool)
        spool.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, usual[1]))
        spool = SQLiteSpool(path)
        print(fill(spool), spool.count("a"))
        spool.remove([item.position for item in spool.peek("a", 10, 10_000_000)])
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        spool.close()
        spool = SQLiteSpool(path)
        print(drain(spool) == list(range(10, 60)), spool.damage)
        spool.close()
        """,
        "small files",
    )
    assert said == ["0 60", "True None"]


def test_a_damaged_file_that_a_full_disk_has_no_room_to_mend_stays_as_it_is_until_there_is_room(
    tmp_path,
) -> None:
    said = on_a_small_disk(
        tmp_path,
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        spool = SQLiteSpool(path)
        put_sixty(spool)
        spool.close()
        with open(path, "rb+") as file:
            file.write(b"!")
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, usual[1]))
        try:
            SQLiteSpool(path)
        except SpoolError as error:
            print(path in str(error), os.listdir(sys.argv[1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        spool = SQLiteSpool(path)
        print(drain(spool) == list(range(60)), spool.damage.recovered, spool.damage.lost)
        spool.close()
        """,
        "small files",
    )
    assert said == ["True ['spool.db']", "True 60 0"]


def test_counters_outlive_a_file_that_was_begun_anew(tmp_path: Path) -> None:
    said = on_a_small_disk(
        tmp_path,
        """
        spool = SQLiteSpool(path, max_messages=2)
        for n in range(5):
            (last,) = spool.put(["b"], b"1", n.to_bytes(16, "big"))
        spool.remove([item.position for item in spool.peek("b", 9, 9)])
        spool.close()
        spool = SQLiteSpool(path)
        fill(spool)
        drain(spool)
        spool.close()
        spool = SQLiteSpool(path)
        print(spool.counts(), spool.put(["b"], b"1", bytes(16))[0] % 2**48 > last % 2**48)
        spool.close()
        """,
    )
    assert said == ["{'b': SpoolCount(messages=0, bytes=0, dropped=3)} True"]


def test_a_full_disk_without_space_even_for_an_empty_file_costs_no_counter_and_no_call(
    tmp_path: Path,
) -> None:
    said = on_a_small_disk(
        tmp_path,
        """
        def occupy():
            try:
                while True:
                    ballast.write(bytes(512))
            except OSError:
                pass

        spool = SQLiteSpool(path, max_messages=5)
        for n in range(10):
            spool.put(["a"], bytes(1_000), n.to_bytes(16, "big"))
        spool.close()
        ballast = open(os.path.join(sys.argv[1], "ballast"), "wb", 0)
        occupy()
        spool = SQLiteSpool(path, max_messages=5)
        last = spool.peek("a", 5, 10_000_000)[-1].position
        print(drain(spool) == list(range(5, 10)), spool.counts())
        occupy()
        spool.remove([last])
        print(fill(spool))
        ballast.close()
        os.remove(ballast.name)
        print(spool.put(["a"], b"new", bytes(16))[0] > last)
        spool.close()
        spool = SQLiteSpool(path)
        print(drain(spool), spool.counts(), spool.damage)
        spool.close()
        """,
    )
    counters = "{'a': SpoolCount(messages=0, bytes=0, dropped=5)}"
    assert said == [f"True {counters}", "0", "True", f"[0] {counters} None"]


def test_what_was_removed_while_a_disk_was_full_does_not_come_back_with_removed_files(tmp_path) -> None:
    said = on_a_small_disk(
        tmp_path,
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        spool = SQLiteSpool(path)
        put_sixty(spool)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, usual[1]))
        spool.remove([item.position for item in spool.peek("a", 10, 10_000_000)])
        for ending in ("", "-wal", "-shm", ".lock"):
            os.remove(path + ending)
        try:
            spool.adopt()
        except SpoolError as error:
            print(path in str(error), os.listdir(sys.argv[1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        spool.adopt()
        print(spool.count("a"), spool.damage.recovered, drain(spool) == list(range(10, 60)))
        spool.close()
        """,
        "small files",
    )
    assert said == ["True ['spool.db.lock']", "50 50 True"]


def test_what_was_taken_over_before_a_disk_was_full_is_not_taken_over_again(tmp_path: Path) -> None:
    said = on_a_small_disk(
        tmp_path,
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        spool, other = SQLiteSpool(path), SQLiteSpool(path)
        for n in range(2_000):
            other.put(["a"], bytes(2_000), n.to_bytes(16, "big"))
        other.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, usual[1]))
        try:
            spool.adopt()
        except SpoolError:
            first = drain(spool)
            print(0 < len(first) < 2_000, os.path.getsize(path) < 100_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        spool.adopt()
        print(first + drain(spool) == list(range(2_000)))
        spool.close()
        print(os.listdir(sys.argv[1]))
        """,
        "small files",
    )
    assert said == ["True True", "True", "['spool.db']"]


def test_on_a_full_disk_what_is_too_old_keeps_nothing_younger_from_being_sent(tmp_path: Path) -> None:
    said = on_a_small_disk(
        tmp_path,
        """
        import time
        from connpool import clock
        from connpool.delivery.heirs import adopt
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        spool = SQLiteSpool(path, max_age=60)
        put_sixty(spool)
        spool.put(["b"], b"old", bytes(16))
        clock.wall = lambda: time.time() + 61
        other = SQLiteSpool(path)
        for n in range(3):
            other.put(["a"], b"young", bytes(15) + b"%d" % n)
        other.close()
        adopt(spool._keeper)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, usual[1]))
        print(spool.peek("b", 9, 9), [item.id[-1:] for item in spool.peek("a", 9, 10_000_000)])
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        spool.adopt()
        print(spool.count("a"), spool.counts()["a"].dropped)
        spool.close()
        """,
        "small files",
    )
    assert said == ["[] [b'0', b'1', b'2']", "3 60"]


def test_on_a_full_disk_messages_are_removed_also_from_a_file_with_many_free_pages(tmp_path: Path) -> None:
    said = on_a_small_disk(
        tmp_path,
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        spool = SQLiteSpool(path)
        for n in range(400):
            spool.put(["a"], bytes(size), n.to_bytes(16, "big"))
        positions = [item.position for item in spool.peek("a", 400, 10_000_000)]
        spool.remove(positions[:300])
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, usual[1]))
        spool.remove(positions[300:310])
        print(spool.count("a"))
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        spool.close()
        """,
        "small files",
    )
    assert said == ["90"]
