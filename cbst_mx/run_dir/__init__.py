"""Run folders: the names of their files, their lock, and the ledger of their finished steps."""

from __future__ import annotations

from cbst_mx.run_dir.folder import RunDir, versions
from cbst_mx.run_dir.lock import LOCK, Lock, lock_file, lock_folder, lock_owner
from cbst_mx.run_dir.stage import StageDir

__all__ = ["LOCK", "Lock", "RunDir", "StageDir", "lock_file", "lock_folder", "lock_owner", "versions"]
