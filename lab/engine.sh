# shellcheck shell=bash
# Sourced, not run. Chooses the container engine and, where the machine is not a stock cgroup-v2 host (cgroup v1 or
# hybrid trees, sandboxes without CAP_SYS_RESOURCE), gives podman a configuration it can work with.
if [ -z "${LAB_ENGINE:-}" ]; then
    if command -v podman >/dev/null || ! command -v docker >/dev/null; then LAB_ENGINE=podman; else LAB_ENGINE=docker; fi
fi
export LAB_ENGINE

if [ "$LAB_ENGINE" = podman ] && [ "$(id -u)" = 0 ] && [ -z "${CONTAINERS_CONF:-}" ]; then
    lab_containers='' lab_engine_table=''
    # podman asks for 1048576 open files; without CAP_SYS_RESOURCE root may not go above its own limit
    if ! (ulimit -Hn 1048576) 2>/dev/null; then
        lab_containers="default_ulimits = [\"nofile=$(ulimit -Hn):$(ulimit -Hn)\", \"nproc=32768:32768\"]"
    fi
    # crun refuses a hybrid cgroup tree; runc does not
    if [ "$(stat -fc %T /sys/fs/cgroup)" != cgroup2fs ]; then
        lab_engine_table='runtime = "runc"'
    fi
    if [ -n "$lab_containers$lab_engine_table" ]; then
        CONTAINERS_CONF=/run/bareforge-lab-containers.conf
        printf '[containers]\n%s\n[engine]\n%s\n' "$lab_containers" "$lab_engine_table" > "$CONTAINERS_CONF"
        export CONTAINERS_CONF
    fi
fi
