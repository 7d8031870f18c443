"""Encrypted secrets: which key protects what, the change to a new key, and a lost one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import func, update
from sqlalchemy.orm import Session

from app.db import encryption
from app.db.deliveries import credentials
from app.db.encryption import Protection
from app.db.engine import Sessions, transaction
from app.db.tables import DeliveryTarget, Project, WebhookEndpoint
from app.db.webhooks import operator
from app.domain.webhooks import new_secret
from app.errors import BadRequest
from app.services import webhooks
from app.services.operations import secrets
from app.services.webhooks import EndpointRules
from tests.factories import make_target, make_webhook_endpoint

OLD, NEW, OTHER = (Fernet.generate_key().decode() for _ in range(3))
URL = "https://hooks.example.com/"


def make_endpoint(session: Session, project: Project, keys: list[str]) -> tuple[str, str]:
    """The id of a webhook endpoint, and its secret."""
    secret = new_secret()
    return make_webhook_endpoint(session, project.id, secret=secret, encryption_keys=keys).id, secret


def make_engine(session: Session, project: Project, keys: list[str], name: str = "engine") -> str:
    token = credentials.encrypt(keys, {"api_key": "k"})
    return make_target(session, project.id, name, {"kind": "vllm"}, token).id


def protections(session: Session, keys: list[str]) -> dict[str, tuple[Protection, str | None]]:
    return {each.id: (each.protection, each.key) for each in secrets.view(session, keys)}


def test_the_list_says_which_key_protects_what(sessions: Sessions, project: Project) -> None:
    with transaction(sessions) as session:
        plain, _ = make_endpoint(session, project, [])
        current, _ = make_endpoint(session, project, [NEW])
        lost, _ = make_endpoint(session, project, [OTHER])
        old = make_engine(session, project, [OLD])
        operator.set_endpoint(session, URL)  # its secret is a setting
        assert protections(session, [NEW, OLD]) == {
            old: (Protection.OLD_KEY, encryption.fingerprint(OLD)),
            plain: (Protection.UNENCRYPTED, None),
            current: (Protection.CURRENT, encryption.fingerprint(NEW)),
            lost: (Protection.LOST, None),
        }


def test_a_rotation_re_encrypts_everything_but_lost_secrets_and_may_be_interrupted(
    sessions: Sessions, project: Project
) -> None:
    with transaction(sessions) as session:
        plain, plain_secret = make_endpoint(session, project, [])
        old, old_secret = make_endpoint(session, project, [OLD])
        newer = webhooks.rotate_secret(session, EndpointRules(False, (), [OLD]), project.id, old, True).signing_secret
        session.execute(update(WebhookEndpoint).where(WebhookEndpoint.id == plain).values(secret_hint=None))
        lost, _ = make_endpoint(session, project, [OTHER])
        target = make_engine(session, project, [OLD])
    remaining = []
    while not remaining or remaining[-1]:  # a transaction for each secret, as after interruptions
        with transaction(sessions) as session:
            rotation = secrets.rotate(session, [NEW, OLD], limit=1)
            assert (rotation.rotated, rotation.lost) == (1, 1)
            remaining.append(rotation.remaining)
    assert remaining == [2, 1, 0]
    with transaction(sessions) as session:
        found = protections(session, [NEW])  # the old key is gone now
        assert {name for name, (state, _) in found.items() if state == Protection.CURRENT} == {plain, old, target}
        assert found[lost][0] == Protection.LOST
        row = session.get_one(WebhookEndpoint, plain)
        assert encryption.reveal([NEW], row.secret) == plain_secret
        assert row.secret_hint == f"whsec_...{plain_secret[-4:]}"
        row = session.get_one(WebhookEndpoint, old)
        assert row.previous_secret is not None
        assert encryption.reveal([NEW], row.secret) == newer
        assert encryption.reveal([NEW], row.previous_secret) == old_secret
        stored = session.get_one(DeliveryTarget, target).credentials
        assert stored is not None
        assert credentials.decrypt([NEW], stored) == {"api_key": "k"}
        assert secrets.rotate(session, [NEW], limit=10) == secrets.Rotation(0, 0, 1)


def test_a_previous_secret_that_is_lost_keeps_no_other_from_being_re_encrypted(
    sessions: Sessions, project: Project
) -> None:
    with transaction(sessions) as session:
        endpoint, _ = make_endpoint(session, project, [OTHER])
        rules = EndpointRules(False, (), [OLD])
        newer = webhooks.rotate_secret(session, rules, project.id, endpoint, keep_old=True).signing_secret
    with transaction(sessions) as session:
        assert protections(session, [NEW, OLD])[endpoint][0] == Protection.LOST
        assert secrets.rotate(session, [NEW, OLD], limit=10) == secrets.Rotation(1, 0, 1)
        assert encryption.reveal([NEW], session.get_one(WebhookEndpoint, endpoint).secret) == newer
        past = func.clock_timestamp() - timedelta(seconds=1)
        session.execute(update(WebhookEndpoint).values(previous_secret_expires_at=past))
        session.expire_all()
        assert protections(session, [NEW])[endpoint][0] == Protection.CURRENT
        assert secrets.rotate(session, [NEW, OLD], limit=10) == secrets.Rotation(0, 0, 0)


def test_two_operators_who_rotate_at_once_lose_nothing(sessions: Sessions, project: Project) -> None:
    with transaction(sessions) as session:
        ids = [make_engine(session, project, [OLD], f"engine-{number}") for number in range(20)]

    def rotate(_: int) -> None:
        with transaction(sessions) as session:
            secrets.rotate(session, [NEW, OLD], limit=100)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(rotate, range(4)))
    with transaction(sessions) as session:
        assert protections(session, [NEW]) == dict.fromkeys(ids, (Protection.CURRENT, encryption.fingerprint(NEW)))


def test_without_a_key_nothing_can_be_rotated(sessions: Sessions, project: Project) -> None:
    with transaction(sessions) as session, pytest.raises(BadRequest, match="TUNERY_SECRET_KEYS"):
        secrets.rotate(session, [], limit=1)
