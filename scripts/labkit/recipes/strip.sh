# Makes a Debian root (the working directory) small, and keeps it so.
cat >etc/dpkg/dpkg.cfg.d/lab <<'END'
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/lintian/*
END
rm -rf usr/share/doc/* usr/share/man/* usr/share/info/* usr/share/locale/* usr/share/lintian/*
rm -rf var/cache/apt/* var/lib/apt/lists/* var/log/apt var/log/*.log var/cache/debconf/*-old
rm -f etc/hostname etc/resolv.conf
