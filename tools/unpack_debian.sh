#!/usr/bin/env bash
# Unpacks packages of Debian, with what they depend on: tools/unpack_debian.sh FOLDER ARCHITECTURE PACKAGE...
# None is installed, so it needs apt-get and dpkg-deb but no rights, and the architecture may be another machine's.
set -euo pipefail

[ $# -ge 3 ] || { echo "usage: $0 FOLDER ARCHITECTURE PACKAGE..." >&2; exit 2; }
folder=$(realpath -m "$1")
architecture=$2
shift 2
state=$folder.apt
mkdir -p "$folder" "$state/lists/partial" "$state/cache/archives/partial"
: >"$state/status"  # an apt-get that believes nothing is installed
apt=(apt-get -qq -y -o "APT::Architecture=$architecture" -o "APT::Architectures=$architecture"
  -o "Dir::State::status=$state/status" -o "Dir::State::lists=$state/lists" -o "Dir::Cache=$state/cache"
  -o "APT::Sandbox::User=$(id -un)" -o Debug::NoLocking=1 -o APT::Install-Recommends=false)
"${apt[@]}" update
"${apt[@]}" --download-only install "$@"
for package in "$state"/cache/archives/*.deb; do dpkg-deb -x "$package" "$folder"; done
rm -r "$state"
