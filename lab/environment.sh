# shellcheck shell=bash
# Sourced by scripts/demo and scripts/test from the repository's root: the environment in which the lab's playbooks run.
root=$PWD
export PATH="$root/.venv/bin:$PATH" ANSIBLE_CONFIG="$root/ansible.cfg" ANSIBLE_HOME="$root/.ansible"
. lab/engine.sh
limit=/proc/sys/fs/inotify/max_user_instances # each systemd holds a few; the default of 128 is soon used up
if [ "$(cat $limit)" -lt 512 ] && [ -w $limit ]; then echo 512 > $limit; fi

# Where this lab keeps what it made, and how the plugins reach its Vault
lab_use() { # STATE_DIRECTORY HTTPS_PORT VAULT_PORT
    export LAB_STATE=$1 LAB_HTTPS_PORT=$2 LAB_VAULT_PORT=$3
    export VAULT_ADDR=https://127.0.0.1:$3 VAULT_CACERT=$1/ca.pem VAULT_TOKEN_FILE=$1/vault-token
    unset VAULT_TOKEN
    mkdir -p "$LAB_STATE/inventory"
}
