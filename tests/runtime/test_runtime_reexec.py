"""Hand-overs by USR2 with sockets that somebody else has opened, under the real gunicorn."""

import os
import signal
from pathlib import Path

from bareforge_runtime.waiting import alive

from tests.runtime.masters import Asking, masters

HOOK = "from bareforge_runtime.reexec import keep_listeners as pre_exec\n"


def test_five_hand_overs_lose_nothing(tmp_path: Path) -> None:
    with masters(tmp_path, HOOK, sockets=1) as served, Asking(served) as asking:
        assert "Listening at: unix:" in served.log.read_text()
        descriptors = [served.descriptors()]
        for _ in range(5):
            served.hand_over()
            descriptors.append(served.descriptors())
    assert asking.failures == []
    assert asking.asked > 200
    assert len(set(served.started)) == 6
    assert max(served.took) < 2.5, "an old worker waits for no successor where the next master has its own"
    assert max(descriptors) <= descriptors[0], descriptors


def test_without_the_hook_the_next_master_dies(tmp_path: Path) -> None:
    """The control of the test above."""
    with masters(tmp_path, "", sockets=1) as served:
        os.kill(served.current(), signal.SIGUSR2)
        served.wait(lambda: "Bad file descriptor" in served.log.read_text())
        assert served.get() == 200, "the old one serves on"


def test_each_socket_keeps_its_place(tmp_path: Path) -> None:
    with masters(tmp_path, HOOK, sockets=3) as served:
        descriptors = [served.descriptors()]
        for _ in range(3):
            served.hand_over()
            descriptors.append(served.descriptors())
            assert [served.get(number) for number in range(3)] == [200, 200, 200]
        # a line per master; an equal order is an equal place
        listening = [line.rpartition(" (")[0] for line in served.log.read_text().splitlines() if "Listening" in line]
        assert len({line.partition("Listening")[2] for line in listening}) == 1
    assert max(descriptors) <= descriptors[0], descriptors


def test_a_socket_of_its_own_is_left_to_gunicorn(tmp_path: Path) -> None:
    with masters(tmp_path, HOOK, sockets=0) as served, Asking(served) as asking:
        descriptors = [served.descriptors()]
        for _ in range(2):
            served.hand_over()
            descriptors.append(served.descriptors())
    assert asking.failures == []
    assert max(descriptors) <= descriptors[0], descriptors


def test_a_hand_over_that_fails_leaves_the_old_one_able_to_try_again(tmp_path: Path) -> None:
    with masters(tmp_path, HOOK, sockets=1) as served, Asking(served) as asking:
        config = tmp_path / "gunicorn.conf.py"
        good = config.read_text()
        config.write_text("raise ValueError('broken')\n")
        old = served.current()
        os.kill(old, signal.SIGUSR2)
        served.wait(lambda: "ValueError: broken" in served.log.read_text())
        config.write_text(good)
        # the old one ignores USR2 until it has noticed that its child is gone
        children = Path(f"/proc/{old}/task/{old}/children")
        served.wait(lambda: len(children.read_text().split()) == 1)
        served.hand_over()
        assert not alive(old)
    assert asking.failures == []
