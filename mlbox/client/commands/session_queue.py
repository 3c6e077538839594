"""mlbox session --queue: the first host of the lab that fits, in its turn; then as any other session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlbox import errors
from mlbox.client import asked, lab, output, sessions, state
from mlbox.client.answers import Answers, ports_of, to_spec
from mlbox.client.commands import attach
from mlbox.client.commands.session_start import Options
from mlbox.client.hosts import AnyHost, known_hosts
from mlbox.client.options import resources
from mlbox.client.remote import Host, of_session
from mlbox.core import text
from mlbox.core.job import JobSpec
from mlbox.core.port import Port

Json = dict[str, Any]


def run(said: Answers, queue: str, config: state.Config, options: Options) -> int:
    if said.host:
        raise errors.Usage(f"either a queue or a host: {queue} or {said.host}", "leave one of them out")
    ports = ports_of(said)  # what is wrong is said before a turn is waited for
    entry = AnyHost(known_hosts(config), config)
    work = to_spec(said.over(Answers(image=config.image or None)), entry.transport.public_keys())
    spec = JobSpec(work=work, resources=resources(said), queue=queue, priority=said.priority or 0)
    if options.dry_run:
        return _dry_run(spec, ports, options.json)
    with lab.submitting():
        reply = entry.call("submit", {"spec": spec.to_wire()})
    lab.trouble(reply)
    job = reply["jobs"][0]
    lab.start_elsewhere(reply["waits"], reply["elsewhere"], config)
    if reply["waits"]:
        lab.unattended(reply)
    found = _await(entry, job, config)
    # The host that answered is reached as it was; the others by the name that lab.yaml has for them.
    place = {"id": job["id"], "host": found["host"] if found["via"] else found["ssh"], "via": found["via"]}
    host = entry if found["host"] == reply["host"] else of_session({**place, "root": entry.root}, config)
    try:
        return attach.join(host, job["id"], config, ports, options)
    except errors.Ended:
        raise
    except (errors.NotFound, errors.Unreachable) as error:  # this laptop may call that host otherwise than lab.yaml
        try:
            host = sessions.elsewhere(job["id"], "", config)
        except errors.MlboxError:
            raise error from None
    return attach.join(host, job["id"], config, ports, options)


def _dry_run(spec: JobSpec, ports: Sequence[Port], as_json: bool) -> int:
    wire = spec.without_secrets().to_wire()
    if as_json:
        output.facts({"spec": wire, "ports": [str(port) for port in ports]}, dry=True)
        return 0
    print(f"would wait in queue {spec.queue}:")
    asked.foretell(wire, port=ports)
    return 0


def _await(entry: Host, job: Json, config: state.Config) -> Json:
    """Where it has started. ^C takes it out of the line again. Raises StartFailed."""
    with output.Progress() as progress:
        progress.keep(f"{job['name']} is in line (job {job['id']})")

        def on_progress(facts: Json) -> None:
            progress.say(str(facts.get("why") or facts.get("text") or facts.get("state", "")))

        try:
            found = entry.call("wait", {"job": job["id"]}, on_progress)
        except KeyboardInterrupt:
            reply = entry.call("cancel", {"job": job["id"], "session": True})
            progress.keep("stopped; it is out of the line" if reply["state"] == "cancelled" else f"{job['name']} ends")
            if reply["state"] == "cancelled":
                lab.look_again(entry, lab.near(reply["elsewhere"]), config)
            raise
    if found["state"] != "started":
        raise errors.StartFailed(f"{job['name']} did not start: {text.safe(found['why'])}", f"mlbox show {job['id']}")
    return found
