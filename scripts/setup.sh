#!/usr/bin/env bash
# Make .venv and install the project into it, editable, at the versions of constraints.txt. At once when nothing
# has changed since the last time. PYTHON=python3.12 picks the interpreter.
#
# torch: pip takes the build that its configuration offers. From the public index that is the CUDA build on Linux
# (several GB); where a CPU build of the same version is offered (extra-index-url or find-links), pip prefers it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
fail() {
  printf 'setup: %s\n  fix: %s\n' "$1" "$2" >&2
  exit 1
}

command -v "$python" >/dev/null || fail "'$python' was not found" "install Python 3.11 or newer, or set PYTHON=/path/to/python"
version=$("$python" -c 'import platform; print(platform.python_version())')
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "'$python' is Python $version, and 3.11 or newer is needed" "set PYTHON=, for example PYTHON=python3.12"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "'$python' has no venv module" "install it (on Debian and Ubuntu: apt-get install python3-venv), or set PYTHON="

# What the environment was made from; the last line is the folder, which an editable install points at.
key=$(printf '%s\n' "$version" "$(cat pyproject.toml constraints.txt)" "$PWD")
stamp=.venv/setup-stamp
if [ -f "$stamp" ] && [ "$key" = "$(cat "$stamp")" ]; then
  echo "setup: .venv is up to date (Python $version)"
  exit 0
fi

# Made by another Python, left half made, or moved here from another folder: anew.
made_with=$(.venv/bin/python -c 'import pip, platform; print(platform.python_version())' 2>/dev/null || true)
if [ "$made_with" != "$version" ] || ! grep -qF "$PWD/.venv" .venv/bin/activate; then
  echo "setup: making .venv with Python $version"
  "$python" -m venv --clear .venv
fi
rm -f "$stamp"
echo "setup: installing the packages of constraints.txt (torch among them: about 2 GB on disk; this takes minutes and prints nothing)"
.venv/bin/python -m pip install -qq --disable-pip-version-check --no-input -c constraints.txt -e '.[dev]'
printf '%s\n' "$key" >"$stamp"
echo "setup: done; 'source .venv/bin/activate' puts 'tune' on the path"
