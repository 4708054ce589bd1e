"""The host's one client of Vault: it logs in, and writes settings to files in memory that applications read.

`python -m bareforge_agent run | check | enroll | exec`. Settings are declared in sets, so that a new release can have
others than the one that still serves. The files, `kv.json` and `db.json` in $RUNTIME_DIRECTORY/SET, are flat JSON
objects {setting name: string}; nothing else is a contract, so that another program may write them instead.
"""
