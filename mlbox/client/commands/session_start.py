"""mlbox session, on a host that is named: start one and attach to it, or attach to the one that runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlbox import errors
from mlbox.client import asked, output, sessions, state, transports
from mlbox.client.answers import Answers, ports_of, remembered, to_remember, to_spec
from mlbox.client.attached import Attached
from mlbox.client.commands import attach
from mlbox.client.reach import Reach
from mlbox.client.remote import Host, Interrupted
from mlbox.core import text
from mlbox.core.port import Port
from mlbox.core.session import Spec, check_engine_args

Json = dict[str, Any]


@dataclass(frozen=True)
class Options(attach.Manner):
    """How the command behaves, as opposed to what the session is."""

    new: bool = False
    dry_run: bool = False
    fresh: bool = False
    remember: bool = True  # its answers, for the next time


def run(said: Answers, config: state.Config, options: Options) -> int:
    host_name = said.host or _only_host(config)
    answers = _complete(said, host_name, config, options.fresh)
    ports = ports_of(answers)
    transport = transports.make(host_name, config)
    spec = to_spec(answers, transport.public_keys())
    check_engine_args(spec.engine_args)
    if options.dry_run:
        return _dry_run(host_name, spec, ports, options)
    host = Host(transport, config.root)
    start = _Start(host, spec, ports, config, options)
    reply = start.call()
    if "running" in reply:
        return _offer(host, reply["running"], said, config, options, start)
    return start.finish(reply, answers)


def _complete(said: Answers, host: str, config: state.Config, fresh: bool) -> Answers:
    """What was said, over last time's answers for this host, over config.toml; what is taken over is shown."""
    last = Answers() if fresh else remembered(state.load("last.json").get(host, {}))
    # This machine may have no engine, and `make session` needs none: here an image is what was said for here.
    image = "" if host == transports.LOCAL else config.image
    weaker = last.over(Answers(image=image or None, sources=config.sources or None))
    if said.runtime == "process":
        weaker = replace(weaker, image=None)
    elif said.image and weaker.runtime == "process":
        weaker = replace(weaker, runtime=None)
    taken = weaker.beyond(said)
    if taken and last != Answers():
        output.note(f"  as last time on {host}: {', '.join(taken)} (--fresh starts from nothing)")
    return said.over(weaker)


def _only_host(config: state.Config) -> str:
    if len(config.hosts) == 1:
        return config.hosts[0]
    known = ", ".join(config.hosts) or "such as one that `ssh` knows, or `local` for this machine"
    raise errors.Usage("on which host?", f"mlbox session HOST ({known})")


def _dry_run(host: str, spec: Spec, ports: Sequence[Port], options: Options) -> int:
    """No host is asked."""
    wire = spec.without_secrets().to_wire()
    if options.json:
        output.facts({"host": host, "spec": wire, "ports": [str(port) for port in ports]}, dry=True)
        return 0
    joins = "" if options.new or spec.name else ", unless one of yours runs there, which would be joined"
    print(f"would start on {host}{joins}:")
    asked.foretell(wire, port=ports)
    return 0


def _offer(
    host: Host, running: list[Json], said: Answers, config: state.Config, options: Options, start: _Start
) -> int:
    """Sessions run there already: join one, or start another all the same."""
    newest = next((s for s in reversed(running) if s["name"] == said.name), running[-1])
    answer = "attach"
    if not options.yes and output.may_ask():
        for session in running:
            output.note(f"  {session['name']} is running on {host.name} ({sessions.summary(session)})")
        answer = output.ask("[a]ttach, start a [n]ew one, or [c]ancel? [a]", ("attach", "new", "cancel"), "attach")
    if answer == "cancel":
        return 0
    if answer == "new":
        return start.again()
    output.note(f"  joining {newest['name']}, which is running already (--new starts another)")
    unheeded = replace(said, host=None, name=None, port=None).beyond(Answers())
    if unheeded:  # by their names: a value may be a secret
        output.note(f"  it stays as it is: only a new one takes {', '.join(flag.split()[0] for flag in unheeded)}")
    ports = ports_of(said)
    return attach.join(host, str(newest["id"]), config, ports, options)


class _Start:
    """One attempt to start a session and come to it."""

    def __init__(self, host: Host, spec: Spec, ports: Sequence[Port], config: state.Config, options: Options) -> None:
        self._host, self._spec, self._ports, self._config, self._options = host, spec, ports, config, options
        self._attached: Attached | None = None
        self._accepted: Json = {}

    def again(self) -> int:
        self._options = replace(self._options, new=True)
        return self.finish(self.call(), None)

    def call(self) -> Json:
        args = {"spec": self._spec.to_wire(), "new": self._options.new}
        reply: Json = {}
        with output.Progress() as self._progress:
            self._progress.say(f"connecting to {self._host.name}")
            try:
                reply = self._host.call("session", args, self._on_progress)
                if self._attached is not None:
                    self._progress.say("connecting the tunnels")
                    self._attached.wait_up(sessions.reach(self._host, reply["session"]))
                return reply
            except KeyboardInterrupt as interrupt:
                self._close()
                self._undo((interrupt.reply if isinstance(interrupt, Interrupted) else None) or reply)
                raise
            except errors.MlboxError:
                self._close()
                raise

    def _close(self) -> None:
        if self._attached is not None:
            self._attached.close()

    def _undo(self, reply: Json) -> None:
        """Stopped by ^C: also a session that was ready just before goes again, for nobody has seen it."""
        if "session" in reply:
            self._progress.say(f"stopping {reply['session']['name']}")
            try:
                self._host.call("shutdown", {"session": reply["session"]["id"]})
            except errors.MlboxError as error:
                self._progress.keep(f"{reply['session']['name']} goes on, for it could not be stopped: {error.message}")
                return
        self._progress.keep("stopped; nothing was left behind")

    def _on_progress(self, facts: Json) -> None:
        if "accepted" in facts:
            self._accepted = facts["accepted"]
            self._progress.keep(_first_line(self._host.name, facts, self._spec.image))
        if "starting" in facts:
            reach = Reach.of({**self._accepted, **facts["starting"]}, self._host.name, self._host.root)
            self._attached = Attached(reach, self._config, self._ports, self._progress.keep)
            self._attached.dial()
        if "text" in facts:
            self._progress.say(facts["text"], facts.get("detail", ""))

    def finish(self, reply: Json, answers: Answers | None) -> int:
        session = reply["session"]
        if answers is not None and self._options.remember:
            state.update("last.json", self._host.name, to_remember(answers))
        assert self._attached is not None  # a session that is ready was starting before
        return attach.work(self._host, self._attached, session, self._options)


def _first_line(host: str, facts: Json, image: str) -> str:
    parts = [f"{text.count(facts['gpus'], 'GPU')}, {facts['free']} free"] if facts["gpus"] else ["no GPUs"]
    if image:
        parts.append("image is here" if facts["cached"] else "image must be pulled")
    parts.append("starting on " + ", ".join(facts["chosen"]) if facts["chosen"] else "starting without a GPU")
    return f"{host}: " + " · ".join(parts)
