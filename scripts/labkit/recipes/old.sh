# An old machine: python3 is Python 2.7 for those who have this folder in their PATH.
set -eu
. /recipes/packages.sh
mkdir -p /opt/python2/bin
ln -s /usr/bin/python2.7 /opt/python2/bin/python3
