"""Every option of clearml-session, what does its work here, and the test that proves it. Checked against the command
line and the tests themselves, so that the table can't rot.

A counterpart is a command line's words, or PLANNED, or NONE: what the option is for can't go wrong here, and the test
that proves that.
"""

from __future__ import annotations

import ast
import contextlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from mlbox import cli

ROOT = Path(__file__).parents[1]
PLANNED, NONE = "planned", "none"


class Counterpart(NamedTuple):
    words: str  # `mlbox` left out
    proof: str  # file::test; for PLANNED: what it would be for
    why: str = ""  # for NONE


_SESSION = "tests/lab/test_session.py::"
_LAYERS = "tests/lab/test_layers.py::"
_NAME = "tests/lab/test_ssh_name.py::"
_OWN_SSH = "tests/lab/test_own_ssh.py::"
_CLOSED = (_SESSION + "test_nothing_listens_on_the_hosts_network", "no port of a host or a container is published")
_ONE_KEY = (
    _SESSION + "test_ssh_lets_nobody_else_in_and_asks_no_password",
    "sshd runs per connection behind a unix socket and takes the user's own keys: no port, no password",
)

TABLE = {
    "(no option)": Counterpart("session", _SESSION + "test_session_again_joins_it"),
    "--version": Counterpart("--version", "tests/test_cli.py::test_version"),
    "--attach": Counterpart("session attach", _SESSION + "test_a_second_laptop_joins"),
    "--shutdown": Counterpart("session shutdown", _SESSION + "test_shutdown_from_another_laptop_is_noticed"),
    "--shell": Counterpart("ssh", _NAME + "test_mlbox_ssh_from_a_laptop_that_has_not_seen_it"),
    "--debugging-session": Counterpart(PLANNED, "a session with a job's code and environment"),
    "--queue": Counterpart("session --queue", "tests/lab/test_session_queue.py::test_it_waits_and_comes_up"),
    "--queue-include-tag": Counterpart(
        "session --queue", "tests/lab/test_session_queue.py::test_it_waits_and_comes_up"
    ),
    "--queue-excluded-tag": Counterpart(
        "session --queue", "tests/lab/test_session_queue.py::test_it_waits_and_comes_up"
    ),
    "--docker": Counterpart("session --image", _SESSION + "test_the_block"),
    "--docker-args": Counterpart(
        "session --engine-args", "tests/lab/test_policies.py::test_engine_arguments_that_the_lab_allows"
    ),
    "--docker-network": Counterpart(NONE, *_CLOSED),
    "--skip-docker-network": Counterpart(NONE, *_CLOSED),
    "--public-ip": Counterpart(
        "session --ssh-config", _OWN_SSH + "test_a_chain_of_jumps_to_a_name_that_only_the_lab_knows"
    ),
    "--remote-gateway": Counterpart(
        "session --ssh-config", _OWN_SSH + "test_a_chain_of_jumps_to_a_name_that_only_the_lab_knows"
    ),
    "--router-enabled": Counterpart("session --tunnel", "tests/lab/test_reverse.py::test_a_session_works_and_is_seen"),
    "--remote-ssh-port": Counterpart(NONE, *_ONE_KEY),
    "--username": Counterpart(NONE, *_ONE_KEY),
    "--password": Counterpart(NONE, *_ONE_KEY),
    "--randomize": Counterpart(NONE, *_ONE_KEY),
    "--force-dropbear": Counterpart(NONE, *_ONE_KEY),
    "--disable-fingerprint-check": Counterpart(
        NONE, _SESSION + "test_ssh_verifies_the_sessions_host_key", "host keys are always verified"
    ),
    "--keepalive": Counterpart("session", "tests/lab/test_network.py::test_the_network_is_gone_for_two_minutes"),
    "--jupyter-lab": Counterpart("session --jupyter --no-jupyter", _LAYERS + "test_all_services_are_there"),
    "--vscode-server": Counterpart("session --vscode --no-vscode", _LAYERS + "test_all_services_are_there"),
    "--vscode-version": Counterpart("session --vscode-version", _LAYERS + "test_they_are_of_the_versions_asked_for"),
    "--vscode-version :PYEXT": Counterpart("session --vscode-extensions", _LAYERS + "test_the_extension_is_installed"),
    "--vscode-extensions": Counterpart("session --vscode-extensions", _LAYERS + "test_the_extension_is_installed"),
    "--upload-files": Counterpart(
        "ssh-config install",
        _NAME + "test_files_travel_both_ways",
    ),
    "--store-workspace": Counterpart(
        "session --user-folder", _SESSION + "test_what_is_written_in_the_workspace_is_ones_own_on_the_host"
    ),
    "--continue-session": Counterpart(PLANNED, "snapshots of a workspace on the share"),
    "--git-credentials": Counterpart(PLANNED, "the laptop's agent and credentials inside"),
    "--user-folder": Counterpart(
        "session --user-folder", _SESSION + "test_what_is_written_in_the_workspace_is_ones_own_on_the_host"
    ),
    "--packages": Counterpart("session --packages", _LAYERS + "test_packages_are_importable"),
    "--requirements": Counterpart("session --requirements", _LAYERS + "test_packages_are_importable"),
    "--init-script": Counterpart("session --init-script", _LAYERS + "test_the_init_script_ran_once_as_root"),
    "--config-file": Counterpart("session --file", _SESSION + "test_a_file_asks_flags_win_and_answers_are_remembered"),
    "--base-task-id": Counterpart("session --file", _SESSION + "test_a_file_asks_flags_win_and_answers_are_remembered"),
    "--project": Counterpart(PLANNED, "a group to list sessions by"),
    "--session-name": Counterpart("session --name", _SESSION + "test_ssh_by_name_as_oneself"),
    "--session-tags": Counterpart(PLANNED, "words to find a session by, beside its name"),
    "--disable-session-cleanup": Counterpart(
        NONE, _SESSION + "test_the_hosts_files_after_the_end", "an ended session leaves nothing to clean up"
    ),
    "--disable-storage-packages": Counterpart(
        NONE,
        "tests/core/test_layer.py::test_as_it_is_when_nothing_is_missing",
        "nothing is added that was not asked for",
    ),
    "--disable-store-defaults": Counterpart(
        "session --no-remember", "tests/client/test_session_start.py::test_answers_that_are_not_to_be_remembered"
    ),
    "--verbose": Counterpart(
        NONE,
        "tests/test_cli.py::test_a_bug_is_kept_for_a_report_without_secrets",
        "what happens is shown; a bug writes its report",
    ),
    "--yes": Counterpart("session --yes", "tests/lab/test_console.py::test_yes_asks_nothing_at_a_terminal"),
    "list": Counterpart("session list", _SESSION + "test_list_info_and_status_tell_it"),
    "list -a": Counterpart("status", _SESSION + "test_list_info_and_status_tell_it"),
    "info": Counterpart("session info", _SESSION + "test_list_info_and_status_tell_it"),
    "shutdown": Counterpart("session shutdown", _SESSION + "test_shutdown_from_another_laptop_is_noticed"),
}


# Those of clearml-session 0.17.0, and of its three verbs.
CLEARML = """
--attach --base-task-id --config-file --continue-session --debugging-session --disable-fingerprint-check
--disable-session-cleanup --disable-storage-packages --disable-store-defaults --docker --docker-args --docker-network
--force-dropbear --git-credentials --init-script --jupyter-lab --keepalive --packages --password --project --public-ip
--queue --queue-excluded-tag --queue-include-tag --randomize --remote-gateway --remote-ssh-port --requirements
--router-enabled --session-name --session-tags --shell --shutdown --skip-docker-network --store-workspace --upload-files
--user-folder --username --verbose --version --vscode-extensions --vscode-server --vscode-version --yes
list info shutdown
"""


def test_no_option_is_left_out() -> None:
    assert set(CLEARML.split()) <= set(TABLE)


def test_what_is_planned_is_not_there_yet() -> None:
    """Else its row has to say so."""
    there = cli.parser_of(["session"])._option_string_actions
    assert [option for option, row in TABLE.items() if row.words == PLANNED and option in there] == []


@pytest.mark.parametrize("option", TABLE)
def test_the_command_line_has_it(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = TABLE[option].words
    if words in (NONE, PLANNED):
        assert words == PLANNED or TABLE[option].why, "why not"
        return
    verb = [word for word in words.split() if not word.startswith("-")]
    flags = [word for word in words.split() if word.startswith("-")]
    with contextlib.suppress(SystemExit):  # argparse's, of a command
        assert cli.main([*verb, "--help"]) == 0
    told = capsys.readouterr().out.replace(",", " ").split()
    assert [flag for flag in flags if flag not in told] == []


@pytest.mark.parametrize("option", [name for name, row in TABLE.items() if row.words != PLANNED])
def test_its_proof_exists(option: str) -> None:
    file, _, test = TABLE[option].proof.partition("::")
    assert test in _tests(file)


@cache
def _tests(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text())
    found = (node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return frozenset(name for name in found if name.startswith("test_"))
