# shellcheck shell=bash
# Sourced, not run, from the repository's root. Chooses the container engine and, where the machine is not a stock cgroup-v2
# host (cgroup v1 or hybrid trees, sandboxes without CAP_SYS_RESOURCE), gives podman a configuration it can work with.
if [ -z "${LAB_ENGINE:-}" ]; then
    if command -v podman >/dev/null || ! command -v docker >/dev/null; then LAB_ENGINE=podman; else LAB_ENGINE=docker; fi
fi
lab_sudo=''
if [ "$(id -u)" != 0 ]; then
    lab_sudo='sudo --non-interactive'
    if [ "$LAB_ENGINE" = podman ]; then LAB_ENGINE=$PWD/lab/bin/podman; fi
    if [ "${LAB_ENGINE##*/}" = podman ] && ! $lab_sudo true 2>/dev/null; then
        echo 'lab: the hosts are started as root, and sudo asks for a password here; run as root, or allow sudo without one' >&2
        exit 1
    fi
fi
export LAB_ENGINE

if [ "${LAB_ENGINE##*/}" = podman ] && [ -z "${CONTAINERS_CONF:-}" ]; then
    lab_containers='' lab_engine_table=''
    # podman asks for 1048576 open files; without CAP_SYS_RESOURCE root may not go above its own limit
    if ! $lab_sudo bash -c 'ulimit -Hn 1048576' 2>/dev/null; then
        lab_files=$($lab_sudo bash -c 'ulimit -Hn')
        lab_containers="default_ulimits = [\"nofile=$lab_files:$lab_files\", \"nproc=32768:32768\"]"
    fi
    # crun refuses a hybrid cgroup tree; runc does not
    if [ "$(stat -fc %T /sys/fs/cgroup)" != cgroup2fs ]; then
        lab_engine_table='runtime = "runc"'
    fi
    if [ -n "$lab_containers$lab_engine_table" ]; then
        CONTAINERS_CONF=/run/bareforge-lab-containers.conf
        printf '[containers]\n%s\n[engine]\n%s\n' "$lab_containers" "$lab_engine_table" | $lab_sudo tee $CONTAINERS_CONF >/dev/null
        export CONTAINERS_CONF
    fi
fi

if ! "$LAB_ENGINE" info >/dev/null 2>&1; then
    echo "lab: $LAB_ENGINE does not work for this user; see: $LAB_ENGINE info (LAB_ENGINE=podman or docker chooses)" >&2
    exit 1
fi

limit=/proc/sys/fs/inotify/max_user_instances # each systemd holds a few; the default of 128 is soon used up
if [ "$(cat $limit)" -lt 512 ]; then
    echo 512 | $lab_sudo tee $limit >/dev/null || echo "lab: $limit could not be raised to 512; many hosts at once may fail" >&2
fi
