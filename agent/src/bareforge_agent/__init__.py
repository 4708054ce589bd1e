"""The host's one client of Vault: it logs in, and writes settings to files in memory that applications read.

`python -m bareforge_agent run | check | enroll`. The files, `kv.json` and `db.json` in $RUNTIME_DIRECTORY,
are flat JSON objects {setting name: string}; nothing else is a contract, so that another program may write
them instead.
"""
