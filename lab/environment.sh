# shellcheck shell=bash
# Sourced by the scripts from the repository's root: the environment in which this project's tools run.
root=$PWD
export PATH="$root/.venv/bin:$PATH" ANSIBLE_CONFIG="$root/ansible.cfg" ANSIBLE_HOME="$root/.ansible"

# Where this lab keeps what it made, and how the plugins reach its Vault
lab_use() { # STATE_DIRECTORY HTTPS_PORT VAULT_PORT
    export LAB_STATE=$1 LAB_HTTPS_PORT=$2 LAB_VAULT_PORT=$3
    export VAULT_ADDR=https://127.0.0.1:$3 VAULT_CACERT=$1/ca.pem VAULT_TOKEN_FILE=$1/vault-token
    unset VAULT_TOKEN
    mkdir -p "$LAB_STATE/inventory"
}
