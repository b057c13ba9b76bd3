"""Work shared by processes of this or other machines, by Dask (`distributed`), where ``--cluster`` asks for it.

A cluster is a scheduler and workers, each a process that runs one task at a time. `where` says which cluster is meant,
`engine` opens it and gives it work, `kvstore` starts processes on it that train together, `nodes` starts schedulers and
workers with the environment that the work needs, and `certificates` makes what they know each other by. Whoever has
work to share knows `messages.Shares` only.

Files travel as paths, never as contents: every worker must see them under the same path. Dask runs what it is sent, so
whoever can connect can do what the user can. Connections are therefore encrypted, and both sides show a certificate;
without that only 127.0.0.1 is used, or what ``--insecure`` allows.

`distributed` is in the extra ``scale``. Nothing here imports it before a cluster is opened.
"""

from __future__ import annotations

from cbst_mx.cluster.engine import Cluster, open_cluster
from cbst_mx.cluster.kvstore import KVStore
from cbst_mx.cluster.where import Where

__all__ = ["Cluster", "KVStore", "Where", "open_cluster"]
