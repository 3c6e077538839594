# The session image: JupyterLab, code-server, sshd. Needs JUPYTERLAB, CODE_SERVER, /lab/certs, /sources.
set -eu
. /recipes/packages.sh
export PIP_CERT=/lab/certs/ca-certificates.crt
pip3 install -q --no-cache-dir --break-system-packages "jupyterlab==$JUPYTERLAB"
find /usr/local/share/jupyter /usr/local/lib/python3* -name '*.map' -delete
rm -f /etc/ssh/ssh_host_*
name=code-server-$CODE_SERVER-linux-amd64
tar -C /opt --no-same-owner -xf "/sources/$name.tar.gz"
ln -s "/opt/$name/bin/code-server" /usr/local/bin/code-server
code-server --version
jupyter lab --version
