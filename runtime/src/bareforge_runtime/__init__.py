"""What an ASGI application needs in its virtual environment to run under bareforge.

- `bareforge_runtime.release.current()`: which release this process runs.
- `bareforge_runtime.secrets`: the agent's files, read into memory.
- `bareforge_runtime.worker.Worker`: the gunicorn worker class.
- `python -m bareforge_runtime check | trial | run | wait | schema`: see its `--help`.
"""
