#!/usr/bin/env bash
# Makes this checkout able to run: a virtual environment with the locked requirements, and the system packages.
#
# Sourced by tools/cluster and tools/test:   bootstrap_venv run|test     (then use $GRIDSTEAD_VENV/bin/python)
# As a program:                              tools/bootstrap.sh venv [run|test]      the virtual environment
#                                            tools/bootstrap.sh system               what tools/requirements.apt lists
#
# The usual case, all there already, must cost nothing: bash's own checks, no Python, no pip, one file read.
# Environment: GRIDSTEAD_VENV (where, default .venv in the checkout), GRIDSTEAD_PYTHON (which interpreter builds it).

_bootstrap_root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
GRIDSTEAD_VENV=${GRIDSTEAD_VENV:-$_bootstrap_root/.venv}

_bootstrap_say() { printf '%s: %s\n' "${GRIDSTEAD_PROG:-gridstead}" "$*" >&2; }

_bootstrap_die() {
    _bootstrap_say "$*"
    exit 1
}

# ---------------------------------------------------------------------------------------------- system packages

# Prints those of the given Debian packages that are not installed.
_bootstrap_missing() {
    local have package
    # dpkg-query fails when it does not know a package at all; what it does print is right all the same.
    have=$'\n'$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "$@" 2>/dev/null || true)$'\n'
    for package in "$@"; do
        [[ $have == *$'\n'"installed $package"$'\n'* ]] || printf '%s\n' "$package"
    done
}

_bootstrap_apt() {
    # A lock held by unattended-upgrades on a machine just booted, or a mirror's hiccup, is worth waiting for.
    DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"
}

# Installs the given Debian packages, or says which are wanted and why it cannot.
_bootstrap_install() {
    local log list
    local -a missing
    mapfile -t missing < <(_bootstrap_missing "$@")
    ((${#missing[@]})) || return 0
    list="${missing[*]}"
    [[ $(id -u) == 0 ]] || _bootstrap_die "system packages are missing; as root run: apt-get install $list"
    _bootstrap_say "installing system packages: $list"
    log=$(mktemp)
    # Package lists may be there and fresh, there and stale, or not there: an update only helps in the last two.
    if ! _bootstrap_apt install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
        if ! { _bootstrap_apt update && _bootstrap_apt install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
            grep -E '^(E|W|Err)[: ]' "$log" | tail -n 15 >&2 || tail -n 15 "$log" >&2
            rm -f "$log"
            _bootstrap_die "apt-get could not install: $list (messages above); mend that and run the command again"
        fi
    fi
    rm -f "$log"
}

# Everything that nodes as containers need of this machine.
bootstrap_system() {
    local -a packages
    if ! command -v apt-get >/dev/null; then
        _bootstrap_die "no apt here: install by hand what corresponds to the Debian packages in tools/requirements.apt"
    fi
    mapfile -t packages < <(grep -vE '^[[:space:]]*(#|$)' "$_bootstrap_root/tools/requirements.apt")
    _bootstrap_install "${packages[@]}"
}

# ---------------------------------------------------------------------------------------------- virtual environment

_bootstrap_python_usable() {
    # ensurepip is what Debian leaves out until python3-venv is installed.
    "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Sets _bootstrap_python to an interpreter that can build the environment; the distribution's own comes first.
_bootstrap_find_python() {
    local candidate
    local -a candidates=(/usr/bin/python3 python3 python3.13 python3.12 python3.11)
    [[ -z ${GRIDSTEAD_PYTHON:-} ]] || candidates=("$GRIDSTEAD_PYTHON")
    for candidate in "${candidates[@]}"; do
        _bootstrap_python=$(command -v "$candidate") && _bootstrap_python_usable "$_bootstrap_python" && return 0
    done
    [[ -z ${GRIDSTEAD_PYTHON:-} ]] ||
        _bootstrap_die "GRIDSTEAD_PYTHON=$GRIDSTEAD_PYTHON is no Python 3.11 or later with the venv module"
    command -v apt-get >/dev/null || _bootstrap_die "no Python 3.11 or later with the venv module found; install one"
    _bootstrap_install python3 python3-venv
    _bootstrap_python=/usr/bin/python3
    _bootstrap_python_usable "$_bootstrap_python" ||
        _bootstrap_die "$("$_bootstrap_python" --version) is too old: Python 3.11 or later is needed (Debian 12 or later)"
}

# What an environment must have been made from to be good: this place, this interpreter, this package, these requirements.
# Left in _bootstrap_want. Reads, no forks: bash's $(<file) is a builtin.
_bootstrap_wanted() {
    local project
    project=$(<"$_bootstrap_root/pyproject.toml")
    _bootstrap_want="$GRIDSTEAD_VENV
$(readlink -f "$GRIDSTEAD_VENV/bin/python" 2>/dev/null)
${project%%$'\n'"[tool.ruff]"*}
$(<"$_bootstrap_root/requirements/$1.txt")"
}

_bootstrap_ready() {
    local stamp=$GRIDSTEAD_VENV/.gridstead-$1
    [[ -f $stamp && -x $GRIDSTEAD_VENV/bin/python ]] || return 1
    _bootstrap_wanted "$1"
    [[ $(<"$stamp") == "$_bootstrap_want" ]]
}

_bootstrap_pip() {
    # -qq: errors only. Warnings of pip are about the machine it runs on, and for whoever set up its index.
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1 \
        "$GRIDSTEAD_VENV/bin/python" -m pip -qq "$@" >&2
}

# Says whether what is at GRIDSTEAD_VENV may be removed: there is nothing, or it was made here. The mark is the first thing
# that is put there, so that what a killed run left has it too.
_bootstrap_ours() {
    local marks
    [[ -L $GRIDSTEAD_VENV || -e $GRIDSTEAD_VENV ]] || return 0
    [[ -d $GRIDSTEAD_VENV ]] || return 1
    marks=$(compgen -G "$GRIDSTEAD_VENV/.gridstead*") && [[ -n $marks ]] && return 0
    [[ -z $(ls -A "$GRIDSTEAD_VENV") ]]
}

# Runs with the lock held. The stamps go before the first change and come after the last one, so that a run killed
# anywhere in here leaves no stamp, and the next one starts from nothing.
_bootstrap_build() {
    local set=$1 seconds=$SECONDS lock=$_bootstrap_root/requirements/$1.txt on_top=0
    local place=${GRIDSTEAD_VENV#"$PWD/"}
    # The test set is the run set, same versions, and more: it is laid on top of a good run environment.
    if [[ $set == test ]] && _bootstrap_ready run; then
        on_top=1
        rm -f "$GRIDSTEAD_VENV"/.gridstead-*
        _bootstrap_say "adding what the tests need to $place"
    else
        _bootstrap_ours || _bootstrap_die "$GRIDSTEAD_VENV is there and was not made by Gridstead, which would empty it:" \
            "move it away, or set GRIDSTEAD_VENV to a directory that is not there yet"
        _bootstrap_find_python
        rm -rf "$GRIDSTEAD_VENV"
        mkdir -p "$GRIDSTEAD_VENV"
        : >"$GRIDSTEAD_VENV/.gridstead"
        _bootstrap_say "making $place with $("$_bootstrap_python" --version): $(grep -c '==' "$lock") packages, a minute or so"
        "$_bootstrap_python" -m venv "$GRIDSTEAD_VENV" || _bootstrap_die "cannot make $place (message above)"
    fi
    # --no-compile: byte-compiling all of Ansible's thousands of modules takes longer than everything else, and most never
    # run here; Python compiles what does run, once.
    _bootstrap_pip install --no-compile --require-hashes --no-deps --only-binary :all: -r "$lock" ||
        _bootstrap_die "pip could not install requirements/$set.txt (message above); mend that and run the command again"
    if ((!on_top)); then
        _bootstrap_pip install --no-index --no-deps --no-build-isolation -e "$_bootstrap_root" ||
            _bootstrap_die "pip could not install this checkout (message above)"
    fi
    _bootstrap_wanted run
    printf '%s\n' "$_bootstrap_want" >"$GRIDSTEAD_VENV/.gridstead-run"
    if [[ $set == test ]]; then
        _bootstrap_wanted test
        printf '%s\n' "$_bootstrap_want" >"$GRIDSTEAD_VENV/.gridstead-test"
    fi
    _bootstrap_say "made in $((SECONDS - seconds)) s"
}

# The environment with what the product (run) or its tests (test) need.
bootstrap_venv() {
    local set=${1:-run}
    _bootstrap_ready "$set" && return 0
    # In a subshell: its file descriptor, and so the lock, ends with it however it ends.
    (
        flock -n 9 || {
            _bootstrap_say "another run is making ${GRIDSTEAD_VENV#"$PWD/"}; waiting for it"
            flock 9
        }
        _bootstrap_ready "$set" || _bootstrap_build "$set"
    ) 9>"$GRIDSTEAD_VENV.lock" || exit 1
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    set -euo pipefail
    case ${1:-} in
        venv) bootstrap_venv "${2:-run}" ;;
        system) bootstrap_system ;;
        *)
            printf 'usage: tools/bootstrap.sh venv [run|test] | system\n' >&2
            exit 2
            ;;
    esac
fi
