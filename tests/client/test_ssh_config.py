"""`ssh NAME` for attached sessions: what is written, and what the real ssh makes of it."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import homes
import pytest

from mlbox import errors
from mlbox.client import sessions, ssh_config, ssh_files, state
from mlbox.client.commands import ssh_config as command
from mlbox.errors import MlboxError

ID = "01ARYZ6S41TSV4RRFFQ69G5FAV"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKFGcLNm3cJkOlm3cQgvRzRjHJzI0SqGpDtE7N9kXf3d"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return homes.fresh(tmp_path / "my home", monkeypatch)  # a blank, as in macOS's "Application Support"


WAY = {"ssh": ["ssh", "-F", "/etc/lab config"], "host": "gpu1", "control": "/run/c", "local": "/run/l", "moves": False}
OTHER = "01ARYZ6S41TSV4RRFFQ69G5FAW"


def enter(
    name: str = "kind-otter", user: str = "ada", host_key: str = KEY, session: str = ID, socket: str = "/tmp/s.sock",
    owner: str = "", **way: object,
) -> str:  # fmt: skip
    facts = {"user": user, "host_key": host_key, "socket": socket}
    return ssh_config.enter(
        session, name, facts, {**WAY, **way}, ["/keys/id one", "/keys/100%"], "/pass words/50%.sock", owner
    )


def add(port: int = 8022, user: str = "ada", host_key: str = KEY, session: str = ID, owner: str = "") -> None:
    ssh_config.add(session, port, user, host_key, ["/keys/id one", "/keys/100%"], "$PASSWORDS", owner)


def resolved(*arguments: str) -> dict[str, list[str]]:
    if shutil.which("ssh") is None:
        pytest.skip("NO ssh here")
    done = subprocess.run(
        ("ssh", "-T", "-G", "-F", str(ssh_config.top()), *arguments), capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)
    return found


def test_a_session_by_its_name(home: Path) -> None:
    assert enter() == "kind-otter"
    for name in ("kind-otter", "mlbox-kind-otter", f"mlbox-{ID.lower()}"):
        found = resolved(name)
        assert found["user"] == ["ada"]
        assert [alias.upper() for alias in found["hostkeyalias"]] == [f"MLBOX-{ID}"]
        assert found["stricthostkeychecking"] == ["true"]
        assert [v.strip('"') for v in found["userknownhostsfile"]] == [f"{home}/state/mlbox/ssh.d/{ID}.known_hosts"]
        assert found["identityfile"][:2] == ["/keys/id one", "/keys/100%%"]
        assert found["identityagent"] == ["/pass words/50%.sock"]
        command = shlex.split(found["proxycommand"][0])
        assert command[-2:] == [f"{home}/state/mlbox/proxy.py", f"{home}/state/mlbox/ssh.d/{ID}.json"]
    place = ssh_config.place(ID)
    assert (place["remote"], place["host"], place["name"]) == ("/tmp/s.sock", "gpu1", "kind-otter")
    assert place["find"][2:] == ["ssh-config", "proxy", ID, "--ssh-config", "/etc/lab config"]


def test_how_the_users_hosts_log_in_is_not_how_sessions_do(home: Path) -> None:
    enter()
    own = home / "config"
    own.write_text(f'Include "{ssh_config.top()}"\nHost *\n  PubkeyAuthentication no\n'
                   "  PreferredAuthentications password,keyboard-interactive\n")  # fmt: skip
    found = resolved("-F", str(own), "kind-otter")
    assert (found["preferredauthentications"], found["pubkeyauthentication"]) == (["publickey"], ["true"])
    assert resolved("-F", str(own), "gpu1")["pubkeyauthentication"] == ["false"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_session_by_its_port(home: Path, host: str) -> None:
    add()
    known = f"{home}/state/mlbox/ssh.d/{ID}.{os.getpid()}.known_hosts"
    found = resolved("-p", "8022", host)
    assert [v.strip('"') for v in found["userknownhostsfile"]] == [known]
    assert found["identityagent"] == ["$PASSWORDS"]
    assert known not in "".join(resolved("-p", "8023", host)["userknownhostsfile"])


def test_a_user_of_a_windows_domain() -> None:
    enter(user="LAB\\ada")
    assert resolved("kind-otter")["user"] == ["LAB\\ada"]
    ssh_config.drop(ID)
    typed = shlex.split(ssh_config.words(ID, 8022, "LAB\\ada"))
    assert resolved(*typed[3:])["user"] == ["LAB\\ada"]
    with pytest.raises(MlboxError):
        enter(user="LAB\\")


def test_other_hosts_are_left_alone() -> None:
    add()
    enter()
    found = resolved("gpu1")
    assert (found["hostname"], found["port"]) == (["gpu1"], ["22"])
    assert "hostkeyalias" not in found


def test_two_sessions_at_once() -> None:
    enter()
    enter("calm-owl", "root", session=OTHER)
    assert (resolved("kind-otter")["user"], resolved("calm-owl")["user"]) == (["ada"], ["root"])
    ssh_config.drop(ID)
    assert "proxycommand" not in resolved("kind-otter")
    assert resolved("calm-owl")["user"] == ["root"]


def test_two_sessions_of_one_name_on_two_hosts() -> None:
    enter()
    assert enter(session=OTHER, host="gpu2") == f"mlbox-{OTHER.lower()}"
    assert enter() == "kind-otter"
    assert [alias.upper() for alias in resolved("kind-otter")["hostkeyalias"]] == [f"MLBOX-{ID}"]


@pytest.mark.parametrize(
    "config",
    [
        "Host gpu9 kind-otter\n  HostName 10.0.0.9\n",
        'host = "kind-otter"\n',
        "Host kind-*\n",
        "Host KIND-OTTER\n",
        "Include more/*.conf\n",
    ],
    ids=["host", "equals", "pattern", "case", "include"],
)
def test_a_host_of_the_users_own_is_not_shadowed(home: Path, config: str) -> None:
    (home / ".ssh/more").mkdir(parents=True)
    (home / ".ssh/more/one.conf").write_text("Match all\nHost a b kind-otter\n" if "Include" in config else "")
    (home / ".ssh/config").write_text(f'Include "{ssh_config.top()}"\nHost *\n  User eve\nHost ?* !kind-otter\n')
    assert enter() == "kind-otter"
    assert enter() == "kind-otter"  # its own entry, which that file includes, is no host of the user's
    (home / ".ssh/config").write_text(config)
    assert enter() == "mlbox-kind-otter"
    assert "proxycommand" not in resolved("kind-otter")
    assert "proxycommand" in resolved("mlbox-kind-otter")


def test_a_host_of_mlboxs_is_not_shadowed(home: Path) -> None:
    assert enter("gpu1") == "mlbox-gpu1"
    state.update("hosts.json", "kind-otter", {"planted": ""})
    assert enter() == "mlbox-kind-otter"
    (home / "lab").write_text("Host calm-owl\n")
    assert enter("calm-owl", ssh=["ssh", "-F", str(home / "lab")]) == "mlbox-calm-owl"


def test_a_host_that_is_named_like_a_session_s_longer_name_is_not_shadowed(home: Path) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh/config").write_text("Host mlbox-*\n  ForwardAgent yes\nHost mlbox-1\n")
    assert enter("1", owner="bob") == f"mlbox-{ID.lower()}"
    assert enter("2", owner="bob") == "mlbox-2"  # that line is for sessions


HASHED = "|1|a2luZCBvdHRlcnMgc2FsdCAyMGI=|EWViODwp6fBnazeMuqWLqD6ohTw="  # kind-otter


@pytest.mark.parametrize(
    ("known", "host"),
    [
        (f"kind-otter {KEY}\n", True),
        (f"10.0.0.9,Kind-Otter {KEY}\n", True),
        (f"{HASHED} {KEY}\n", True),
        (f"@cert-authority kind-* {KEY}\n", True),
        (f"@cert-authority * {KEY}\ncalm-owl {KEY}\n# kind-otter {KEY}\n|1|no|base64 {KEY}\n", False),
    ],
    ids=["plain", "several", "hashed", "authority", "others"],
)
@pytest.mark.parametrize("file", ["known_hosts", "lab keys"])
def test_a_host_whose_key_is_known_is_not_shadowed(home: Path, known: str, host: bool, file: str) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh/config").write_text('Host *.lab\n  UserKnownHostsFile /dev/null "~/.ssh/lab keys"\n')
    (home / ".ssh" / file).write_text(known)
    assert enter() == ("mlbox-kind-otter" if host else "kind-otter")


def test_this_machine_and_a_host_of_config_toml_are_not_shadowed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_files, "_ADDRESSES", str(home / "hosts"))
    (home / "hosts").write_text("10.0.0.9\tNAS nas.lab  # calm-owl\n\n")
    assert (enter("nas"), enter("calm-owl")) == ("mlbox-nas", "calm-owl")
    (home / "config/mlbox").mkdir(parents=True)
    (home / "config/mlbox/config.toml").write_text('hosts = ["gpu1", "ada@kind-otter"]\n')
    assert enter() == "mlbox-kind-otter"
    assert enter("localhost") == "mlbox-localhost"


def test_a_colleague_s_session_takes_no_plain_name_and_gets_no_agent(home: Path) -> None:
    enter()
    assert enter("nas", session=OTHER, owner="bob") == "mlbox-nas"
    own = home / "config"
    own.write_text(f'Include "{ssh_config.top()}"\nHost *\n  ForwardAgent yes\n  ForwardX11 yes\n')
    add(8022)
    add(8023, session=OTHER, owner="bob")
    for words, given in (
        (("nas",), "yes"), (("kind-otter",), "yes"), (("-p", "8022", "localhost"), "yes"),
        (("mlbox-nas",), "no"), (("-p", "8023", "localhost"), "no"), (("-A", "-X", "mlbox-nas"), "yes"),
    ):  # fmt: skip
        found = resolved("-F", str(own), *words)
        assert (found["forwardagent"], found["forwardx11"]) == ([given], [given]), words
        assert ("proxycommand" in found) == (words[-1] in ("kind-otter", "mlbox-nas"))


def test_what_a_host_tells_runs_there_is_what_ssh_knows_of_it() -> None:
    enter()
    enter("calm-owl", session=OTHER)
    enter("far-fox", session=ID[:-1] + "X", host="gpu2")
    enter("from-queue", session=ID[:-1] + "Y", moves=True)
    enter("other-root", session=ID[:-1] + "Z", root="/share/lab")
    ssh_config.keep_only("gpu1", "", [OTHER])
    left = sorted(found[0] for found in ssh_config.names().values())
    assert left == ["calm-owl", "far-fox", "from-queue", "other-root"]


def test_the_host_key_is_known_by_session_and_by_port() -> None:
    enter()
    add()
    folder = state.home() / "ssh.d"
    assert (folder / f"{ID}.known_hosts").read_text() == f"mlbox-{ID} {KEY}\n"
    assert (folder / f"{ID}.{os.getpid()}.known_hosts").read_text() == f"[localhost]:8022,[127.0.0.1]:8022 {KEY}\n"


def test_files_come_and_go() -> None:
    folder = state.home() / "ssh.d"
    ssh_config.remove(ID)  # one that was never there
    ssh_config.drop(ID)
    enter()
    add()
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [f"{ID}.{os.getpid()}.conf", f"{ID}.{os.getpid()}.known_hosts",
         f"{ID}.conf", f"{ID}.json", f"{ID}.known_hosts"]
    )  # fmt: skip
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o600}
    ssh_config.remove(ID)
    assert "proxycommand" in resolved("kind-otter")  # it needs no client
    ssh_config.drop(ID)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "how", ['Include "{top}"', '  include  "~/state/mlbox/ssh_config" other', "Include other\nInclude {top}"]
)
def test_what_to_type(home: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    enter()
    monkeypatch.setattr(ssh_config, "_account_home", lambda: home)
    (home / ".ssh").mkdir()
    (home / ".ssh/config").write_text("# Include " + str(ssh_config.top()) + "\n")
    assert ssh_config.words(ID, 8022, "ada").startswith("ssh -F ")
    (home / ".ssh/config").write_text(how.format(top=str(ssh_config.top())) + "\n")
    short = ssh_config.words(ID, 8022, "ada") == "ssh kind-otter    (or: ssh -p 8022 ada@localhost)"
    assert short == ('"' in how or " " not in str(ssh_config.top()))
    monkeypatch.setattr(ssh_config, "_account_home", lambda: home / "another")
    assert ssh_config.words(ID, 8022, "ada").startswith("ssh -F ")  # plain ssh would not look here


def test_a_killed_client_s_entry_goes_and_another_client_s_stays() -> None:
    add()
    dead = subprocess.Popen(("true",))
    dead.wait()
    folder = state.home() / "ssh.d"
    (folder / f"{ID}.{dead.pid}.conf").write_text("Host kind-otter\n")
    (folder / f"{ID}.{os.getppid()}.conf").write_text("")
    add()
    ssh_config.remove(ID)
    assert [p.name for p in folder.iterdir()] == [f"{ID}.{os.getppid()}.conf"]


def test_what_to_type_where_the_host_is_not_reached_by_ssh() -> None:
    add()
    words = shlex.split(ssh_config.words(ID, 8022, "ada"))
    assert words == ["ssh", "-F", str(ssh_config.top()), "-p", "8022", "ada@localhost"]
    assert resolved(*words[3:])["port"] == ["8022"]


def test_what_to_type_can_be_typed() -> None:
    enter()
    assert shlex.split(ssh_config.words(ID, 8022, "ada"))[:4] == [
        "ssh",
        "-F",
        str(ssh_config.top()),
        "kind-otter",
    ]


@pytest.mark.parametrize(
    "hostile",
    [
        {"user": "ada\n  ProxyCommand touch hacked"},
        {"host_key": f"{KEY}\n* {KEY}"},
        {"name": "x\n  ProxyCommand touch hacked\nHost y"},
        {"name": "../../../elsewhere"},
        {"name": "*"},
        {"session": f"{ID},github.com"},
        {"socket": "/tmp/x:/etc/passwd"},
        {"socket": "relative"},
    ],
    ids=["user", "host key", "name", "path", "pattern", "id", "forward", "no path"],
)
def test_a_hostile_host_s_words_are_refused(hostile: dict[str, str]) -> None:
    with pytest.raises(MlboxError):
        enter(**hostile)
    folder = state.home() / "ssh.d"
    assert not folder.exists() or list(folder.iterdir()) == []


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("ended", [False, True])
def test_its_entry_goes_with_its_end_only(monkeypatch: pytest.MonkeyPatch, moves: bool, ended: bool) -> None:
    """ssh looks for one that is not where it was. What waits in line, or is not heard of just now, may come back."""
    enter(moves=moves)
    why = errors.Ended("the session has ended: shut down") if ended else errors.NotFound("the session waits in line")

    def nowhere(*_: object) -> None:
        raise why

    monkeypatch.setattr(sessions, "at_session", nowhere)
    monkeypatch.setattr(sessions, "elsewhere", nowhere)
    with pytest.raises(type(why)):
        command._proxy(ID, state.Config())
    assert (ssh_config.names() == {}) == ended


def test_what_moved_is_entered_where_it_is_and_its_old_host_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    enter(moves=True)
    state.remember_session(ID, "kind-otter", "gpu1", "/share/lab")

    def elsewhere(session: str, than: str, config: state.Config) -> str:
        assert (session, than, config.root) == (ID, "gpu1", "/share/lab")
        return "gpu2"

    entered: list[tuple[object, str]] = []
    monkeypatch.setattr(sessions, "elsewhere", elsewhere)
    monkeypatch.setattr(command, "_enter", lambda *given: entered.append(given))
    command._look_for(ID, state.Config())
    assert entered == [("gpu2", ID)]
