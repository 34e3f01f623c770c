"""The command `consent`. Exit codes: 0 done, 1 refused or falsified, 2 usage or set-up.

The commands of one noun are one module, which hangs them on `consent` itself, in `root`. A new command is written in
its module; a new module is named here.
"""

from consent_service.cli import bench, imports, keys, ledger, openapi, policies, purge, schema, serve, verify  # noqa: F401 -- each brings its commands
from consent_service.cli.root import consent, main

__all__ = ["consent", "main"]
