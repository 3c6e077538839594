"""The hosts that this laptop knows, and a question to all of them at once, or to any."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlbox import errors
from mlbox.client import output, state, transports
from mlbox.client.remote import Host, OnProgress, connect
from mlbox.core import text

Json = dict[str, Any]
_AWAY = 300.0  # s after which a host that was away is worth ssh's patience again


def known_hosts(config: state.Config) -> list[str]:
    """The configured hosts; without any, those seen before; without those, this machine."""
    return list(config.hosts) or _seen() or [transports.LOCAL]


def none_known(config: state.Config) -> bool:
    """`known_hosts` is this machine for want of any."""
    return not config.hosts and not _seen()


def _seen() -> list[str]:
    return sorted(state.load("hosts.json"))


def told(name: str, error: errors.MlboxError) -> str:
    """What went wrong with a host, which some messages begin with."""
    return error.message if error.message.startswith(f"{name}: ") else f"{name}: {error.message}"


def why(name: str, error: errors.MlboxError) -> str:
    """The same for a line that begins with the host."""
    return text.safe(error.message.removeprefix(f"{name}: "))


def ask_all(hosts: Sequence[str], verb: str, args: Json, config: state.Config) -> dict[str, Json | errors.MlboxError]:
    """Each host's reply, or why there is none; a dead host costs one time-out, not one each."""

    def one(name: str) -> Json | errors.MlboxError:
        try:
            return connect(name, config).call(verb, args)
        except errors.Bug as error:
            from mlbox.client import bug

            return errors.Bug(error.message, bug.keep(error.hint, verb))
        except errors.MlboxError as error:
            return error

    if len(hosts) < 2:
        return {name: one(name) for name in hosts}
    from concurrent.futures import ThreadPoolExecutor, as_completed  # a tenth of what most commands would import

    with output.Progress(f"asking {', '.join(hosts)}") as progress, ThreadPoolExecutor(min(32, len(hosts))) as pool:
        asked = {pool.submit(one, name): name for name in hosts}
        left = list(hosts)
        for answered in as_completed(asked):
            left.remove(asked[answered])
            progress.say(f"waiting for {', '.join(left)}")
        return {name: future.result() for future, name in asked.items()}


def facts(name: str, reply: Json | errors.MlboxError) -> Json:
    """A host's reply, or why there is none, as --json has it."""
    if isinstance(reply, errors.MlboxError):
        return {"host": name, "error": {"kind": reply.kind, "message": reply.message}}
    return {**reply, "host": name}


def exit_code(replies: Mapping[str, Json | errors.MlboxError], wanted: Iterable[str] = ()) -> int:
    """The first failure's among the hosts that were `wanted` by name, or were to change; of others, where no host
    replied."""
    failed = {name: reply.exit_code for name, reply in replies.items() if isinstance(reply, errors.MlboxError)}
    missed = failed if len(failed) == len(replies) else {name: failed[name] for name in wanted if name in failed}
    return next(iter(missed.values()), 0)


def away() -> set[str]:
    """Those that no connection came about to a moment ago: each would cost a command ssh's whole time-out once more."""
    now = time.time()
    noted = state.load("away.json").items()
    return {name for name, at in noted if isinstance(at, float) and abs(now - at) < _AWAY}


def note(name: str, is_away: bool) -> None:
    state.update("away.json", name, time.time() if is_away else None)


class AnyHost(Host):
    """The first of these that a connection comes about to. Once it has answered, it is that one.

    Those that were away a moment ago come last."""

    def __init__(self, names: Sequence[str], settings: state.Config) -> None:
        self._settings, self._away = settings, away()
        self._become(sorted(names, key=lambda name: name in self._away))

    def _become(self, names: Sequence[str]) -> None:
        vars(self).update(vars(connect(names[0], self._settings)))
        self._others = names[1:]

    def call(self, verb: str, args: Json, on_progress: OnProgress | None = None) -> Json:
        while True:
            try:
                reply = super().call(verb, args, on_progress)
            except errors.NotConnected as error:
                note(self.name, True)
                if not self._others:
                    raise
                with output.still():
                    output.warn(f"{told(self.name, error)}; {self._others[0]} is asked instead")
                self._become(self._others)
            except errors.HostUnready as error:  # "here" is the first of several, which nobody named
                is_named = self.name in re.split(r"[\s:,]+", error.message)  # not as `local` is in ~/.local
                message = error.message if is_named else told(self.name, error)
                raise errors.HostUnready(message, error.hint) from None
            else:
                self._others = ()
                if self.name in self._away:
                    note(self.name, False)
                return reply
