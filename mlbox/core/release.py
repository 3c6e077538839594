"""VS Code's server (code-server) as its makers release it: which file, from where, and its checksum. Pure."""

from __future__ import annotations

from mlbox.core.facts import Facts
from mlbox.core.session import Spec

CODE_SERVER = "4.108.1"  # where a session asks for nothing else
# Of upstream's release files, which come without a checksum file of their own.
CODE_SERVER_SHA256 = {
    "4.108.1-linux-amd64": "5a191adde4d34d403d180bf29f13424b34961e80d31411b2112a18102f3b55f3",
    "4.108.1-linux-arm64": "92069dbb2ed99a204fca65d3ebbec893287147e46906cd8605b14fb92b450072",
    "4.108.1-macos-amd64": "239a1305a4d6bf72aba912d1033b744d981e083de21b6a903d5d6e3832467703",
    "4.108.1-macos-arm64": "33854eb31fccdc7db594de5bac76e93614c8a9cd4cd8d36d934dbf6c54ccdf00",
}
CODE_SERVER_URL = "https://github.com/coder/code-server/releases/download/v{version}/{file}"


def file(spec: Spec, facts: Facts) -> str:
    version = spec.vscode_version.partition("@")[0] or CODE_SERVER
    return f"code-server-{version}-{facts.system}-{facts.arch}.tar.gz"


def checksum(spec: Spec, name: str) -> str:
    """A release file's sha256: as whoever asks for the version says, or as mlbox knows it; empty where neither does."""
    known = CODE_SERVER_SHA256.get(name.replace("code-server-", "").replace(".tar.gz", ""), "")
    return spec.vscode_version.partition("@sha256:")[2] or known
