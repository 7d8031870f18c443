"""The operator's commands, straight on the database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import make_url

from app.db.base_models import models
from app.db.engine import Sessions, transaction
from app.db.tables import Job
from app.domain.base_models import catalog
from app.services.access import keys, projects
from app.system import model_files, model_registration
from tests.app.cli.conftest import Tunery
from tests.app.test_model_hub import COMMIT, SOURCE, Hub, hub  # noqa: F401  a fixture
from tests.tiny import make_tiny_base
from tests.worker.trainer.model.bases import make_base

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


@pytest.fixture
def operator(bare_tunery: Tunery, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Tunery:
    """Somebody with a database and no API, on a host without torch: the check of a base model takes seconds."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setattr(model_registration, "can_check", lambda: False)
    return bare_tunery


@pytest.fixture
def operator_with_torch(bare_tunery: Tunery, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Tunery:
    monkeypatch.setenv("DATABASE_URL", database_url)
    return bare_tunery


@pytest.fixture
def model_directory(tmp_path: Path) -> Path:
    return make_tiny_base(tmp_path / "a-model")


class TestModelAliases:
    def test_are_set_listed_and_removed(self, operator: Tunery, model_directory: Path) -> None:
        operator("models", "add", "tiny", model_directory)
        done = operator("models", "alias", "gpt-4o-mini-2024-07-18", "tiny")
        assert (done.exit_code, done.out) == (0, "gpt-4o-mini-2024-07-18 -> tiny\n"), done.err
        assert operator("models", "aliases", "--json").json == [
            {"name": "gpt-4o-mini-2024-07-18", "model": "tiny", "registered": True}
        ]
        operator("models", "remove", "tiny")
        assert "tiny (removed)" in operator("models", "aliases").out
        assert operator("models", "unalias", "gpt-4o-mini-2024-07-18").exit_code == 0
        missing = operator("models", "unalias", "gpt-4o-mini-2024-07-18")
        assert (missing.exit_code, "aliases: none" in missing.err) == (3, True)

    def test_a_base_model_never_takes_the_name_of_an_alias(self, operator: Tunery, model_directory: Path) -> None:
        operator("models", "add", "tiny", model_directory)
        operator("models", "alias", "other", "tiny")
        done = operator("models", "add", "other", model_directory)
        assert (done.exit_code, "is an alias of" in done.err) == (2, True)

    def test_of_an_unknown_base_model_says_which_there_are(self, operator: Tunery, model_directory: Path) -> None:
        operator("models", "add", "tiny", model_directory)
        done = operator("models", "alias", "other", "none")
        assert (done.exit_code, "registered: tiny" in done.err) == (2, True)


class TestModelsPull:
    def test_the_model_is_downloaded_and_registered_with_its_source_and_commit(
        self,
        operator: Tunery,
        hub: Hub,  # noqa: F811
        tmp_path: Path,
        sessions: Sessions,
    ) -> None:
        done = operator("models", "pull", f"{SOURCE}@v1", tmp_path / "models", "--license", "mit")
        assert done.exit_code == 0, done.err
        with transaction(sessions) as session:
            [row] = models.list_base(session)
        assert (row.name, row.directory) == (SOURCE, str(tmp_path / "models" / f"tiny-{COMMIT[:12]}"))
        assert (row.entry["source"], row.entry["revision"], row.entry["license"]) == (SOURCE, COMMIT, "mit")
        hub.token = "secret"
        refused = operator("models", "pull", SOURCE, tmp_path / "models")
        assert refused.exit_code == 2
        assert "or set HF_TOKEN to a token that can read it" in refused.err


class TestModelsAdd:
    def test_the_directory_is_described_hashed_and_offered(
        self, operator: Tunery, model_directory: Path, sessions: Sessions
    ) -> None:
        done = operator("models", "add", "tiny", model_directory, "--learning-rate", "1e-3", "--license", "mit")
        assert done.exit_code == 0, done.err
        with transaction(sessions) as session:
            [row] = models.list_base(session)
        entry = catalog.CatalogEntry.model_validate(row.entry)
        assert (row.name, row.directory) == ("tiny", str(model_directory))
        assert (entry.learning_rate, entry.license) == (1e-3, "mit")
        assert (row.files, row.manifest_sha256) == model_files.hash_directory(model_directory)

    def test_a_relative_path_is_stored_as_an_absolute_one(
        self, operator: Tunery, model_directory: Path, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(model_directory.parent)
        operator("models", "add", "tiny", "a-model")
        with transaction(sessions) as session:
            assert models.list_base(session)[0].directory == str(model_directory)

    def test_the_same_name_again_replaces_it(
        self, operator: Tunery, model_directory: Path, sessions: Sessions, tmp_path: Path
    ) -> None:
        operator("models", "add", "tiny", model_directory)
        operator("models", "add", "tiny", make_tiny_base(tmp_path / "other", seed=1))
        with transaction(sessions) as session:
            assert [row.directory for row in models.list_base(session)] == [str(tmp_path / "other")]

    def test_every_reason_against_a_directory_is_given(self, operator: Tunery, model_directory: Path) -> None:
        (model_directory / "tokenizer.json").unlink()
        (model_directory / "modeling.py").write_text("")
        done = operator("models", "add", "tiny", model_directory)
        assert done.exit_code == 2
        assert "tokenizer.json is missing" in done.err
        assert "modeling.py is refused" in done.err

    def test_a_name_may_have_slashes_as_on_a_hub(self, operator: Tunery, model_directory: Path) -> None:
        assert operator("models", "add", "Qwen/Qwen3-4B", model_directory).exit_code == 0

    @pytest.mark.parametrize(
        "name", ["ft:x", "", ".hidden", "a b", "x" * 129, "a/" * 65 + "a", "/a", "a/", "a//b", "a/../b", "a\n"]
    )
    def test_a_name_that_would_break_a_url_or_an_ft_name_is_refused(
        self, operator: Tunery, model_directory: Path, name: str
    ) -> None:
        done = operator("models", "add", name, model_directory)
        assert done.exit_code == 2
        assert "not a model name" in done.err

    @pytest.mark.parametrize("rate", ["0", "1", "nan", "inf"])
    def test_an_impossible_learning_rate_is_refused(self, operator: Tunery, model_directory: Path, rate: str) -> None:
        assert operator("models", "add", "tiny", model_directory, "--learning-rate", rate).exit_code == 2

    def test_a_host_without_torch_says_that_the_model_was_not_checked(
        self, operator: Tunery, model_directory: Path
    ) -> None:
        assert "Not checked" in operator("models", "add", "tiny", model_directory).err

    @pytest.mark.extended("another start of the real program")
    def test_the_trainer_checks_the_model_and_knows_its_layers(
        self, operator_with_torch: Tunery, tmp_path: Path, sessions: Sessions
    ) -> None:
        directory = make_base("Gemma 3", tmp_path / "gemma")
        done = operator_with_torch("models", "add", "gemma", directory, "--source", "a/b", "--revision", "v1")
        assert done.exit_code == 0, done.err
        assert "Only text is trained" in done.err
        with transaction(sessions) as session:
            entry = catalog.CatalogEntry.model_validate(models.list_base(session)[0].entry)
        assert (entry.source, entry.revision, entry.context_length) == ("a/b", "v1", 512)
        assert "model.language_model.layers.0.self_attn.q_proj" in entry.layers

    def test_a_model_that_cannot_be_trained_is_refused_with_the_reasons(
        self, operator: Tunery, model_directory: Path, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """tests/worker/base_models/test_registrar.py has the trainer's own reasons."""

        def refuse(directory: Path, check: Callable[[], None]) -> None:
            raise catalog.RefusedModel(f"{directory} cannot be a base model: missing: a; not finite: b")

        monkeypatch.setattr(model_registration, "check_model", refuse)
        done = operator("models", "add", "tiny", model_directory)
        assert done.exit_code == 2
        assert "missing: a; not finite: b" in done.err
        assert "again" not in done.err
        with transaction(sessions) as session:
            assert models.list_base(session) == []

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            (("--source", "no-slash"), "not a hub's id"),
            (("--revision", "main"), "needs a source"),
            (("--source", "a/b", "--revision", "../x"), "not a commit or tag"),
        ],
    )
    def test_a_wrong_source_is_refused(
        self, operator: Tunery, model_directory: Path, options: tuple[str, ...], problem: str
    ) -> None:
        done = operator("models", "add", "tiny", model_directory, *options)
        assert (done.exit_code, problem in done.err) == (2, True), done.err


class TestModelsRemove:
    def test_it_is_on_offer_no_longer_and_its_files_stay(
        self, operator: Tunery, model_directory: Path, sessions: Sessions
    ) -> None:
        operator("models", "add", "tiny", model_directory)
        assert operator("models", "remove", "tiny").exit_code == 0
        with transaction(sessions) as session:
            assert models.list_base(session) == []
        assert (model_directory / "model.safetensors").exists()

    def test_an_unknown_name_is_not_found_and_the_known_ones_are_named(
        self, operator: Tunery, model_directory: Path
    ) -> None:
        operator("models", "add", "tiny", model_directory)
        done = operator("models", "remove", "tony")
        assert done.exit_code == 3
        assert "registered: tiny" in done.err


class TestModelsWhere:
    def test_prints_the_directory_that_an_adapter_needs(self, operator: Tunery, model_directory: Path) -> None:
        operator("models", "add", "tiny", model_directory)
        assert operator("models", "where", "tiny").out == f"{model_directory}\n"
        unknown = operator("models", "where", "tony")
        assert (unknown.exit_code, "registered: tiny" in unknown.err) == (3, True)


class TestModelsDelete:
    def test_the_name_is_deleted_and_the_adapter_is_kept(self, tunery: Tunery, trained_job: Job) -> None:
        name = trained_job.fine_tuned_model
        assert tunery("models", "delete", name).out == f"{name} deleted\n"
        assert name not in tunery("models", "list").out
        assert tunery("models", "delete", name).exit_code == 3
        job = tunery("jobs", "get", trained_job.id, "--json").json
        assert (job["fine_tuned_model"], tunery("files", "get", job["adapter"]["archive_file_id"]).exit_code) == (
            name,
            0,
        )

    def test_a_base_model_is_the_operators(self, tunery: Tunery, base_model: str) -> None:
        assert "tunery models remove" in tunery("models", "delete", base_model).err
        assert base_model in tunery("models", "list").out

    @pytest.mark.parametrize("name", ["no/such", "a?b=c", "../files"])
    def test_whatever_is_no_name_is_not_found(self, tunery: Tunery, name: str) -> None:
        assert tunery("models", "delete", name).exit_code == 3


class TestKeys:
    def test_a_key_is_all_that_standard_output_has(self, operator: Tunery, sessions: Sessions) -> None:
        done = operator("keys", "create", "--project", "team", "--name", "ci")
        with transaction(sessions) as session:
            key = keys.find_by_secret(session, done.out.strip())
            assert key is not None
            assert key.name == "ci"
        assert "not shown again" in done.err

    def test_the_first_key_creates_its_project_and_prints_a_note(self, operator: Tunery) -> None:
        assert "Created the project 'team'" in operator("keys", "create", "--project", "team").err
        assert "Created" not in operator("keys", "create", "--project", "team").err

    def test_a_later_key_creates_a_project_only_with_the_option(self, operator: Tunery, sessions: Sessions) -> None:
        operator("keys", "create", "--project", "team")
        refused = operator("keys", "create", "--project", "taem")
        assert (refused.exit_code, refused.out) == (3, "")
        assert "No such project: 'taem'" in refused.err
        assert "--create-project" in refused.err
        with transaction(sessions) as session:
            assert projects.find(session, "taem") is None
        assert "Created the project 'other'" in operator("keys", "create", "--project", "other", "--create-project").err

    def test_an_empty_project_is_a_usage_error(self, operator: Tunery) -> None:
        assert operator("keys", "create", "--project", " ").exit_code == 2

    def test_the_list_has_every_key_and_no_secret(self, operator: Tunery) -> None:
        made = operator("keys", "create", "--project", "team", "--json").json
        done = operator("keys", "list", "--json")
        assert [(key["id"], key["project"], key["revoked"]) for key in done.json] == [(made["id"], "team", "")]
        assert made["key"] not in done.out
        assert made["id"] in operator("keys", "list").out

    def test_a_revoked_key_opens_nothing_any_more(self, operator: Tunery, sessions: Sessions) -> None:
        made = operator("keys", "create", "--project", "team", "--json").json
        assert operator("keys", "revoke", made["id"]).exit_code == 0
        with transaction(sessions) as session:
            assert keys.find_by_secret(session, made["key"]) is None
        assert operator("keys", "revoke", made["id"]).exit_code == 3


class TestWithoutADatabase:
    def test_one_that_does_not_answer_is_named_without_its_password(self, bare_tunery: Tunery) -> None:
        done = bare_tunery("keys", "list", env={"DATABASE_URL": NOWHERE.replace("nobody", "nobody:secret")})
        assert done.exit_code == 1
        assert "127.0.0.1:1/nothing does not answer" in done.err
        assert "secret" not in done.err

    def test_without_a_database_url_the_error_lists_its_sources(self, bare_tunery: Tunery) -> None:
        done = bare_tunery("models", "remove", "x")
        assert done.exit_code == 1
        assert "DATABASE_URL is not set" in done.err

    @pytest.mark.parametrize("url", ["nonsense", "mysql://x/y"])
    def test_an_invalid_database_url_is_an_error(self, bare_tunery: Tunery, url: str) -> None:
        done = bare_tunery("keys", "list", env={"DATABASE_URL": url})
        assert done.exit_code == 2
        assert "not a PostgreSQL URL" in done.err

    def test_an_empty_database_asks_for_its_migrations(self, bare_tunery: Tunery, postgres_server: str) -> None:
        url = make_url(postgres_server).set(database="postgres").render_as_string(hide_password=False)
        done = bare_tunery("keys", "list", env={"DATABASE_URL": url})
        assert done.exit_code == 1
        assert "no tables of Tunery yet" in done.err
