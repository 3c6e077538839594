"""A person's word about a host: drain and resume it, declare it gone (fence); and, for one that can't be dialled, where
its reverse tunnels end (add, meet, remove)."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

from mlbox import errors
from mlbox.core import lab as lab_rules
from mlbox.core import resources, text
from mlbox.core import reverse as reverse_words
from mlbox.host import able, fence, files, lab, marks, reverse, store, view
from mlbox.host.handlers.logs import pause
from mlbox.host.serve import Call

Json = dict[str, Any]
_KEY_PATIENCE = 150.0  # s; a host's cron comes each minute


def run(call: Call) -> Json:
    found = store.Store(call.root, call.dry)
    lab.identify(found.root)
    name, what = str(call.args.get("name", "")), str(call.args.get("do", ""))
    if not resources.is_label(name):
        raise errors.Usage(f"{text.safe(name)!r} can't be a host's name")
    if what in ("drain", "fence") or (what == "resume" and name not in view.marks(found.root / "drained")):
        name = _known(found, lab.rules(found).lab.own_name(name))
    if what in _OTHERS:
        return {"host": name, **_OTHERS[what](call, found, name)}
    if what not in ("drain", "resume"):
        raise errors.Usage("a host is added, removed, drained, resumed or fenced")
    _drain(found, name, what == "drain", str(call.args.get("why", "")))
    running = [run.id for user in view.known_users(found) for run in view.running_of(found, user) if run.host == name]
    return {"host": name, "drained": what == "drain", "running": running, "nudge": lab.others(found, [name])}


def _drain(found: store.Store, name: str, drain: bool, why: str) -> None:
    path = found.root / "drained" / name
    if found.dry:
        marks.check(path)
    elif drain:
        marks.leave(found, path, why)
    else:
        marks.take_back(path)


def _known(found: store.Store, name: str) -> str:
    """The name. Raises NotFound where the lab has no such host: a word about it would be one about nothing."""
    users = view.known_users(found)
    names = {
        found.host,
        *lab.rules(found).lab.hosts,
        *(host for u in users for host in view.names(found.own(u) / "on")),
    }
    if name not in names:
        raise errors.NotFound(f"there is no host {name} in the lab", "hosts: " + ", ".join(sorted(names)))
    return name


def _fence(call: Call, found: store.Store, name: str) -> Json:
    """What it has counts for nothing from here on: nobody's job waits for it, and should it be back, it starts nothing
    until a person says so."""
    if name == found.host:
        raise errors.Refused(f"{name} is the host that answers this, so it is not gone", "mlbox host drain")
    with suppress(errors.Refused):  # another has drained, or fenced, it already
        _drain(found, name, True, "fenced")  # first: it starts nothing of what is in line again from here on
    return {"requeued": fence.host(found, name), "nudge": able.others(found, lab.rules(found).lab)}


# ---- reverse tunnels ------------------------------------------------------------------------------------------


def _add(call: Call, found: store.Store, name: str) -> Json:
    """It is in lab.yaml; its public key, as soon as its next tick has shown it. Of a dry run, the line that lab.yaml
    would get, and the key if it is shown."""
    via, entry = str(call.args.get("via", "")), lab.rules(found).lab.hosts.get(name)
    if not lab_rules.is_ssh_name(via):
        raise errors.Usage(f"{text.safe(via)!r} is no name that ssh knows", "--via HOST, one that laptops can dial")
    tunnel = str(call.args.get("tunnel", "reverse"))
    if entry is not None and (entry.via, entry.reverse) != (via, tunnel == "reverse"):
        lab.catch_up(found.root)
        entry = lab.rules(found).lab.hosts.get(name)
    line = ""
    if entry is None:
        edit = lab.adding(found.root, "hosts", name, json.dumps({"tunnel": tunnel, "via": via}))
        line = edit.line
        if not found.dry:
            edit.write()
    elif entry.via not in ("", via) and entry.reverse == (tunnel == "reverse"):
        raise errors.Refused(
            f"lab.yaml has {name} meet laptops at {entry.via}, not at {via}",
            f"is that the same host? --via {entry.via}, {reverse.alias(entry.via)}; lab.yaml is everybody's",
        )
    elif (entry.via, entry.reverse) != (via, tunnel == "reverse"):
        hint = f"in {found.root}/lab.yaml, under {name}: tunnel: {tunnel}, via: {via}"
        raise errors.Refused(f"lab.yaml has {name} already, and not with {tunnel} tunnels and via {via}", hint)
    if found.dry:
        return {"key": _shown_key(found, name), "line": line}
    if name == found.host:
        files.make_folder(found.on())
        reverse.publish(found, lab.rules(found).lab)
    return {"key": _await_key(call, found, name)}


def _shown_key(found: store.Store, name: str) -> str:
    shown = files.read_json(found.on(name) / "reverse.json")
    key = str(shown.get("public_key", "")) if isinstance(shown, dict) else ""
    return key if reverse_words.is_key(key) else ""


def _await_key(call: Call, found: store.Store, name: str) -> str:
    deadline = time.monotonic() + _KEY_PATIENCE
    call.progress(text=f"waiting for {name}'s next pass over the queue (its cron, each minute)")
    while True:
        key = _shown_key(found, name)
        if key:
            return key
        if time.monotonic() > deadline:
            raise errors.Refused(
                f"{name} has not shown its key within {_KEY_PATIENCE:.0f} s",
                f"on {name}: is {found.root} mounted? `mlbox cron install local --root {found.root}`; then this again",
            )
        pause()


def _meet(call: Call, found: store.Store, name: str) -> Json:
    place = reverse_words.Meeting.from_wire(call.args.get("meeting"))
    if not found.dry:
        path = reverse.meeting_file(found, name)
        files.make_folder(path.parent, 0o711)  # others see that it is there (`_remove`)
        files.write_whole(path, json.dumps(place.to_wire()).encode())
    return {"via": place.via}


def _place(call: Call, found: store.Store, name: str) -> Json:
    """Where its tunnels end. Raises NotFound, and Refused where something of this user's still runs on it."""
    entry = lab.rules(found).lab.hosts.get(name)
    if entry is None:
        raise errors.NotFound(f"lab.yaml has no host {name}", f"see {found.root}/lab.yaml")
    running = [run.id for run in view.running_of(found, found.user) if run.host == name]
    if running:
        raise errors.Refused(
            f"{text.count(len(running), 'job')} of yours still on {name}: {', '.join(running[:5])}",
            f"mlbox cancel, or mlbox host fence {name} if it is gone",
        )
    return {"via": entry.via}


def _remove(call: Call, found: store.Store, name: str) -> Json:
    """It is forgotten; in lab.yaml it stays while others meet it there."""
    place = _place(call, found, name)
    others = [u for u in view.known_users(found) if u != found.user and _may_meet(found, name, u)]
    edit = None if others else lab.removing(found.root, "hosts", name)
    if not found.dry:
        reverse.meeting_file(found, name).unlink(missing_ok=True)
        if edit is not None:
            edit.write()
    return {**place, "others": others}


def _may_meet(found: store.Store, name: str, user: str) -> bool:
    """Whether another user meets it there; also where that can't be seen (an older version closed the folder)."""
    try:
        return reverse.meeting_file(found, name, user).exists()
    except PermissionError:
        return True


_OTHERS = {"fence": _fence, "add": _add, "meet": _meet, "place": _place, "remove": _remove}
