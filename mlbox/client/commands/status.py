"""mlbox status: every host's GPUs, who holds and uses them, and the sessions there. All hosts at once; those that
only lab.yaml names are asked once a host has told of them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any, Union

from mlbox import errors
from mlbox.client import lab, options, output, state
from mlbox.client.hosts import ask_all, exit_code, facts, known_hosts, why
from mlbox.core import text
from mlbox.core.gpu import Gpu
from mlbox.core.log import said

Json = dict[str, Any]
Replies = Mapping[str, Union[Json, errors.MlboxError]]


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        epilog="examples:\n  mlbox status\n  mlbox status gpu1 --json",
        description="Every host's GPUs, who holds them, and the sessions there.",
    )
    options.hosts(made, ", and the lab's")
    return made


def main(arguments: argparse.Namespace) -> int:
    return run(arguments.hosts, options.config(arguments), arguments.json)


def run(hosts: Sequence[str], config: state.Config, as_json: bool) -> int:
    names = list(dict.fromkeys(hosts)) or known_hosts(config)
    found = ask_all(names, "status", {}, config)
    if not hosts and (others := unasked(found)):
        found.update(ask_all(others, "status", {}, config))
    if as_json:
        away, unheard = _unheard(found)
        asked = [{**away.get(name, {}), **facts(name, reply)} for name, reply in found.items()]
        output.facts(asked + _out_of_reach(found) + unheard)
    else:
        show(found)
    return exit_code(found, hosts)


def show(found: Replies) -> None:
    """What hosts replied, in words."""
    away, unheard = _unheard(found)
    for number, (name, reply) in enumerate(found.items()):
        if number:
            print()
        _print(name, reply)
        if name in away:
            print(f"  silent for {text.duration(away[name]['silent'])}{_drained(away[name])}")
            _print_jobs(away[name], {})
    for other in _out_of_reach(found):
        print()
        _print(other["host"], other)
    for host in unheard:
        words = f"unreachable, silent for {text.duration(host['silent'])}"
        print(f"\n{output.bold(text.safe(host['host']))}  {words}{_drained(host)}")
        _print_jobs(host, {})
    _print_queues(_answers(found))
    lab.trouble(*_answers(found))


def free(answers: Sequence[Json]) -> tuple[int, int]:
    """How many GPUs are, and how many there are at all."""
    gpus = [Gpu.from_wire(gpu) for reply in answers for gpu in reply["gpus"]]
    return sum(not gpu.obstacle for gpu in gpus), len(gpus)


def _answers(found: Replies) -> list[Json]:
    return [reply for reply in found.values() if not isinstance(reply, errors.MlboxError)]


def _unheard(found: Replies) -> tuple[dict[str, Json], list[Json]]:
    """Hosts that the others have not heard of: those that did not answer here either, by name, and the rest."""
    answers = _answers(found)
    silent = _silent(answers)
    away = _by_name(silent, [name for name, reply in found.items() if isinstance(reply, errors.MlboxError)], answers)
    return away, [host for host in silent if host not in away.values()]


def unasked(replies: Replies) -> list[str]:
    """Hosts of the lab that this laptop was not told of: what ssh calls them, as the others know it."""
    answers = _answers(replies)
    asked = {*replies, *(reply["host"] for reply in answers)}
    told = {name: ssh for reply in answers for name, ssh in reply.get("lab", {}).items()}
    silent = {host["host"] for host in _silent(answers)}  # each would cost a time-out, and is told all the same
    return list(dict.fromkeys(ssh for name, ssh in told.items() if name not in silent and not {name, ssh} & asked))


def _out_of_reach(replies: Replies) -> list[Json]:
    """Hosts that can't be dialled, as the others know them: each once, by whoever saw it last."""
    told: dict[str, Json] = {}
    for reply in _answers(replies):
        for host in reply.get("out_of_reach", []):
            known = told.setdefault(host["host"], host)
            if host["age"] is not None and (known["age"] is None or host["age"] < known["age"]):
                told[host["host"]] = host
    return list(told.values())


def _silent(replies: Sequence[Json]) -> list[Json]:
    """Hosts that others have not heard of, and that did not answer here: each once, by whoever heard last."""
    told: dict[str, Json] = {}
    for host in (host for reply in replies for host in reply.get("silent", [])):
        if host["silent"] < told.setdefault(host["host"], host)["silent"]:
            told[host["host"]] = host
    return [host for name, host in told.items() if all(reply["host"] != name for reply in replies)]


def _by_name(silent: Sequence[Json], failed: Sequence[str], answers: Sequence[Json]) -> dict[str, Json]:
    """What others tell of a host that did not answer here either: it is one host."""
    calls = {name: ssh for reply in answers for name, ssh in reply.get("lab", {}).items()}
    return {name: host for host in silent for name in failed if name in (host["host"], calls.get(host["host"]))}


def _print(name: str, reply: Json | errors.MlboxError) -> None:
    if isinstance(reply, errors.MlboxError):
        print(f"{output.bold(text.safe(name))}  {why(name, reply)}")
        return
    gpus = [Gpu.from_wire(g) for g in reply["gpus"]]
    summary = f"{free([reply])[0]} of {text.count(len(gpus), 'GPU')} free" if gpus else text.safe(str(reply["driver"]))
    if "via" in reply:
        ago = "never seen yet" if reply["age"] is None else f"seen {text.duration(reply['age'])} ago"
        load = f"{ago}, by reverse tunnel through {text.safe(reply['via'])}"
    else:
        load = f"load {reply['load'][0]:.1f} on {text.count(reply['cpus'], 'CPU')}"
    own = f" ({text.safe(reply['host'])})" if reply["host"] != name else ""  # by which jobs and drain know it
    print(f"{output.bold(text.safe(name))}{own}  {summary} · {load}{_drained(reply)}")
    if gpus:
        output.table(("GPU", "NAME", "MEMORY", "USE", "TEMP", "STATE"), [_row(g, reply["jobs"]) for g in gpus])
    ids = {g.uuid: str(g.index) for g in gpus}
    for session in reply["sessions"]:
        state = text.safe(said(session["state"]))
        print(f"session {text.safe(session['name'])}  {state}" + _on(session["gpus"], ids))
    _print_jobs(reply, ids)


def _drained(reply: Json) -> str:
    return f" · drained by {text.safe(reply['drained'])}" if reply.get("drained") else ""


def _print_jobs(reply: Json, ids: Mapping[str, str]) -> None:
    """`ids`: the numbers of its GPUs."""
    for job in reply["jobs"]:
        age = text.duration(time.time() - job["since"])
        words = f"job {text.safe(job['name'])}  {text.safe(job['id'])}  {text.safe(job['owner'])}'s, {age}"
        print(words + _on(job["gpus"], ids, ", "))


def _on(gpus: Sequence[str], ids: Mapping[str, str], before: str = " ") -> str:
    where = ",".join(ids.get(uuid, text.safe(uuid)) for uuid in gpus)
    return f"{before}on GPU {where}" if where else ""


def _print_queues(replies: Sequence[Json]) -> None:
    """Of ROOT, which the hosts of a lab share: one answer is enough, and hosts with nothing to tell are passed over."""
    told: dict[str, Json] = {}
    for reply in replies:
        for queue in reply["queues"]:
            known = told.setdefault(queue["name"], queue)
            if queue["waiting"] + queue["running"] > known["waiting"] + known["running"]:
                told[queue["name"]] = queue
    busy = [q for q in told.values() if q["waiting"] or q["running"] or q["paused"]]
    if busy:
        print()
    for queue in busy:
        paused = f", paused by {text.safe(queue['paused'])}" if queue["paused"] else ""
        print(f"queue {text.safe(queue['name'])}  {queue['running']} running, {queue['waiting']} waiting{paused}")


def _row(gpu: Gpu, jobs: Sequence[Json]) -> tuple[str, ...]:
    memory = f"{text.mebibytes(gpu.memory_used)} / {text.mebibytes(gpu.memory)}" if gpu.memory else "shared"
    if gpu.error:
        return str(gpu.index), gpu.name, "-", "-", "-", f"out of order: {gpu.error}"
    return (
        str(gpu.index), gpu.name, memory, f"{gpu.utilization}%", f"{gpu.temperature}°C", _state(gpu, jobs),
    )  # fmt: skip


def _state(gpu: Gpu, jobs: Sequence[Json]) -> str:
    """A lease tells one job's id, the newest's of those that share it; their names are known here."""
    names = [f"{text.safe(job['owner'])}'s job {text.safe(job['name'])}" for job in jobs if gpu.uuid in job["gpus"]]
    if gpu.holder is not None and not gpu.holder.name and names and not gpu.error:
        return f"leased to {', '.join(dict.fromkeys(names))}"
    return gpu.obstacle or "free"
