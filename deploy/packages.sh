#!/bin/sh
# Installs programs from the system's packages, if they are missing.
#   deploy/packages.sh NAME…
# Names are Debian's: make cc softhsm2 postgresql openssl gnutls-bin opensc p11-kit
# nghttp2-client nginx-light python3.X-venv. Needs root, or sudo. Does nothing where all is there.
set -eu

# Whether a file matching any of the patterns exists.
any_file() {
    for file in "$@"; do
        [ -e "$file" ] && return 0
    done
    return 1
}

has() {
    command -v "$1" >/dev/null 2>&1
}

present() {
    case $1 in
    softhsm2)
        has softhsm2-util && any_file \
            /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so \
            /usr/lib64/softhsm/libsofthsm2.so /usr/lib64/pkcs11/libsofthsm2.so \
            /usr/lib/libsofthsm2.so /usr/lib64/libsofthsm2.so \
            /usr/local/lib/softhsm/libsofthsm2.so /opt/homebrew/lib/softhsm/libsofthsm2.so
        ;;
    postgresql)
        { has initdb && has postgres; } || any_file \
            /usr/lib/postgresql/*/bin/postgres /usr/pgsql-*/bin/postgres \
            /usr/libexec/postgresql*/postgres /usr/lib/postgresql*/bin/postgres \
            /opt/homebrew/opt/postgresql*/bin/postgres /usr/local/opt/postgresql*/bin/postgres
        ;;
    make) has make ;;
    cc) has cc && echo '#include <stdio.h>' | cc -E - >/dev/null 2>&1 ;;
    openssl) has openssl ;;
    gnutls-bin) has certtool ;;
    opensc) has pkcs11-tool ;;
    nginx-light) has nginx || any_file /usr/sbin/nginx ;;
    nghttp2-client) has h2load ;;
    p11-kit)
        has p11-kit && any_file \
            /usr/lib/*/p11-kit-proxy.so /usr/lib/p11-kit-proxy.so /usr/lib64/p11-kit-proxy.so \
            /usr/local/lib/p11-kit-proxy.* /opt/homebrew/lib/p11-kit-proxy.*
        ;;
    python3.*-venv)
        version=${1#python}
        "python${version%-venv}" -c 'import ensurepip, venv' >/dev/null 2>&1
        ;;
    *)
        echo "packages.sh knows no package $1" >&2
        exit 2
        ;;
    esac
}

# What the package of that program is called here.
name_of() {
    case $manager:$1 in
    apt-get:softhsm2) echo softhsm2 ;;
    *:softhsm2) echo softhsm ;;
    apt-get:cc) echo "gcc libc6-dev" ;;
    dnf:cc | yum:cc) echo "gcc glibc-devel" ;;
    zypper:cc) echo "gcc glibc-devel" ;;
    apk:cc) echo "gcc musl-dev" ;;
    *:cc) echo gcc ;;
    apt-get:nghttp2-client) echo nghttp2-client ;;
    *:nghttp2-client) echo nghttp2 ;;
    dnf:postgresql | yum:postgresql | zypper:postgresql) echo postgresql-server ;;
    brew:postgresql) echo postgresql@17 ;;
    dnf:gnutls-bin | yum:gnutls-bin) echo gnutls-utils ;;
    zypper:gnutls-bin | pacman:gnutls-bin | brew:gnutls-bin) echo gnutls ;;
    apk:gnutls-bin) echo gnutls-utils ;;
    apt-get:nginx-light) echo nginx-light ;;
    *:nginx-light) echo nginx ;;
    zypper:p11-kit) echo "p11-kit p11-kit-tools" ;;
    dnf:p11-kit | yum:p11-kit) echo "p11-kit p11-kit-server" ;;
    apk:python3.*-venv) echo python3 ;;
    *) echo "$1" ;;
    esac
}

missing=
for name in "$@"; do
    present "$name" || missing="$missing $name"
done
[ -n "$missing" ] || exit 0

manager=
for candidate in apt-get dnf yum zypper apk pacman brew; do
    if has "$candidate"; then
        manager=$candidate
        break
    fi
done
if [ -z "$manager" ]; then
    echo "Missing:$missing. No package manager known here (apt-get, dnf, yum, zypper, apk, pacman, brew); install it by hand." >&2
    exit 1
fi

packages=
for name in $missing; do
    packages="$packages $(name_of "$name")"
done

# As root, through sudo, or (brew) as oneself.
as_root=
if [ "$manager" != brew ] && [ "$(id -u)" -ne 0 ]; then
    if ! has sudo; then
        echo "Missing:$missing. Not root and no sudo; have somebody run: $manager install$packages" >&2
        exit 1
    fi
    if sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    elif [ -t 0 ]; then
        as_root=sudo
    else
        echo "Missing:$missing. sudo asks for a password and there is no terminal; run: sudo $manager install$packages" >&2
        exit 1
    fi
fi

install_packages() {
    # Word splitting of the names and of sudo's argument is meant.
    # shellcheck disable=SC2086
    case $manager in
    apt-get)
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
            install -y -q --no-install-recommends $packages
        ;;
    dnf | yum) $as_root "$manager" install -y -q $packages ;;
    zypper) $as_root zypper --non-interactive install $packages ;;
    apk) $as_root apk add --no-progress $packages ;;
    pacman) $as_root pacman -S --noconfirm --needed $packages ;;
    brew) brew install $packages ;;
    esac
}

echo "Installing$packages with $manager" >&2
if ! install_packages >&2; then
    case $manager in
    # The lists of a fresh machine are empty or out of date.
    apt-get) $as_root apt-get -o DPkg::Lock::Timeout=300 update -q >&2 || true ;;
    pacman) $as_root pacman -Sy --noconfirm >&2 || true ;;
    *)
        echo "Could not install$packages with $manager; install it by hand." >&2
        exit 1
        ;;
    esac
    if ! install_packages >&2; then
        echo "Could not install$packages with $manager; install it by hand." >&2
        exit 1
    fi
fi

still=
for name in "$@"; do
    present "$name" || still="$still $name"
done
if [ -n "$still" ]; then
    echo "Installed$packages, and yet this is not where it should be:$still" >&2
    exit 1
fi
