#!/usr/bin/env bash
# Makes a CPython for AArch64 that runs on this machine, in emulation: tools/aarch64_python.sh FOLDER, then FOLDER/python;
# FOLDER/run runs other programs for AArch64.
# It is Debian's, of which nothing is installed (unpack_debian.sh).
set -euo pipefail

[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
folder=$(realpath -m "$1")
unpack() { "$(dirname "$0")/unpack_debian.sh" "$folder/$1" "$@"; }

unpack arm64 python3 libstdc++6  # which NumPy needs
emulator=$(command -v qemu-aarch64-static || true)
if [ -z "$emulator" ]; then
  machine=$(dpkg --print-architecture)
  unpack "$machine" qemu-user-static
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
