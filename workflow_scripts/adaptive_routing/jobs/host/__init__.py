"""The model host: one process that keeps the model on its device and does the jobs that need it.

`client` is what a job runs (standard library and psutil only), `server` the process with the model,
`keeper` its small parent, which ends it with the workflow, `socket_folder` where they meet (a Unix socket
in a private folder), and `gpus` gives each of several GPUs to one job.

Protocol: one connection a job, JSON lines. The job sends `{"job": name, "request": {...}, "content": hash}`.
The host answers

- `{"begun": pid}` when the job's turn comes,
- `{"stderr": text}`, any number: what the job prints,
- and one of `{"done": null}`, `{"input_error": sentence}`, `{"failed": null}` (after the traceback, as
  stderr) and `{"cancelled": null}`

and closes. A client that closes its side, or just its sending direction, cancels its job.

The message's `content` says which model and code the job asks for. A host that has other ones ends when the
job's turn comes. Its connections close with its process; only then do their clients start the next host, so
that a device never holds two models.
"""
