#!/usr/bin/env bash
# Makes a CPython for AArch64 that runs on this machine, in emulation: tools/aarch64_python.sh FOLDER, then FOLDER/python;
# FOLDER/run runs other programs for AArch64.
# It is Debian's, and needs apt-get and dpkg-deb but no rights: packages are unpacked into the folder, none is installed.
set -euo pipefail

[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
folder=$(realpath -m "$1")
mkdir -p "$folder"

# unpacked <architecture> <package...>: with what they depend on, by an apt-get that believes nothing is installed.
unpacked() {
  local architecture=$1 state=$folder/apt-$1
  shift
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
  : >"$state/status"
  local apt=(apt-get -qq -y -o "APT::Architecture=$architecture" -o "APT::Architectures=$architecture"
    -o "Dir::State::status=$state/status" -o "Dir::State::lists=$state/lists" -o "Dir::Cache=$state/cache"
    -o "APT::Sandbox::User=$(id -un)" -o Debug::NoLocking=1 -o APT::Install-Recommends=false)
  "${apt[@]}" update
  "${apt[@]}" --download-only install "$@"
  for package in "$state"/cache/archives/*.deb; do dpkg-deb -x "$package" "$folder/$architecture"; done
}

unpacked arm64 python3 libstdc++6  # which NumPy needs
emulator=$(command -v qemu-aarch64-static || true)
if [ -z "$emulator" ]; then
  machine=$(dpkg --print-architecture)
  unpacked "$machine" qemu-user-static
  emulator=$folder/$machine/usr/bin/qemu-aarch64-static
fi

cat >"$folder/run" <<SCRIPT
#!/bin/sh
exec '$emulator' -cpu max -L '$folder/arm64' "\$@"
SCRIPT
# Child processes find the same script as sys.executable.
cat >"$folder/python" <<SCRIPT
#!/bin/sh
export PYTHONHOME='$folder/arm64/usr'
exec '$folder/run' -0 "\$0" '$folder/arm64/usr/bin/python3' "\$@"
SCRIPT
chmod +x "$folder/run" "$folder/python"
"$folder/python" -c 'import platform; print("CPython", platform.python_version(), platform.machine())'
