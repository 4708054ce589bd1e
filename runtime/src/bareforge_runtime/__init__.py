"""What an ASGI application needs in its virtual environment to run under bareforge.

- `bareforge_runtime.release.current()`: which release this process runs.
- `bareforge_runtime.secrets`: the agent's files, read into memory.
- `bareforge_runtime.changes.followed(move)`: hears of secrets that change while the application serves.
- `bareforge_runtime.replaceable.Replaceable`: a pool that is replaced under its users.
- `bareforge_runtime.worker.Worker`: the gunicorn worker class.
- `python -m bareforge_runtime check | trial | run | wait | schema`: see its `--help`.
"""
