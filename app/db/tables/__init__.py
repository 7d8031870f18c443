"""The tables, by subject. Constraints and triggers refuse inconsistent rows.

Times are `clock_timestamp()` of the server: a worker never compares its own clock with another's. `seq` columns order
pages, as creation times may be equal.
"""

from app.db.tables.access import ApiKey as ApiKey
from app.db.tables.access import AuditEntry as AuditEntry
from app.db.tables.access import CheckpointPermission as CheckpointPermission
from app.db.tables.access import IdempotencyKey as IdempotencyKey
from app.db.tables.access import Project as Project
from app.db.tables.access import RetiredApiKey as RetiredApiKey
from app.db.tables.base import Base as Base
from app.db.tables.base_models import BaseModelRegistration as BaseModelRegistration
from app.db.tables.base_models import BaseModelRow as BaseModelRow
from app.db.tables.base_models import ModelAlias as ModelAlias
from app.db.tables.deliveries import Delivery as Delivery
from app.db.tables.deliveries import DeliveryTarget as DeliveryTarget
from app.db.tables.deliveries import ServedReferenceRow as ServedReferenceRow
from app.db.tables.evaluations import Evaluation as Evaluation
from app.db.tables.evaluations import EvaluationAttempt as EvaluationAttempt
from app.db.tables.exports import Export as Export
from app.db.tables.files import File as File
from app.db.tables.files import Upload as Upload
from app.db.tables.files import UploadPart as UploadPart
from app.db.tables.jobs import Attempt as Attempt
from app.db.tables.jobs import Checkpoint as Checkpoint
from app.db.tables.jobs import Job as Job
from app.db.tables.jobs import JobEvent as JobEvent
from app.db.tables.jobs import JobLog as JobLog
from app.db.tables.jobs import JobTokens as JobTokens
from app.db.tables.jobs import Snapshot as Snapshot
from app.db.tables.jobs import TunedModel as TunedModel
from app.db.tables.operations import RetentionRule as RetentionRule
from app.db.tables.operations import ServiceState as ServiceState
from app.db.tables.scheduling import DeviceLosses as DeviceLosses
from app.db.tables.scheduling import MeasurementRow as MeasurementRow
from app.db.tables.scheduling import ProjectUsage as ProjectUsage
from app.db.tables.scheduling import QueuePlace as QueuePlace
from app.db.tables.scheduling import Worker as Worker
from app.db.tables.webhooks import WebhookAttempt as WebhookAttempt
from app.db.tables.webhooks import WebhookDelivery as WebhookDelivery
from app.db.tables.webhooks import WebhookEndpoint as WebhookEndpoint
