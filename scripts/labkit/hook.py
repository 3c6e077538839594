#!/usr/bin/python3
"""Stands in for nvidia-container-runtime-hook: gives a container the (false) driver library.

An OCI prestart hook: the container's state comes as JSON on stdin; root and environment stand in the
bundle's config.json. Like the real one it acts on NVIDIA_VISIBLE_DEVICES (all, none, void, UUIDs or
indices) and mounts into the container's own mount namespace: the library, and the host's gpus file,
seen through a list of the visible UUIDs, so that a GPU that is lost on the host is lost inside too.

With CDI (`docker run --device nvidia.com/gpu=UUID`) the specification that `spec` prints makes it a hook of
each device, `cdi UUID`; each of them does the whole work for all.
"""

import json
import os
import shutil
import subprocess
import sys
from typing import Any

HOOK = "/usr/bin/nvidia-container-runtime-hook"
LIBRARY = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"
GPUS = "/etc/mlbox-lab"


def visible(wish: str) -> list[str]:
    """UUIDs for a value of NVIDIA_VISIBLE_DEVICES; exits like the real hook on an unknown one."""
    with open(os.path.join(GPUS, "gpus")) as file:
        have = [line.split()[1] for line in file if line.startswith("gpu ")]
    if wish == "all":
        return have
    found = []
    for name in wish.split(","):
        uuid = have[int(name)] if name.isdigit() and int(name) < len(have) else name
        if uuid not in have:
            sys.exit(f"nvidia-container-cli: device error: {name}: unknown device")
        found.append(uuid)
    return list(dict.fromkeys(found))


def bind(pid: int, source: str, target: str) -> None:
    """Mount read-only inside the container's namespace, where its root is not yet its root."""
    enter = ["nsenter", "--target", str(pid), "--mount", "mount"]
    subprocess.run([*enter, "--bind", source, target], check=True)
    subprocess.run([*enter, "-o", "remount,bind,ro", target], check=False)


def specification() -> "dict[str, object]":
    """A CDI specification: each GPU by UUID and by index, and all of them."""
    uuids = visible("all")
    devices = []
    for name in (*uuids, *map(str, range(len(uuids))), "all"):
        hook = {"hookName": "prestart", "path": HOOK, "args": [HOOK, "cdi", name]}
        devices.append({"name": name, "containerEdits": {"hooks": [hook]}})
    # As nvidia-ctk's own: --gpus's hook then has nothing to do.
    edits = {"env": ["NVIDIA_VISIBLE_DEVICES=void"]}
    return {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices, "containerEdits": edits}


def wished(config: "dict[str, Any]") -> str:
    """What the container is to see; as a CDI hook, the devices of all the hooks there are."""
    if sys.argv[1:2] == ["cdi"]:
        hooks = [hook.get("args", []) for hook in config["hooks"]["prestart"]]
        names = [args[2] for args in hooks if args[:2] == [HOOK, "cdi"]]
        return "all" if "all" in names else ",".join(names)
    env = dict(item.split("=", 1) for item in config["process"]["env"] if "=" in item)
    return str(env.get("NVIDIA_VISIBLE_DEVICES", ""))


def main() -> None:
    if sys.argv[1:] == ["spec"]:
        print(json.dumps(specification(), indent=1))
        return
    if sys.argv[1:] not in ([], ["prestart"]) and sys.argv[1:2] != ["cdi"]:
        return
    state = json.load(sys.stdin)
    with open(os.path.join(state.get("bundle") or state["bundlePath"], "config.json")) as file:
        config = json.load(file)
    wish = wished(config)
    if wish in ("", "void", "none"):
        return
    root = config["root"]["path"]
    if not os.path.isabs(root):
        root = os.path.join(state["bundle"], root)
    uuids = visible(wish)

    folder = os.path.join(root, "usr/lib/x86_64-linux-gnu")
    library = os.path.join(
        folder if os.path.isdir(folder) else os.path.join(root, "usr/lib"), os.path.basename(LIBRARY)
    )
    inside = os.path.join(root, GPUS.lstrip("/"))
    os.makedirs(os.path.join(inside, "host"), exist_ok=True)
    os.makedirs(os.path.dirname(library), exist_ok=True)
    with open(os.path.join(inside, "gpus"), "w") as file:
        file.write(f"only {' '.join(uuids)}\ninclude {GPUS}/host/gpus\n")
    try:
        open(library, "a").close()
        bind(state["pid"], LIBRARY, library)
        bind(state["pid"], GPUS, os.path.join(inside, "host"))
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"hook: copying, because mounting failed: {error}", file=sys.stderr)
        shutil.copy(LIBRARY, library)
        shutil.copy(os.path.join(GPUS, "gpus"), os.path.join(inside, "host", "gpus"))


if __name__ == "__main__":
    main()
