"""async-task: a call that must happen because data changed, happens.

Everything public can be imported from here. What is named is loaded when it is first asked for, so that the command
line answers `--help` without SQLAlchemy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from async_task.actors import acting as acting
    from async_task.answers import Again as Again
    from async_task.answers import Discard as Discard
    from async_task.answers import RetryAfter as RetryAfter
    from async_task.app import AsyncTask as AsyncTask
    from async_task.argument_types import argument_type as argument_type
    from async_task.attempt import Attempt as Attempt
    from async_task.attempt import BaseAttempt as BaseAttempt
    from async_task.backlog import Depth as Depth
    from async_task.batches import BatchReport as BatchReport
    from async_task.ciphers import AesGcmEncryptor as AesGcmEncryptor
    from async_task.ciphers import FernetEncryptor as FernetEncryptor
    from async_task.claims import Claim as Claim
    from async_task.conformance import check_encryptor as check_encryptor
    from async_task.current import CurrentAttempt as CurrentAttempt
    from async_task.current import current_attempt as current_attempt
    from async_task.encryption import Encryptor as Encryptor
    from async_task.encryption import NullEncryptor as NullEncryptor
    from async_task.errors import AlreadyRunning as AlreadyRunning
    from async_task.errors import AmbiguousTransaction as AmbiguousTransaction
    from async_task.errors import AsyncTaskError as AsyncTaskError
    from async_task.errors import ClaimLost as ClaimLost
    from async_task.errors import ConfigurationError as ConfigurationError
    from async_task.errors import DecryptionFailed as DecryptionFailed
    from async_task.errors import InvalidArguments as InvalidArguments
    from async_task.errors import InvalidState as InvalidState
    from async_task.errors import LostAttemptWarning as LostAttemptWarning
    from async_task.errors import NoTransaction as NoTransaction
    from async_task.errors import SchemaMismatch as SchemaMismatch
    from async_task.errors import UnknownEncryptor as UnknownEncryptor
    from async_task.errors import UnknownMethod as UnknownMethod
    from async_task.errors import UnknownTarget as UnknownTarget
    from async_task.identity import process_started as process_started
    from async_task.jobs import AttemptBatchJob as AttemptBatchJob
    from async_task.jobs import AttemptJob as AttemptJob
    from async_task.jobs import BaseAttemptBatchJob as BaseAttemptBatchJob
    from async_task.jobs import BaseAttemptJob as BaseAttemptJob
    from async_task.keys import Key as Key
    from async_task.keys import Keys as Keys
    from async_task.lanes import Lane as Lane
    from async_task.outcomes import Busy as Busy
    from async_task.outcomes import Canceled as Canceled
    from async_task.outcomes import Expired as Expired
    from async_task.outcomes import Failed as Failed
    from async_task.outcomes import NotDue as NotDue
    from async_task.outcomes import NotPending as NotPending
    from async_task.outcomes import Outcome as Outcome
    from async_task.outcomes import Parked as Parked
    from async_task.outcomes import Retried as Retried
    from async_task.outcomes import Succeeded as Succeeded
    from async_task.outcomes import Superseded as Superseded
    from async_task.pauses import QueueState as QueueState
    from async_task.policies import policy as policy
    from async_task.presence import Presence as Presence
    from async_task.previews import BatchPreview as BatchPreview
    from async_task.previews import DueCalls as DueCalls
    from async_task.retry import Retry as Retry
    from async_task.rotation import RotationReport as RotationReport
    from async_task.runs import Run as Run
    from async_task.status import Status as Status
    from async_task.sweeps import SweepReport as SweepReport
    from async_task.tables import JobEvent as JobEvent
    from async_task.tables import metadata as metadata
    from async_task.targets import target as target
    from async_task.worker import AttemptWorker as AttemptWorker

__version__ = "0.1.0"

_HOMES = {
    "actors": "acting",
    "answers": "Again Discard RetryAfter",
    "app": "AsyncTask",
    "argument_types": "argument_type",
    "attempt": "Attempt BaseAttempt",
    "claims": "Claim",
    "ciphers": "AesGcmEncryptor FernetEncryptor",
    "conformance": "check_encryptor",
    "backlog": "Depth",
    "batches": "BatchReport",
    "current": "CurrentAttempt current_attempt",
    "encryption": "Encryptor NullEncryptor",
    "errors": "AlreadyRunning AmbiguousTransaction AsyncTaskError ClaimLost ConfigurationError DecryptionFailed "
    "InvalidArguments InvalidState LostAttemptWarning NoTransaction SchemaMismatch "
    "UnknownEncryptor UnknownMethod UnknownTarget",
    "identity": "process_started",
    "keys": "Key Keys",
    "jobs": "AttemptBatchJob AttemptJob BaseAttemptBatchJob BaseAttemptJob",
    "lanes": "Lane",
    "outcomes": "Busy Canceled Expired Failed NotDue NotPending Outcome Parked Retried Succeeded Superseded",
    "pauses": "QueueState",
    "policies": "policy",
    "presence": "Presence",
    "previews": "BatchPreview DueCalls",
    "retry": "Retry",
    "rotation": "RotationReport",
    "runs": "Run",
    "status": "Status",
    "sweeps": "SweepReport",
    "tables": "JobEvent metadata",
    "targets": "target",
    "worker": "AttemptWorker",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_HOME)  # noqa: PLE0605  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "metadata":
        import_module(f"{__name__}.attempt")  # the ready-made table lies in it only when its model is loaded
    globals()[name] = value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
