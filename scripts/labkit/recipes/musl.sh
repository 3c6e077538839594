# In /out a system as Alpine's is: musl's libc, busybox, sshd, and a Python built for them, but no packages. Needs
# /lab/certs and WHEELS: the first one has the Python, others bring OpenSSL and SQLite for it.
set -eu
. /recipes/packages.sh
export PIP_CERT=/lab/certs/ca-certificates.crt

mkdir /build
cd /build
sed 's/^deb /deb-src /' /etc/apt/sources.list >/etc/apt/sources.list.d/sources.list
apt-get -q update
apt-get -q source --download-only --tar-only busybox openssh libffi zlib
for tar in *.orig.tar.*z *.orig.tar.bz2; do tar -xf "$tar"; done

# The kernel's headers, which musl-gcc does not see.
ln -s ../linux ../mtd ../asm-generic ../x86_64-linux-gnu/asm /usr/include/x86_64-linux-musl/
export CC=musl-gcc CFLAGS="-O1 -pipe"

cd /build/busybox-*/
make defconfig >/dev/null
sed -i 's/^CONFIG_TC=y/# CONFIG_TC is not set/' .config # wants headers of older kernels
make -sj2 CC="$CC" busybox

cd /build/zlib-*/
./configure --prefix=/usr
make -sj2 shared

cd /build/libffi-*/
autoreconf -i
./configure --disable-static --disable-docs --disable-multi-os-directory --disable-builddir
make -sj2

cd /build/openssh-*/
# Without OpenSSL it still has Ed25519.
./configure --prefix=/usr --sysconfdir=/etc/ssh --libexecdir=/usr/lib/ssh --with-privsep-path=/var/empty \
	--without-openssl --without-zlib --with-sandbox=no
make -sj2 sshd sshd-session sshd-auth sftp-server ssh-keygen

cd /build
pip3 download -q --no-deps --only-binary :all: --platform musllinux_1_2_x86_64 --python-version 3.13 $WHEELS
for wheel in *.whl; do python3 -m zipfile -e "$wheel" wheels; done

mkdir /out
cd /out
mkdir -p bin sbin lib etc/ssh dev proc sys run tmp root home var/empty usr/bin usr/sbin usr/lib/ssh
chmod 1777 tmp
chmod 700 root
cp /lib/x86_64-linux-musl/libc.so lib/ld-musl-x86_64.so.1
ln -s ld-musl-x86_64.so.1 lib/libc.musl-x86_64.so.1
cp /build/busybox-*/busybox bin/
chroot . /bin/busybox --install -s
install -st usr/sbin /build/openssh-*/sshd
install -st usr/bin /build/openssh-*/ssh-keygen
install -st usr/lib/ssh /build/openssh-*/sshd-session /build/openssh-*/sshd-auth /build/openssh-*/sftp-server
tar -C usr --exclude='./lib/python3*/site-packages/*' -xJf /build/wheels/ai/backend/krunner/alpine/krunner-env.*.tar.xz \
	./bin/python ./bin/python3 ./bin/python3.13 ./lib

cd usr/lib
cp -d /build/zlib-*/libz.so.1* /build/libffi-*/.libs/libffi.so.8* .
cp /build/wheels/*.libs/libssl-* /build/wheels/*.libs/libcrypto-* /build/wheels/*.libs/libsqlite3-* .
ln -s libssl-* libssl.so.3
ln -s libcrypto-* libcrypto.so.3
ln -s libsqlite3-* libsqlite3.so.0

cd /out/etc
cat >passwd <<'END'
root:x:0:0:root:/root:/bin/ash
sshd:x:22:22:sshd:/dev/null:/sbin/nologin
nobody:x:65534:65534:nobody:/:/sbin/nologin
END
printf '%s\n' root:x:0:root sshd:x:22: nobody:x:65534: >group
printf '%s\n' 'root:*::0:::::' 'sshd:!::0:::::' 'nobody:!::0:::::' >shadow
chmod 640 shadow
printf '%s\n' /bin/sh /bin/ash >shells
cat >profile <<'END'
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 022
END
chroot /out /usr/bin/python3 -c 'import ctypes, ssl, sqlite3, zlib'
