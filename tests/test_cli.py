"""The command line as a program: exit codes, hints, and no traceback for what a person mistypes."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import homes
import pytest

from mlbox import __version__, cli, errors
from mlbox.client import habits, options
from mlbox.client.commands import status

_RUN = "import sys; from mlbox.cli import main; sys.exit(main())"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = homes.fresh(tmp_path / "home", monkeypatch)
    monkeypatch.delenv("MLBOX_SSH_CONFIG", raising=False)
    monkeypatch.chdir(folder)
    return folder


def mlbox(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    argv = (sys.executable, "-c", _RUN, *words)
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    return subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, env=environment, **options
    )


# ---- help ----------------------------------------------------------------------------------------


def test_version() -> None:
    done = mlbox("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"mlbox {__version__}\n", "")


PEOPLE = ("share", "unshare")  # which need both their words
VERBS = [[], ["session"], ["status"], *(["session", verb] for verb in cli.SESSION_VERBS if verb not in PEOPLE)]
OTHERS = [[verb] for verb in cli.VERBS if verb not in ("session", "status", "queue", "host", "tunnels", "port")]
GROUPS = [["queue", what] for what in ("list", "create", "pause", "resume", "process")]
GROUPS += [["host", what] for what in ("drain", "resume", "fence")]
GROUPS += [["tunnels", what] for what in ("list", "stop")]
GROUPS += [["session", verb] for verb in PEOPLE]
GROUPS += [["jobs", "prune"]]
GROUPS += [["port", what] for what in ("add", "list", "remove")]


@pytest.mark.parametrize("verb", [*VERBS[1:], *OTHERS, *GROUPS], ids=" ".join)
def test_help_of_every_verb(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for words in ([*verb, "--help"], ["help", *verb]):
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        said = capsys.readouterr()
        assert (caught.value.code, said.err) == (0, "")
        told.append(said.out)
    assert told[0].startswith("usage: mlbox")
    assert told[0] == told[1]


@pytest.mark.parametrize("verb", sorted({*cli.VERBS} - {"completion", "ssh-config"}))
def test_help_has_an_example_that_can_be_typed(verb: str) -> None:
    told = cli.parser_of([verb]).format_help()
    _, examples = re.split("\nexamples?:\n", told)
    for line in examples.splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "mlbox" and words[1] in (verb, "session")
        named = words[1 : 1 + cli._words(words[1:])]
        cli.parser_of(named).parse_args(words[1 + len(named) :])


# What changes nothing but what this laptop has to know of a session to come to it.
READING = [
    *("session list", "session info", "session attach", "attach", "ssh", "open", "port list", "tunnels list"),
    *(
        "ssh-config show",
        "ssh-config proxy",
        "jobs",
        "show",
        "logs",
        "status",
        "top",
        "doctor",
        "queue list",
        "image list",
    ),
    "completion",
]


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command with its parser, `queue create` and such too."""
    found = {}
    for words in [*([verb] for verb in cli.VERBS), *([verb, one] for verb in cli.BELOW for one in cli.BELOW[verb])]:
        parser = cli.parser_of(words)
        below = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
        verbs = below[0].choices if below else {"": parser}
        found.update({" ".join((*words, verb)).strip(): one for verb, one in verbs.items()})
    return found


def test_reading_is_of_commands_that_there_are() -> None:
    assert set(READING) < set(commands())


@pytest.mark.parametrize("command", sorted(set(commands()) - set(READING)))
def test_whatever_changes_something_has_a_dry_run(command: str) -> None:
    offered = commands()[command]._option_string_actions.get("--dry-run")
    assert offered is not None
    assert offered.help == "say what it would do, and change nothing"


def test_help_says_where_options_go_and_what_a_port_is() -> None:
    assert "mlbox ssh [--host HOST] [NAME|ID [ssh's options] [COMMAND …]]" in cli.parser_of(["ssh"]).format_usage()
    helps = [commands()[f"port {verb}"].format_help() for verb in ("add", "remove")]
    assert ["and the one here" in told for told in helps] == [True, False]


@pytest.mark.parametrize(
    ("command", "words"),
    [("jobs", options.ANY), ("cron", options.ALL), ("queue process", options.ALL), ("queue list", options.ANY),
     ("ssh", options.WHERE), ("open", options.WHERE), ("session info", options.WHERE)],
)  # fmt: skip
def test_help_says_whom_a_command_asks_without_a_host(command: str, words: str) -> None:
    assert commands()[command]._option_string_actions["--host"].help == words


def test_help_of_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for words, code in (["--help"], 0), (["-h"], 0), (["help"], 0), ([], 2):
        assert cli.main(words) == code
        said = capsys.readouterr()
        told.append(said.err if code else said.out)
    assert len(set(told)) == 1
    lines = told[0].splitlines()
    assert [line.split()[0] for line in lines if line[:2] == "  " and line[2:7] != "mlbox"] == list(cli.VERBS)
    assert max(map(len, lines)) <= 80
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 70, 130):
        assert f" {code} " in told[0].replace("\n", " ")


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["session", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from mlbox.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(*sorted({n.split('.')[0] for n in sys.modules} | {n for n in sys.modules if n[:5] == 'mlbox'}),"
        " file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run((sys.executable, "-S", "-c", code, *words), env=environment, capture_output=True, text=True)
    loaded = set(done.stderr.split())
    heavy = {
        "yaml",
        "tomllib",
        "tomli",
        "fabric",
        "paramiko",
        "asyncio",
        "http",
        "ssl",
        "psutil",
        "pynvml",
        "subprocess",
    }
    assert "mlbox.cli" in loaded
    assert not loaded & heavy
    rooms = {name for name in loaded if name.startswith(("mlbox.client", "mlbox.host", "mlbox.guest"))}
    client = {"mlbox.client", "mlbox.client.options", "mlbox.client.commands", "mlbox.client.commands.session"}
    assert rooms == (client if "session" in words else set())


# ---- what a person mistypes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sesion"], "there is no command `sesion`"),
        (["sesion"], "did you mean session?"),
        (["--no-such-flag"], "there is no option `--no-such-flag`"),
        *(([*verb, "--no-such-flag"], "unrecognized arguments: --no-such-flag") for verb in VERBS[1:]),
        (["queue"], "what is `mlbox queue` to do?"),
        (["queue"], "one of: list, create, pause, resume, process"),
        (["cron"], "one of: install, show, remove"),
        (["squeue"], "did you mean jobs?"),
        (["shutdown"], "did you mean session shutdown?"),
        (["-V"], "did you mean --version?"),
        (["queue", "paws"], "there is no `mlbox queue paws`"),
        (["queue", "paws"], "did you mean pause?"),
        (["queue", "list", "--jason"], "did you mean --json?"),
        (["queue", "list", "--dry-run"], "unrecognized arguments: --dry-run"),
        (["queue", "process", "--watch", "--dry-run"], "not allowed with argument"),
        (["logs", "x", "-n", "-3"], "-n -3: there are no lines before the first"),
        (["jobs", "prune", "--older-than", "soon"], "--older-than 'soon' is no age"),
        (["jobs", "prun"], "unrecognized arguments: prun"),
        (["jobs", "-n", "few"], "-n/--ended takes a whole number, not 'few'"),
        (["submit", "train.py", "--lr", "3"], "a command with options goes behind --"),
        (["host", "drain"], "`mlbox host drain` needs NAME"),
        (["session", "shutdown", ""], "NAME|ID is empty"),
        (["tunnels", "stop", ""], "NAME is empty"),
        (["init", "gpu1", "--root", ""], "--root is empty"),
        (["image", "prune", "--older-than="], "--older-than is empty"),
        (["session", "gpu1", "--gpus", ""], "--gpus is empty"),
        (["logs"], "`mlbox logs` needs ID|NAME"),
        (["logs"], "try: mlbox jobs shows them"),
        (["submit", "--gres=gpu:1", "--", "true"], "did you mean --gpus?"),
        (["session", "local", "-J", "x"], "did you mean --name?"),
        (["submit", "--array", "1-10", "--", "true"], "--array 20 (for 0 to 19)"),
        (["cancel", "--all"], "try: mlbox jobs shows them"),
        (["jobs", "kind-otter"], "did you mean mlbox show kind-otter?"),
        (["jobs", "prun"], "did you mean prune?"),
        (["jobs", "--al"], "did you mean --all?"),
        (["session", "--list"], "did you mean list?"),
        (["queue", "stop", "default"], "did you mean pause?"),
        (["ssh-config", "x"], "one of: install, remove, show\n"),
        (["ssh-config"], "one of: install, remove, show\n"),
        (["cron", "show", "gpu1", "--host", "gpu7"], "either HOST or --host"),
        (["init", "gpu1", "--host", "gpu7"], "unrecognized arguments: --host"),
        (["cron", "instal"], "there is no `mlbox cron instal`"),
        (["move", "x", "--top", "--bottom"], "not allowed with argument"),
        (["move", "x"], "move it where?"),
        (["submit", "--dry-run"], "what is to be run?"),
        (["submit", "--dry-run", "--time-limit", "soon", "--", "true"], "is no duration"),
        (["submit", "--dry-run", "--gpu-memory", "big", "--", "true"], "is no amount of memory"),
        (["submit", "--dry-run", "--array", "x", "--", "true"], "--array x can't be read"),
        (["submit", "--dry-run", "--folder", "there", "--", "true"], "there is no folder of every host's"),
        (["submit", "gpu1", "--dry-run", "--", "true"], "a word before -- was taken for the command"),
        (["submit", "--dry-run", "--after", "", "--", "true"], "--after is empty"),
        (["submit", "--dry-run", "--gpus", "2", "--gpu-share", "8G", "--", "true"], "a share is of one GPU"),
        (["submit", "--dry-run", "--retry-on", "mondays", "--", "true"], "nothing ends by 'mondays'"),
        (["submit", "--dry-run", "--queue", "No Queue", "--", "true"], "can't be a queue's name"),
        (["run", "--no-code", "--array", "3", "--", "true"], "run follows one job"),
        (["submit", "--host", "local", "--code", "nowhere", "--", "true"], "there is no folder nowhere"),
        (["session", "gpu1", "gpu2"], "unrecognized arguments: gpu2"),
        (["session", "info", "a", "b"], "unrecognized arguments: b"),
        (["session", "attach", "--host"], "expected one argument"),
        (["session", "--gpus"], "expected one argument"),
        (["session", "gpu1", "--runtime", "vm"], "--runtime can't be vm"),
        (["session", "gpu1", "--user", "0"], "--user can't be 0"),
        (["session", "gpu1", "--start-timeout", "soon"], "--start-timeout takes a whole number, not 'soon'"),
        (["session", "gpu1", "--imag", "x"], "unrecognized arguments: --imag"),
        (["session", "gpu1", "--imag", "x"], "did you mean --image?"),
        (["session"], "on which host?"),
        (["session", "local", "--dry-run", "--gpus", "A100:x"], "--gpus A100:x can't be read"),
        (["session", "local", "--dry-run", "--gpus", "²"], "can't be read"),
        (["session", "local", "--dry-run", "--name", "No Name"], "can't be a name"),
        (["session", "local", "--dry-run", "--env", "NOT_SET_HERE"], "there is no such variable here"),
        (["session", "local", "--dry-run", "--image", "x", "--mount", "/data"], "can't be read"),
        (["session", "local", "--dry-run", "--image", "x", "--engine-args", "--shm-size=1g --privileged"],
         "--privileged' is not allowed"),
        (["session", "local", "--dry-run", "--requirements", "none.txt"], "none.txt can't be read"),
        (["session", "local", "--dry-run", "-f", "none.yaml"], "none.yaml can't be read"),
        (["session", "local", "--dry-run", "--start-timeout", "1"], "5 to 3600"),
        (["session", "local", "--dry-run", "--runtime", "docker"], "needs an image"),
        (["session", "local", "--dry-run", "--cpus", "4"], "--cpus: only a session that waits in a queue asks"),
        (["session", "local", "--on", "gpu1", "--priority", "0", "--label", "a"], "--priority, --on, --label: "),
        (["session", "local", "--queue", "night", "--cpus", "4"], "either a queue or a host: night or local"),
        (["session", "--queue", "night", "--dry-run", "--gpu-memory", "big"], "is no amount of memory"),
        (["session", "--queue", "night", "--dry-run", "--gpus", "2", "--gpu-share", "8G"], "a share is of one GPU"),
        (["session", "--dry-run", "--", "-oProxyCommand=x"], "can't be a host's name"),
        (["status", "--", "-oProxyCommand=x"], "can't be a host's name"),
        (["session", "local", "--dry-run", "--image", "x", "--engine-args", "'"], "--engine-args"),
    ],
    ids=lambda v: " ".join(v) or "nothing" if isinstance(v, list) else "",
)  # fmt: skip
def test_wrong_usage_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    caught = capsys.readouterr()
    everything = caught.err + caught.out
    assert said in everything
    assert "Traceback" not in everything and "bug" not in everything


def test_other_programs_words_lead_to_what_there_is() -> None:
    there = {"mlbox --version", "mlbox logs -f", "mlbox queue process --watch"}
    there |= {f"mlbox cron {what}" for what in ("install", "show", "remove")}
    there |= {f"mlbox {verb}" for verb in (*cli.VERBS, *commands())}
    for prog, table in habits.ELSEWHERE.items():
        for word, ours in table.items():
            assert f"{prog} {word}" not in there
            if ours.startswith("-") and prog != "mlbox":
                options = cli.parser_of(prog.split()[1:])._option_string_actions
                assert ours in options and word not in options
            else:
                assert (ours if ours.startswith("mlbox ") else f"{prog} {ours}") in there


@pytest.mark.parametrize("given", ["--memory=1g", "--memory=1g --cpus=2", "--init"])
def test_engine_args_may_be_called_as_options_of_ours(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "--dry-run", "--json", "--no-code", "--image", "x", "--engine-args", given, "--memory", "2G"]
    assert cli.main([*words, "--", "run", "--engine-args", "theirs"]) == 0
    spec = json.loads(capsys.readouterr().out)["spec"]
    assert (spec["work"]["engine_args"], spec["resources"]["memory"]) == (given.split(), 2048)
    assert spec["command"] == ["run", "--engine-args", "theirs"]


@pytest.mark.parametrize("verb", VERBS, ids=lambda v: " ".join(v) or "mlbox")
def test_a_bad_flag_hints_at_the_help_of_its_verb(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*verb, "--gpu-s", "x"]) == 2
    assert f"{' '.join(('mlbox', *verb))} --help" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["numpy>=2,<3", "jax[cuda12,k8s]"])
def test_a_comma_of_a_package_s_own(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["session", "local", "--dry-run", "--json", "--packages", f"einops,{package}"])
    assert json.loads(capsys.readouterr().out)["spec"]["packages"] == ["einops", package]


def test_a_job_as_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # a home folder is no job's code
    words = "--gpus A100:2 --gpu-memory 40G --cpus 4 --memory 1T --on gpu1 --on gpu2 --label nvlink --time-limit 1h30m"
    words += " --queue night --priority -3 --after 01ARYZ6S41TSV4RRFFQ69G5FAV --array 20%4 --retries 2 --backoff 1m"
    words += " --retry-on oom,lost --grace 30s --output-limit 1G --on-host-loss hold --max-losses 7"
    words += " --env TOKEN=s3cret --dry-run --json"
    assert cli.main(["submit", *words.split(), "--", "python", "train.py", "--lr", "3e-4"]) == 0
    said = capsys.readouterr().out
    assert "s3cret" not in said
    found = json.loads(said)
    spec = found["spec"]
    assert (found["array"], found["code"], found["dry_run"]) == (20, ".", True)
    assert spec["command"] == ["python", "train.py", "--lr", "3e-4"]
    assert spec["resources"] == {
        "gpus": "A100:2", "gpu_memory": 40960, "gpu_share": 0, "cpus": 4, "memory": 1 << 20, "hosts": ["gpu1", "gpu2"],
        "labels": ["nvlink"], "time_limit": 5400,
    }  # fmt: skip
    kept = (
        "queue",
        "priority",
        "array_limit",
        "retries",
        "backoff",
        "retry_on",
        "grace",
        "output_limit",
        "on_host_loss",
        "max_losses",
    )
    assert [spec[key] for key in kept] == ["night", -3, 4, 2, 60, ["oom", "lost"], 30, 1024, "hold", 7]


def test_a_session_asks_of_a_host_in_line_what_a_job_asks(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--gpu-memory 40G --cpus 4 --memory 1T --on gpu1 --on gpu2 --label nvlink --time-limit 1h30m --priority -3"
    for run in (
        ["submit", "--no-code", "--json", *words.split(), "--", "true"],
        ["session", "--queue", "default", "--json", *words.split()],
    ):
        assert cli.main([run[0], "--dry-run", "--gpus", "A100:2", *run[1:]]) == 0
        spec = json.loads(capsys.readouterr().out)["spec"]
        assert (spec["queue"], spec["priority"], spec["resources"]) == ("default", -3, {
            "gpus": "A100:2", "gpu_memory": 40960, "gpu_share": 0, "cpus": 4, "memory": 1 << 20,
            "hosts": ["gpu1", "gpu2"], "labels": ["nvlink"], "time_limit": 5400,
        })  # fmt: skip
    (home / "session.yaml").write_text("queue: night\npriority: -3\ncpus: 4\non: gpu1\nlabel: [a, b]\ngpu_share: 8G\n")
    assert cli.main(["session", "-f", "session.yaml", "--dry-run", "--json", "--cpus", "2"]) == 0
    spec = json.loads(capsys.readouterr().out)["spec"]
    asked = spec["resources"]
    assert (spec["queue"], spec["priority"], asked["cpus"], asked["gpu_share"]) == ("night", -3, 2, 8192)
    assert (asked["hosts"], asked["labels"]) == (["gpu1"], ["a", "b"])
    from_file = ["session", "-f", "session.yaml", "--dry-run"]
    assert cli.main([*from_file, "local", "--json"]) == 0  # a host is a word against the file's queue
    assert json.loads(capsys.readouterr().out)["host"] == "local"
    (home / "session.yaml").write_text("host: local\nname: calm-owl\n")
    assert cli.main([*from_file, "--queue", "night", "--json"]) == 0
    spec = json.loads(capsys.readouterr().out)["spec"]
    assert (spec["queue"], spec["work"]["name"]) == ("night", "calm-owl")


def test_a_dry_run_shows_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--json"]):
        assert cli.main(["session", "local", "--dry-run", "--env", "TOKEN=s3cret", *more]) == 0
        said = capsys.readouterr()
        assert "TOKEN" in said.out and "s3cret" not in said.out + said.err


def test_flags_become_the_session_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--gpus 2 --image x --packages a,b --packages c --no-vscode --jupyter --mount /a:/b:ro --mount /c:/d"
    words += " --engine-args=--init --user root --name kind-otter"
    assert cli.main(["session", "local", "--dry-run", "--json", *words.split()]) == 0
    found = json.loads(capsys.readouterr().out)
    spec = found["spec"]
    assert found["dry_run"] is True
    assert (spec["gpus"], spec["packages"], spec["vscode"], spec["jupyter"]) == ("2", ["a", "b", "c"], "no", "yes")
    assert [m["target"] for m in spec["mounts"]] == ["/b", "/d"]
    assert (spec["engine_args"], spec["user"], spec["name"]) == (["--init"], "root", "kind-otter")


# ---- how it ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.MlboxError, 1),
        (errors.Usage, 2),
        (errors.Refused, 3),
        (errors.Unreachable, 4),
        (errors.HostUnready, 5),
        (errors.NotFound, 6),
        (errors.StartFailed, 7),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else "",
)
def test_exit_codes(
    kind: type[errors.MlboxError], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _raising(monkeypatch, kind("it \x1b[31mbroke", "mend\nit"))
    assert cli.main(["status"]) == code
    assert capsys.readouterr().err == "mlbox: it �[31mbroke\n       try: mend\n            it\n"


def _raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(*arguments: object) -> int:
        raise error

    monkeypatch.setattr(status, "run", run)


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _raising(monkeypatch, KeyboardInterrupt())
    assert cli.main(["status"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_of_a_host_is_one_too(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _raising(
        monkeypatch,
        errors.from_kind("bug", "a bug in mlbox on gpu1: KeyError: 'x'", "Traceback (most recent call last): …"),
    )
    assert cli.main(["status"]) == 70
    said = capsys.readouterr().err
    assert "this is a bug in mlbox on gpu1: KeyError: 'x'" in said and "Traceback" not in said
    assert "Traceback" in (home / "state/mlbox/bug.txt").read_text()


@pytest.mark.parametrize("words", [["jobs", "prune"], ["jobs", "prune", "--json"], ["image", "prune", "gpu1", "--all"]])
def test_what_is_gone_for_good_is_agreed_to(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody can be asked without a terminal, and JSON is no agreement."""
    assert cli.main(words) == 2
    assert "-y" in capsys.readouterr().err


def test_a_bug_is_kept_for_a_report_without_secrets(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _raising(monkeypatch, ZeroDivisionError("oops"))
    assert cli.main(["status", "gpu-secret"]) == 70
    said = capsys.readouterr().err
    report = (home / "state/mlbox/bug.txt").read_text()
    assert "this is a bug in mlbox: ZeroDivisionError: oops" in said and "Traceback" not in said
    assert "Traceback" in report and __version__ in report and "gpu-secret" not in report


def test_a_bug_that_can_not_be_kept_is_reported_by_what_is_shown(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _raising(monkeypatch, ZeroDivisionError("oops"))
    (home / "state").touch()
    assert cli.main(["status"]) == 70
    said = capsys.readouterr().err
    assert "Traceback" in said and said.endswith("try: report it with what is above\n")


def test_a_home_that_is_a_file_is_no_bug(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "state").touch()
    monkeypatch.setattr(status, "run", lambda *_: (home / "state/mlbox").mkdir(parents=True))
    assert cli.main(["status"]) == 5
    assert f"{home}/state/mlbox: Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["session", "local", "--dry-run", "--json"],
        ["--help"],
        ["--version"],
        ["session", "local", "--dry-run"],
    ],
    ids=" ".join,
)
def test_a_reader_that_had_enough_is_no_error(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONUNBUFFERED": "", "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run(
        (sys.executable, "-c", _RUN, *words), stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE,
        env=environment, preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN),
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("redirect", "code", "said"),
    [
        (">&-", 0, ""),
        (">/dev/full", 1, "mlbox: the output can't be written: No space left on device\n"),
        ("2>&-", 0, "usage: mlbox"),
    ],
)
def test_an_output_that_takes_nothing_is_no_bug(redirect: str, code: int, said: str) -> None:
    command = f'"$0" -c "$1" --help {redirect}'
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run(("sh", "-c", command, sys.executable, _RUN), env=environment, capture_output=True, text=True)
    assert done.returncode == code
    assert (done.stderr or done.stdout).startswith(said) and bool(done.stderr + done.stdout) == bool(said)


def test_a_terminal_without_unicode_is_no_bug() -> None:
    environment = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        (sys.executable, "-c", _RUN, "session", "--help"), capture_output=True, text=True,
        env={**os.environ, **environment, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "shutdown|share|unshare} ?" in done.stdout
