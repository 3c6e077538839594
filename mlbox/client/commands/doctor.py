"""mlbox doctor: what is wrong, or could be better, on this machine and on hosts, and how to mend it."""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Union

from mlbox import __version__, errors
from mlbox.client import options, output, owners, ssh_config, state
from mlbox.client.hosts import ask_all, known_hosts, none_known
from mlbox.core import text
from mlbox.core.finding import Finding, Grade

Found = Mapping[str, Union[Sequence[Finding], errors.MlboxError]]
HERE = "this machine"
_OLDEST = (8, 0)  # of OpenSSH
_PATIENCE = 10.0  # s
_AWAY = errors.Unreachable.exit_code
_MARKS: dict[Grade, tuple[str, int]] = {"good": ("✓", 32), "note": ("·", 33), "bad": ("✗", 31)}


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        epilog="examples:\n  mlbox doctor\n  mlbox doctor gpu1 --json",
        description="What is wrong, or could be better, on this machine and on hosts, and how to mend it.\n"
        "Exit code 5 where something is wrong, 4 where a host was only not reached.",
    )
    options.hosts(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    config = options.config(arguments)
    here = _this_machine(config)
    names = list(dict.fromkeys(arguments.hosts)) or ([] if none_known(config) else known_hosts(config))
    found: dict[str, Sequence[Finding] | errors.MlboxError] = {HERE: here}
    for name, reply in ask_all(names, "doctor", {}, config).items():
        found[name] = reply if isinstance(reply, errors.MlboxError) else _of(reply.get("findings"))
    if arguments.json:
        output.facts([_facts(name, what) for name, what in found.items()])
    else:
        _show(found)
        if not names:
            output.note("no host was looked at: mlbox doctor HOST")
    return _exit_code(found)


def _of(said: Any) -> Sequence[Finding]:
    try:
        return [Finding.from_wire(one) for one in said]
    except (ValueError, AttributeError, TypeError) as error:
        return [Finding("bad", "mlbox", f"it said what this mlbox does not know: {error}")]


def _exit_code(found: Found) -> int:
    failed = [what for what in found.values() if isinstance(what, errors.MlboxError)]
    looked_at = [what for what in found.values() if not isinstance(what, errors.MlboxError)]
    if any(finding.grade == "bad" for findings in looked_at for finding in findings):
        return errors.HostUnready.exit_code
    # The least of them is that a host was not reached.
    return max((error.exit_code for error in failed), default=0, key=lambda code: (code != _AWAY, code))


def _facts(name: str, what: Sequence[Finding] | errors.MlboxError) -> dict[str, Any]:
    if isinstance(what, errors.MlboxError):
        return {"host": name, "error": {"kind": what.kind, "message": what.message, "hint": what.hint}}
    return {"host": name, "findings": [finding.to_wire() for finding in what]}


def _show(found: Found) -> None:
    for number, (name, what) in enumerate(found.items()):
        if number:
            print()
        print(output.bold(text.safe(name)))
        findings = [_failed(what)] if isinstance(what, errors.MlboxError) else what
        wide = max((len(finding.about) for finding in findings), default=0)
        for finding in findings:
            mark, colour = _MARKS[finding.grade]
            about = text.safe(finding.about).ljust(wide)
            print(f"  {output.style(mark, colour)} {about}  {text.safe(finding.words)}")
            for line in text.safe(finding.hint).splitlines() if finding.grade != "good" else ():
                print(f"    {' ' * wide}  try: {line}")


def _failed(error: errors.MlboxError) -> Finding:
    return Finding("bad", "ssh" if isinstance(error, errors.Unreachable) else "host", error.message, error.hint)


# ---- this machine ----------------------------------------------------------------------------------------


def _this_machine(config: state.Config) -> list[Finding]:
    where = f"mlbox {__version__} by Python {platform.python_version()} on {platform.system()}"
    return [Finding("good", "mlbox", where), _ssh(config), _hosts(config), _include(), *_tunnels()]


def _ssh(config: state.Config) -> Finding:
    if shutil.which("ssh") is None:
        grade: Grade = "note" if config.transport == "fabric" else "bad"
        return Finding(grade, "ssh", "there is no OpenSSH client", 'install it, or transport = "fabric" in config.toml')
    from mlbox.client.tunnels.handover import version

    try:
        done = subprocess.run(
            ("ssh", "-V"), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("bad", "ssh", f"`ssh -V` fails: {error}", "is it OpenSSH's?")
    known, words = version(done.stderr), done.stderr.partition(",")[0].strip()
    if known is None or known < _OLDEST:
        hint = f"OpenSSH {_OLDEST[0]} or newer is what mlbox is tried with"
        return Finding("note", "ssh", words or "it does not say its version", hint)
    return Finding("good", "ssh", words)


def _hosts(config: state.Config) -> Finding:
    if none_known(config):
        return Finding("note", "hosts", "none is known yet", 'hosts = ["gpu1", …] in config.toml; or name one')
    return Finding("good", "hosts", ", ".join(known_hosts(config)))


def _include() -> Finding:
    if ssh_config.known_to_ssh():
        return Finding("good", "ssh NAME", "your SSH configuration knows sessions by name")
    return Finding("note", "ssh NAME", "your SSH configuration does not know sessions", "mlbox ssh-config install")


def _tunnels() -> list[Finding]:
    held = owners.living()
    if not held:
        return []
    lost = [f"{owner.name}: {owner.why or owner.state}" for owner in held if owner.state != "up"]
    if lost:
        return [Finding("note", "tunnels", "; ".join(lost), "mlbox tunnels list")]
    return [Finding("good", "tunnels", f"up, to {text.count(len(held), 'session')}")]
